//! The syntax of names, labels and address lists in Kubernetes objects. Called by every validation. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::field::FieldErrors;

const DNS_LABEL: &str = "must be a DNS label: at most 63 lower case letters, digits or '-', and start and end with a letter or digit";
const PORT_NAME: &str = "must be at most 15 lower case letters, digits or single '-', with at least one letter, and start and end with a letter or digit";

/// Whether `text` is an RFC 1123 label.
pub fn is_dns_label(text: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().copied().is_some_and(edge)
        && bytes.last().copied().is_some_and(edge)
        && bytes.iter().all(|&byte| edge(byte) || byte == b'-')
}

/// Whether `text` is an RFC 1123 subdomain.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether `text` is a label value.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}

/// Whether `text` is a label key: an optional DNS prefix and a name.
pub fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Complains unless `text` is an RFC 1123 label.
pub fn dns_label(errors: &mut FieldErrors, field: &str, text: &str) {
    if !is_dns_label(text) {
        errors.invalid(field, text, DNS_LABEL);
    }
}

/// Complains unless `text` is an IANA service name, as container ports and named target ports are.
pub fn port_name(errors: &mut FieldErrors, field: &str, text: &str) {
    let fits = text.len() <= 15
        && is_dns_label(text)
        && !text.contains("--")
        && text.bytes().any(|byte| byte.is_ascii_lowercase());
    if !fits {
        errors.invalid(field, text, PORT_NAME);
    }
}

/// Complains unless `text` is an address in plain form; returns it.
pub fn address(errors: &mut FieldErrors, field: &str, text: &str) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        errors.invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    parsed
}

/// Complains unless `text` is a prefix; host bits may be set, as Kubernetes allows.
pub fn cidr(errors: &mut FieldErrors, field: &str, text: &str) -> Option<IpNet> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        errors.invalid(field, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
    parsed
}

/// Complains about an address that no endpoint can have.
pub fn endpoint_address(errors: &mut FieldErrors, field: &str, address: IpAddr) {
    if let Some(why) = quilla_model::address::unusable(address) {
        errors.invalid(field, address.to_string(), format_args!("may not be a {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::{dns_label, is_dns_label, is_label_key, is_label_value, port_name};
    use crate::field::FieldErrors;

    #[test]
    fn labels_follow_rfc_1123() {
        let long = "a".repeat(64);
        for (text, fits) in [
            ("a", true),
            ("web-1", true),
            ("1web", true),
            ("", false),
            ("-web", false),
            ("web-", false),
            ("Web", false),
            ("a.b", false),
            (long.as_str(), false),
        ] {
            assert_eq!(is_dns_label(text), fits, "{text:?}");
            let mut errors = FieldErrors::default();
            dns_label(&mut errors, "name", text);
            assert_eq!(errors.is_empty(), fits, "{text:?}");
        }
    }

    #[test]
    fn port_names_are_short_and_have_a_letter() {
        for (text, fits) in
            [("http", true), ("8080", false), ("a--b", false), ("sixteen-letters-", false), ("p80", true)]
        {
            let mut errors = FieldErrors::default();
            port_name(&mut errors, "name", text);
            assert_eq!(errors.is_empty(), fits, "{text:?}");
        }
    }

    #[test]
    fn label_keys_have_an_optional_prefix() {
        for (text, fits) in
            [("app", true), ("app.kubernetes.io/name", true), ("/name", false), ("a/b/c", false), ("", false)]
        {
            assert_eq!(is_label_key(text), fits, "{text:?}");
        }
        assert!(is_label_value("") && is_label_value("v1.2_a") && !is_label_value("a b"));
    }
}
