//! Service-account tokens: signed, bound, expiring (KEP-1205); the issuer's keys.

pub struct Tokens {
    _private: (),
}
