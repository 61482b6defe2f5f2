//! What is measured of a path.

use clap::ValueEnum;

/// A kind of load, with what a figure of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Metric {
    /// One byte there and one back over one TCP connection
    TcpRr,
    /// Connect, one byte there and one back, closed by the client with a reset
    TcpCrr,
    /// The same, closed by the client's FIN and then the server's
    TcpCrrFin,
    /// One byte there and one back between connected UDP sockets
    UdpRr,
    /// Bytes in one direction over TCP
    Stream,
    /// The same in segments of 1448 bytes from the sender's device on
    StreamGsoOff,
}

impl Metric {
    /// All, in the order in which they are measured: the sender's offloads change once.
    pub(super) const ALL: [Self; 6] =
        [Self::TcpRr, Self::TcpCrr, Self::TcpCrrFin, Self::UdpRr, Self::Stream, Self::StreamGsoOff];

    /// As in a table's heading.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::TcpRr => "TCP RR/s",
            Self::TcpCrr => "TCP CRR/s (reset)",
            Self::TcpCrrFin => "TCP CRR/s (FIN)",
            Self::UdpRr => "UDP RR/s",
            Self::Stream => "stream Gbit/s",
            Self::StreamGsoOff => "stream Gbit/s, GSO off",
        }
    }

    /// The port of the server for it.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::TcpRr => 7001,
            Self::TcpCrr | Self::TcpCrrFin => 7002,
            Self::UdpRr => 7003,
            Self::Stream | Self::StreamGsoOff => 7004,
        }
    }

    /// Whether it counts bytes, not answers.
    pub(super) fn is_stream(self) -> bool {
        matches!(self, Self::Stream | Self::StreamGsoOff)
    }

    /// A figure from what a second brought.
    pub(super) fn figure(self, per_second: f64) -> String {
        if self.is_stream() {
            format!("{:.2}", gigabits(per_second))
        } else {
            format!("{:.2}k", per_second / 1e3)
        }
    }
}

/// Of bytes.
pub(super) fn gigabits(bytes: f64) -> f64 {
    bytes * 8.0 / 1e9
}

#[cfg(test)]
mod tests {
    use super::Metric;

    #[test]
    fn figures_have_their_unit() {
        assert_eq!(Metric::TcpRr.figure(70_701.0), "70.70k");
        assert_eq!(Metric::Stream.figure(2.5e9), "20.00");
    }
}
