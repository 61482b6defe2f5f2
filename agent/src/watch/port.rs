//! Ports and protocols as the API gives them. Used by the kinds that have ports.

use quilla_model::Protocol;

use super::driver::Notes;

/// A port number.
pub(super) fn number(field: &str, port: i32, notes: &mut Notes) -> Option<u16> {
    let valid = u16::try_from(port).ok().filter(|&port| port != 0);
    notes.parsed(field, &port.to_string(), valid)
}

/// A protocol; TCP if it is not said.
pub(super) fn protocol(field: &str, text: Option<&str>, notes: &mut Notes) -> Option<Protocol> {
    let text = text.unwrap_or("TCP");
    notes.parsed(field, text, Protocol::parse(text))
}
