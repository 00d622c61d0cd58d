//! The formats of texts that schemas of custom resources name; others are not checked. Source: kube-openapi `pkg/validation/strfmt`.

use core::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use jiff::{Timestamp, civil::Date};

use crate::meta::{duration, pattern};

/// Formats that are patterns.
const PATTERNS: [(&str, &str); 6] = [
    ("duration", "[0-9]+\\s*((?i:[num\u{b5}]?s|sec|m|min|h|hr|hour|d|day|w|wk|week)|(nano|micro|milli|sec|min|hour|day|week)[a-zA-Z\u{b5}]*)([^a-zA-Z\u{b5}]|$)"),
    ("email", "^[^@\\s]+@[^@\\s]+$"),
    ("hexcolor", "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
    ("hostname", "^[-.a-zA-Z0-9\\p{S}\\p{L}]+$"),
    ("mac", "^([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}$"),
    ("uuid", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
];

/// Whether a text is of that format.
pub fn is_of(text: &str, format: &str) -> bool {
    match format {
        "" => true,
        "byte" => STANDARD.decode(text).is_ok(),
        "cidr" => text.parse::<IpNet>().is_ok(),
        "date" => text.len() == "2006-01-02".len() && text.parse::<Date>().is_ok(),
        "date-time" | "datetime" => text.parse::<Timestamp>().is_ok(),
        // Go's own, or at least one number with a unit in words ("3 days").
        "duration" if duration::parse(text).is_some() => true,
        "hostname" if !text.split('.').all(is_label) => false,
        "ipv4" => text.parse::<IpAddr>().is_ok_and(|it| it.is_ipv4()),
        "ipv6" => text.parse::<IpAddr>().is_ok_and(|it| it.is_ipv6()),
        "uri" => text.starts_with('/') || text.split_once(':').is_some_and(|it| !it.0.is_empty() && it.0.chars().all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it))),
        other => PATTERNS.iter().find(|it| it.0 == other).is_none_or(|it| pattern::compiled(it.1).is_ok_and(|it| it.is_match(text))),
    }
}

/// Whether a part of a host name has 1 to 63 bytes and no dash at its ends.
fn is_label(part: &str) -> bool {
    (1..=63).contains(&part.len()) && !part.starts_with('-') && !part.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_their_formats() {
        let cases = [
            ("ipv4", "10.0.0.1", "::1"), ("ipv6", "::1", "10.0.0.1"), ("cidr", "10.0.0.0/8", "10.0.0.0"), ("date", "2026-01-31", "2026-02-30"),
            ("date-time", "2026-01-31T00:00:00Z", "yesterday"), ("duration", "1h30m", "1 houx"), ("byte", "YQ==", "%"), ("uri", "https://a/b", "a b"),
            ("email", "a@b.c", "a.b.c"), ("hostname", "a.b-c.d", "-a"), ("hostname", "bücher.example", "a_b"), ("mac", "00:11:22:aa:bb:cc", "00:11"), ("hexcolor", "#fff", "#ff"),
            ("duration", "3 days 1 hour", "days 3"), ("duration", "0", "12"), ("duration", "5 Min", "5 Minutes"),
            ("uuid", "0b5c1f5e-2d3a-4c4f-9b1e-6f1f0b6f7a11", "0b5c"),
        ];
        for (format, good, bad) in cases {
            assert!(is_of(good, format) && !is_of(bad, format), "{format}");
        }
        assert!(is_of("anything", "int32") && is_of("", ""));
    }
}
