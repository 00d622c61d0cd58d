//! Durations in Go's notation: `1h30m`, `-1.5s`. Source: Go `time.ParseDuration`.

const SECOND: i64 = 1_000_000_000;
/// In nanoseconds.
const UNITS: [(&str, i64); 8] =
    [("ns", 1), ("us", 1000), ("µs", 1000), ("μs", 1000), ("ms", 1_000_000), ("s", SECOND), ("m", 60 * SECOND), ("h", 3600 * SECOND)];

/// The nanoseconds of a duration.
pub fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let is_number = |it: char| it.is_ascii_digit() || it == '.';
    let mut total: i128 = 0;
    loop {
        let (number, after) = rest.split_at(rest.find(|it| !is_number(it))?);
        let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        total += scaled(number, self::unit(unit)?)?;
        rest = after;
        if rest.is_empty() {
            return i64::try_from(total * sign).ok();
        }
    }
}

pub fn unit(name: &str) -> Option<i64> {
    UNITS.iter().find(|it| it.0 == name).map(|it| it.1)
}

fn scaled(number: &str, factor: i64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 {
        return None;
    }
    let (whole, part): (i128, f64) = (format!("0{whole}").parse().ok()?, format!("0.{fraction}0").parse().ok()?);
    Some(whole * i128::from(factor) + (part * factor as f64) as i128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let cases = [("0", Some(0)), ("10s", Some(10_000)), ("1m30s", Some(90_000)), ("1.5h", Some(5_400_000)), ("5ms", Some(5)), ("-1s", Some(-1000)), ("+.5s", Some(500))];
        for (text, millis) in cases.into_iter().chain(["", "5", "s", "-", ".s", "1.2.3s", "1d"].map(|it| (it, None))) {
            assert_eq!(parse(text).map(|it| it / 1_000_000), millis, "{text}");
        }
    }
}
