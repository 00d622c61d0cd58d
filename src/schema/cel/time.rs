//! Durations and timestamps. Follows cel-go `common/types/{duration,timestamp}.go` and Go's `time` where they lean on it.

use jiff::{Timestamp, Zoned, tz::TimeZone};

use super::{
    functions::Native,
    value::{Eval, Val, fail, no_overload},
};

const SECOND: i64 = 1_000_000_000;
const UNITS: [(&str, i64); 10] = [
    ("ns", 1), ("us", 1000), ("µs", 1000), ("μs", 1000), ("ms", 1_000_000), ("s", SECOND), ("m", 60 * SECOND), ("h", 3600 * SECOND), ("d", 86_400 * SECOND),
    ("w", 604_800 * SECOND),
];
/// The first and the last second of a timestamp: years 1 to 9999.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

#[rustfmt::skip]
pub const TABLE: &[(&str, Native)] = &[
    ("duration", |a| match a {
        [Val::Duration(it)] => Ok(Val::Duration(*it)),
        [Val::Int(_)] => fail("type conversion error from 'int' to 'google.protobuf.Duration'"),
        [Val::String(it)] => match go_duration(it) {
            Some(it) => Ok(Val::Duration(it)),
            None => fail(format!("time: invalid duration {it:?}")),
        },
        _ => no_overload(),
    }),
    ("timestamp", |a| match a {
        [Val::Timestamp(it)] => Ok(Val::Timestamp(*it)),
        [Val::Int(it)] if SECONDS.contains(it) => Timestamp::from_second(*it).map(Val::Timestamp).or_else(|_| range()),
        [Val::Int(_)] => range(),
        [Val::String(it)] => match it.parse::<Timestamp>() {
            Ok(time) if it.contains(['T', 't']) => Ok(Val::Timestamp(time)),
            _ => fail(format!("parsing time {it:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {it:?} as \"2006\"")),
        },
        _ => no_overload(),
    }),
    ("getFullYear", |a| calendar(a, |it| i64::from(it.year()))),
    ("getMonth", |a| calendar(a, |it| i64::from(it.month()) - 1)),
    ("getDate", |a| calendar(a, |it| i64::from(it.day()))),
    ("getDayOfMonth", |a| calendar(a, |it| i64::from(it.day()) - 1)),
    ("getDayOfWeek", |a| calendar(a, |it| i64::from(it.weekday().to_sunday_zero_offset()))),
    ("getDayOfYear", |a| calendar(a, |it| i64::from(it.day_of_year()) - 1)),
    ("getHours", |a| match a { [Val::Duration(it)] => Ok(Val::Int(it / (3600 * SECOND))), _ => calendar(a, |it| i64::from(it.hour())) }),
    ("getMinutes", |a| match a { [Val::Duration(it)] => Ok(Val::Int(it / (60 * SECOND))), _ => calendar(a, |it| i64::from(it.minute())) }),
    ("getSeconds", |a| match a { [Val::Duration(it)] => Ok(Val::Int(it / SECOND)), _ => calendar(a, |it| i64::from(it.second())) }),
    ("getMilliseconds", |a| match a { [Val::Duration(it)] => Ok(Val::Int(it / 1_000_000)), _ => calendar(a, |it| i64::from(it.millisecond())) }),
];

fn range<T>() -> Eval<T> {
    fail("range error converting int to google.protobuf.Timestamp")
}

fn calendar<'a>(args: &[Val<'a>], read: fn(&Zoned) -> i64) -> Eval<Val<'a>> {
    let (time, zone) = match args {
        [Val::Timestamp(time)] => (time, TimeZone::UTC),
        [Val::Timestamp(time), Val::String(name)] => (time, zone(name)?),
        _ => return no_overload(),
    };
    Ok(Val::Int(read(&time.to_zoned(zone))))
}

/// `America/New_York`, or `-08:00`
fn zone(name: &str) -> Eval<TimeZone> {
    if let Some((hours, minutes)) = name.split_once(':') {
        let number = |text: &str| text.parse::<i32>().ok().filter(|it| it.abs() < 60);
        let sign = if hours.starts_with('-') { -1 } else { 1 };
        let seconds = number(hours).zip(number(minutes)).map(|(hours, minutes)| hours * 3600 + sign * minutes * 60);
        return match seconds.and_then(|it| jiff::tz::Offset::from_seconds(it).ok()) {
            Some(offset) => Ok(TimeZone::fixed(offset)),
            None => fail(format!("unknown time zone {name}")),
        };
    }
    TimeZone::get(name).or_else(|_| fail(format!("unknown time zone {name}")))
}

pub fn add<'a>(left: &Val<'a>, right: &Val<'a>) -> Eval<Val<'a>> {
    match (left, right) {
        (Val::Duration(a), Val::Duration(b)) => a.checked_add(*b).map_or_else(|| fail("duration overflow"), |it| Ok(Val::Duration(it))),
        (Val::Timestamp(time), Val::Duration(span)) | (Val::Duration(span), Val::Timestamp(time)) => moved(*time, *span),
        _ => no_overload(),
    }
}

pub fn subtract<'a>(args: &[Val<'a>]) -> Eval<Val<'a>> {
    match args {
        [Val::Duration(a), Val::Duration(b)] => a.checked_sub(*b).map_or_else(|| fail("duration overflow"), |it| Ok(Val::Duration(it))),
        [Val::Timestamp(time), Val::Duration(span)] => span.checked_neg().map_or_else(|| fail("duration overflow"), |it| moved(*time, it)),
        [Val::Timestamp(a), Val::Timestamp(b)] => match i64::try_from(a.as_nanosecond() - b.as_nanosecond()) {
            Ok(span) => Ok(Val::Duration(span)),
            Err(_) => fail("duration overflow"),
        },
        _ => no_overload(),
    }
}

fn moved<'a>(time: Timestamp, span: i64) -> Eval<Val<'a>> {
    let moved = Timestamp::from_nanosecond(time.as_nanosecond() + i128::from(span)).ok().filter(|it| SECONDS.contains(&it.as_second()));
    moved.map_or_else(|| fail("timestamp overflow"), |it| Ok(Val::Timestamp(it)))
}

/// `time.ParseDuration`: `1h30m`, `-1.5s`
fn go_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let (number, after) = rest.split_at(end);
        let length = after.find(|it: char| it.is_ascii_digit() || it == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let factor = UNITS[..8].iter().find(|(name, _)| *name == unit)?.1;
        total += scaled(number, factor)?;
        rest = after;
    }
    i64::try_from(total * sign).ok()
}

fn scaled(number: &str, factor: i64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse::<f64>().ok()? };
    Some(whole * i128::from(factor) + (part * factor as f64) as i128)
}

/// The format `duration` of schemas: Go's, and days and weeks in words (`strfmt.ParseDuration`).
pub fn parse_duration(text: &str) -> Option<i64> {
    go_duration(text).or_else(|| {
        let (number, unit) = text.trim().split_once(|it: char| !it.is_ascii_digit()).map(|(number, _)| (number, text.trim()[number.len()..].trim()))?;
        let name = UNITS.iter().find(|(name, _)| unit == *name || matches!((*name, unit), ("d", "day" | "days") | ("w", "week" | "weeks") | ("h", "hour" | "hours" | "hr" | "hrs")))?;
        number.parse::<i64>().ok()?.checked_mul(name.1)
    })
}

pub fn duration_text(nanos: i64) -> String {
    format!("{}s", nanos as f64 / SECOND as f64)
}

pub fn timestamp_text(time: Timestamp) -> String {
    time.to_string()
}
