//! What names one attachment (a container and its interface) and the shapes the specification gives those names.
//! Used by both sides; the host-side interface name depends on the attachment alone, so DEL needs no memory.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One interface of one container: the key of every operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's identifier of the Pod sandbox.
    pub container_id: String,
    /// The interface name inside the Pod.
    pub ifname: String,
}

impl Attachment {
    /// Name of the host side of the veth pair.
    pub fn host_ifname(&self) -> String {
        host_ifname(&self.container_id, &self.ifname)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Name of the host side of the veth pair: `quil` and 55 bits of a hash, 15 characters as the kernel allows.
pub fn host_ifname(container_id: &str, ifname: &str) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let bytes = container_id.bytes().chain([0]).chain(ifname.bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, fnv1a);
    let mut name = String::from("quil");
    for _ in 0..11 {
        name.push(char::from(DIGITS[(hash >> 59) as usize]));
        hash <<= 5;
    }
    name
}

/// Whether [`host_ifname`] makes such names.
pub fn is_host_ifname(name: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'v').contains(&byte);
    name.strip_prefix("quil").is_some_and(|rest| rest.len() == 11 && rest.bytes().all(digit))
}

const fn fnv1a(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
}

/// Whether the text has the shape of a container identifier.
pub fn validate_container_id(text: &str) -> bool {
    is_identifier(text)
}

/// Whether the text has the shape of a network name.
pub fn validate_network_name(text: &str) -> bool {
    is_identifier(text)
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether the kernel and the specification accept the text as an interface name.
pub fn validate_ifname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 15
        && text != "."
        && text != ".."
        && !text.contains(['/', ':', '\0'])
        && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{host_ifname, is_host_ifname, validate_container_id, validate_ifname};

    #[test]
    fn host_name_is_stable_short_and_distinct() {
        assert_eq!(host_ifname("c1", "eth0"), host_ifname("c1", "eth0"));
        let names: HashSet<_> = (0..10_000).map(|id| host_ifname(&format!("c{id}"), "eth0")).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|name| validate_ifname(name) && name.len() == 15));
        assert!(names.iter().all(|name| is_host_ifname(name)));
        assert!(["quilla_vxlan", "quilla", "eth0"].iter().all(|name| !is_host_ifname(name)));
        // The pair is hashed, not its concatenation.
        assert_ne!(host_ifname("a", "beth0"), host_ifname("ab", "eth0"));
    }

    /// CNI-4: the shape of container identifiers.
    #[test]
    fn container_id_shape() {
        assert!(validate_container_id("0a_B.c-9"));
        for text in ["", "-a", "_a", ".a", "a/b", "a b", "ä"] {
            assert!(!validate_container_id(text), "{text:?}");
        }
    }

    /// CNI-4: the shape of interface names.
    #[test]
    fn ifname_shape() {
        assert!(validate_ifname("eth0") && validate_ifname("fifteen-letters"));
        for text in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen--letters"] {
            assert!(!validate_ifname(text), "{text:?}");
        }
    }
}
