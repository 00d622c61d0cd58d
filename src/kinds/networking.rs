//! Addresses as objects. Source: `pkg/apis/networking/validation/validation.go`.

use super::Strategy;
use crate::meta::names;

pub const IP_ADDRESS: Strategy = Strategy { name: ip_name, ..Strategy::PLAIN };

/// `ValidateIPAddressName`: an address as it is usually written.
fn ip_name(name: &str) -> names::Problems {
    match name.parse::<core::net::IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        Ok(address) if address.to_string() != name => vec![format!("must be in canonical form (\"{address}\")").into()],
        Ok(_) => names::Problems::new(),
    }
}
