//! Ranges of IPv4 addresses, as `10.244.0.0/16`.

use core::{fmt, net::IpAddr, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;

use super::names;

/// A range that begins at its own network address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(Ipv4Net);

impl Cidr {
    /// The range of `address` with this prefix, up to 32 bits.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        Self(Ipv4Net::new_assert(address, prefix.min(32)).trunc())
    }

    pub fn prefix(self) -> u8 {
        self.0.prefix_len()
    }

    /// The address at `offset`; the first is 0.
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.addr()).wrapping_add(offset))
    }

    /// How many addresses there are.
    pub fn size(self) -> u64 {
        1 << (32 - self.prefix())
    }

    pub fn contains(self, ip: Ipv4Addr) -> bool {
        self.0.contains(&ip)
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }

    /// The ranges of `prefix` bits that it consists of, in order.
    pub fn subnets(self, prefix: u8) -> impl Iterator<Item = Self> {
        self.0.subnets(prefix).into_iter().flatten().map(Self)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match names::cidr(text) {
            Some((IpAddr::V4(address), prefix)) => Ok(Self::new(address, prefix)),
            _ => Err(format!("invalid CIDR address: {text}")),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_split_and_compared() {
        let range = |text: &str| text.parse::<Cidr>();
        for (text, expected) in [("10.244.0.0/16", Ok("10.244.0.0/16")), ("10.244.7.9/24", Ok("10.244.7.0/24")), ("10.0.0.0/33", Err(())), ("x/8", Err(())), ("10.0.0.0", Err(()))] {
            assert_eq!(range(text).map(|it| it.to_string()).map_err(drop).as_deref(), expected.as_ref().map(|it| *it).map_err(|()| &()));
        }
        let all = range("10.244.0.0/16").unwrap();
        let subnets: Vec<String> = all.subnets(24).map(|it| it.to_string()).collect();
        assert_eq!((subnets.len(), subnets[1].as_str(), subnets[255].as_str()), (256, "10.244.1.0/24", "10.244.255.0/24"));
        assert_eq!(all.subnets(8).count(), 0);
        assert!(all.contains(Ipv4Addr::new(10, 244, 255, 255)) && !all.contains(Ipv4Addr::new(10, 245, 0, 0)));
        assert!(all.overlaps(range("10.0.0.0/8").unwrap()) && range("10.0.0.0/8").unwrap().overlaps(all));
        assert!(!all.overlaps(range("10.245.0.0/16").unwrap()));
        assert_eq!(range("0.0.0.0/0").unwrap().size(), 1 << 32);
    }
}
