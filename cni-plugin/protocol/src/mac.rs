//! An Ethernet address in its usual notation. Used in messages and results; always six bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// The text is not six pairs of hexadecimal digits joined by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse mac address {text:?}: want six hexadecimal pairs joined by colons")]
pub struct MacParseError {
    text: String,
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl FromStr for MacAddress {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacParseError { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::MacAddress;

    #[test]
    fn text_round_trip() {
        let mac = MacAddress([0x02, 0xab, 0, 1, 2, 0xff]);
        assert_eq!(mac.to_string(), "02:ab:00:01:02:ff");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn refuses_other_shapes() {
        for text in ["", "02:ab:00:01:02", "02:ab:00:01:02:ff:00", "2:ab:00:01:02:ff", "02:ab:00:01:02:zz"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text:?}");
        }
    }
}
