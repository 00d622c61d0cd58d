//! The wall clock and the two forms in which Kubernetes writes time.

use jiff::Timestamp;

pub fn now() -> Timestamp {
    Timestamp::now()
}

/// `metav1.Time`: RFC 3339 in UTC, whole seconds.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: RFC 3339 in UTC, six digits of a second.
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Now, as `metav1.Time`.
pub fn now_rfc3339() -> String {
    rfc3339(now())
}
