//! `resource.Quantity`: a fixed-point number with a decimal or binary suffix, and its canonical form.
//! Source: apimachinery `pkg/api/resource/quantity.go`.

use std::{cmp::Ordering, fmt, str::FromStr};

/// Exact to a nano unit within ±170 billion billion; what is finer rounds up, away from zero, as upstream.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// In units of 10^-9.
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// Suffixes, each 1024 times the one before.
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Each 1000 times the one before, from 10^-9 on.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
const NANOS: i128 = 1_000_000_000;
/// Values are capped at 2^63-1 units, as upstream's `maxAllowed`.
const MOST: i128 = i64::MAX as i128 * NANOS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    pub const fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: units as i128 * NANOS, format }
    }

    /// Whole units, rounded up (`Value`): bytes for memory, objects for pods.
    pub fn units(self) -> i64 {
        round_up(self.nanos, NANOS)
    }

    /// Thousandths, rounded up (`MilliValue`): cpu.
    pub fn millis(self) -> i64 {
        round_up(self.nanos, NANOS / 1000)
    }

    /// The nearest floating-point number (`AsApproximateFloat64`).
    pub fn approximate(self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether the value is a whole number of units, as extended resources must be.
    pub fn is_whole(self) -> bool {
        self.nanos % NANOS == 0
    }

    pub fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos + other.nanos, format }
    }

    pub fn sub(self, other: Self) -> Self {
        self.add(Self { nanos: -other.nanos, ..other })
    }
}

/// `value / unit`, rounded away from zero, saturating.
fn round_up(value: i128, unit: i128) -> i64 {
    let quotient = value / unit;
    let rounded = if value % unit == 0 { quotient } else { quotient + value.signum() };
    rounded.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (is_negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(ParseError::Format),
        };
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError::Format);
        }
        let (base, power, format) = parse_suffix(suffix)?;
        let nanos = scaled(whole, fraction, base, power).min(MOST);
        Ok(Self { nanos: if is_negative { -nanos } else { nanos }, format })
    }
}

/// (base, exponent, format) of a suffix.
fn parse_suffix(suffix: &str) -> Result<(u32, i32, Format), ParseError> {
    if let Some(at) = BINARY.iter().position(|it| *it == suffix && !it.is_empty()) {
        return Ok((2, 10 * at as i32, Format::BinarySi));
    }
    if let Some(at) = DECIMAL.iter().position(|it| *it == suffix) {
        return Ok((10, 3 * at as i32 - 9, Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
    let power: i32 = exponent.parse().map_err(|_| ParseError::Suffix)?;
    Ok((10, power.clamp(-40, 40), Format::DecimalExponent))
}

/// `whole.fraction × base^power` in nano units, rounded up.
fn scaled(whole: &str, fraction: &str, base: u32, power: i32) -> i128 {
    let mut digits: i128 = 0;
    let mut is_inexact = false;
    let mut scale: i32 = 0;
    for (at, digit) in whole.bytes().chain(fraction.bytes()).map(|it| i128::from(it - b'0')).enumerate() {
        if digits > i128::MAX / 100_000_000_000_000_000_000 {
            // Beyond 18 digits: only the magnitude and whether something was cut matter.
            is_inexact |= digit != 0;
            scale += i32::from(at < whole.len());
        } else {
            digits = digits * 10 + digit;
            scale -= i32::from(at >= whole.len());
        }
    }
    let (mut value, mut ten) = (digits, scale + 9);
    match base {
        2 => value = value.saturating_mul(1i128 << power),
        _ => ten += power,
    }
    while ten > 0 && value < MOST {
        value = value.saturating_mul(10);
        ten -= 1;
    }
    while ten < 0 && value > 0 {
        is_inexact |= value % 10 != 0;
        value /= 10;
        ten += 1;
    }
    value + i128::from(is_inexact)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that needs none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANOS;
        let is_small = units.abs() < 1024;
        if self.format == Format::BinarySi && self.is_whole() && !is_small {
            let steps = (0..6).take_while(|step| units % (1i128 << (10 * (step + 1))) == 0).count();
            return write!(f, "{}{}", units >> (10 * steps), BINARY[steps]);
        }
        let (mut value, mut step) = (self.nanos, 0);
        while step < 9 && value % 1000 == 0 {
            value /= 1000;
            step += 1;
        }
        match self.format {
            Format::DecimalExponent => match step as i32 * 3 - 9 {
                0 => write!(f, "{value}"),
                power => write!(f, "{value}e{power}"),
            },
            _ => write!(f, "{value}{}", DECIMAL[step]),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"), ("100m", "100m"), ("0.1", "100m"), ("1000m", "1"), ("1.5Gi", "1536Mi"), ("1Gi", "1Gi"), ("1024Mi", "1Gi"),
            ("512", "512"), ("1000", "1k"), ("1500", "1500"), ("1e3", "1e3"), ("12e6", "12e6"), ("64Mi", "64Mi"), ("0.5Ki", "512"),
            ("100Mi", "100Mi"), ("-5", "-5"), ("1.0000000001", "1000000001n"), ("1Ki", "1Ki"), ("250000u", "250m"), ("128974848", "128974848"),
        ];
        for (text, canonical) in cases {
            assert_eq!(text.parse::<Quantity>().map(|it| it.to_string()).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn rounds_up_and_refuses_what_is_no_number() {
        assert_eq!("1m".parse::<Quantity>().map(Quantity::units), Ok(1));
        assert_eq!("1500m".parse::<Quantity>().map(Quantity::units), Ok(2));
        assert_eq!("0.5".parse::<Quantity>().map(Quantity::millis), Ok(500));
        for text in ["", "x", "1x", "1..2", ".", "-", "1 Gi", "Gi"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
