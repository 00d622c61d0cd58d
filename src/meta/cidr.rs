//! Ranges of IPv4 addresses, as `10.244.0.0/16`.

use core::{fmt, net::Ipv4Addr, str::FromStr};

/// A range that begins at its own network address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: u32,
    prefix: u8,
}

impl Cidr {
    /// The range of `address` with this prefix, up to 32 bits.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Self { first: u32::from(address) & mask, prefix }
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address at `offset`; the first is 0.
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first.wrapping_add(offset))
    }

    /// How many addresses there are.
    pub fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    pub fn contains(self, ip: Ipv4Addr) -> bool {
        u64::from(u32::from(ip).wrapping_sub(self.first)) < self.size()
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.at(0)) || other.contains(self.at(0))
    }

    /// The ranges of `prefix` bits that it consists of, in order.
    pub fn subnets(self, prefix: u8) -> impl Iterator<Item = Self> {
        let count = if prefix < self.prefix { 0 } else { 1u64 << (prefix - self.prefix) };
        let step = 1u64 << (32 - prefix.min(32));
        (0..count).map(move |number| Self::new(self.at((number * step) as u32), prefix))
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Some(Self::new(address.parse().ok()?, prefix.parse().ok().filter(|it| *it <= 32)?))
        };
        parse().ok_or_else(|| format!("invalid CIDR address: {text}"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at(0), self.prefix)
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
