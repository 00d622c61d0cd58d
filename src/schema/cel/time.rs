//! Durations and timestamps. Follows cel-go `common/types/{duration,timestamp}.go` and Go's `time` where they lean on it.

use jiff::{
    Timestamp,
    tz::{Offset, TimeZone},
};

use super::value::{Eval, Val, fail, no_overload, or_fail};
use crate::meta::duration;

const SECOND: i64 = 1_000_000_000;
/// The first and the last second of a timestamp: years 1 to 9999.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Eval<Val<'a>> {
    Ok(match (function, args) {
        ("duration", [Val::Duration(it)]) => Val::Duration(*it),
        ("duration", [Val::Int(_)]) => return fail("type conversion error from 'int' to 'google.protobuf.Duration'"),
        ("duration", [Val::String(it)]) => Val::Duration(or_fail(duration::parse(it), format!("time: invalid duration {it:?}"))?),
        ("timestamp", [Val::Timestamp(it)]) => Val::Timestamp(*it),
        ("timestamp", [Val::Int(it)]) => {
            let time = Timestamp::from_second(*it).ok().filter(|_| SECONDS.contains(it));
            Val::Timestamp(or_fail(time, "range error converting int to google.protobuf.Timestamp")?)
        }
        ("timestamp", [Val::String(it)]) => {
            let time = it.parse().ok().filter(|_| it.contains(['T', 't']));
            Val::Timestamp(or_fail(time, format!("parsing time {it:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {it:?} as \"2006\""))?)
        }
        ("getHours", [Val::Duration(it)]) => Val::Int(it / (3600 * SECOND)),
        ("getMinutes", [Val::Duration(it)]) => Val::Int(it / (60 * SECOND)),
        ("getSeconds", [Val::Duration(it)]) => Val::Int(it / SECOND),
        ("getMilliseconds", [Val::Duration(it)]) => Val::Int(it / 1_000_000),
        (_, [Val::Timestamp(time)]) => Val::Int(calendar(function, *time, TimeZone::UTC)?),
        (_, [Val::Timestamp(time), Val::String(name)]) => Val::Int(calendar(function, *time, zone(name)?)?),
        _ => return no_overload(),
    })
}

fn calendar(function: &str, time: Timestamp, zone: TimeZone) -> Eval<i64> {
    let it = time.to_zoned(zone);
    Ok(match function {
        "getFullYear" => it.year().into(),
        "getMonth" => i64::from(it.month()) - 1,
        "getDate" => it.day().into(),
        "getDayOfMonth" => i64::from(it.day()) - 1,
        "getDayOfWeek" => it.weekday().to_sunday_zero_offset().into(),
        "getDayOfYear" => i64::from(it.day_of_year()) - 1,
        "getHours" => it.hour().into(),
        "getMinutes" => it.minute().into(),
        "getSeconds" => it.second().into(),
        "getMilliseconds" => it.millisecond().into(),
        _ => return no_overload(),
    })
}

/// `America/New_York`, or `-08:00`
fn zone(name: &str) -> Eval<TimeZone> {
    let zone = match name.split_once(':') {
        Some((hours, minutes)) => {
            let number = |text: &str| text.parse::<i32>().ok().filter(|it| it.abs() < 60);
            let sign = if hours.starts_with('-') { -1 } else { 1 };
            let seconds = number(hours).zip(number(minutes)).map(|(hours, minutes)| hours * 3600 + sign * minutes * 60);
            seconds.and_then(|it| Offset::from_seconds(it).ok()).map(TimeZone::fixed)
        }
        None => TimeZone::get(name).ok(),
    };
    or_fail(zone, format!("unknown time zone {name}"))
}

pub fn add<'a>(left: &Val<'a>, right: &Val<'a>) -> Eval<Val<'a>> {
    match (left, right) {
        (Val::Duration(a), Val::Duration(b)) => span(a.checked_add(*b)).map(Val::Duration),
        (Val::Timestamp(time), Val::Duration(by)) | (Val::Duration(by), Val::Timestamp(time)) => moved(*time, *by),
        _ => no_overload(),
    }
}

pub fn subtract<'a>(left: &Val<'a>, right: &Val<'a>) -> Eval<Val<'a>> {
    match (left, right) {
        (Val::Duration(a), Val::Duration(b)) => span(a.checked_sub(*b)).map(Val::Duration),
        (Val::Timestamp(time), Val::Duration(by)) => moved(*time, span(by.checked_neg())?),
        (Val::Timestamp(a), Val::Timestamp(b)) => span(i64::try_from(a.as_nanosecond() - b.as_nanosecond()).ok()).map(Val::Duration),
        _ => no_overload(),
    }
}

fn span(nanos: Option<i64>) -> Eval<i64> {
    or_fail(nanos, "duration overflow")
}

fn moved<'a>(time: Timestamp, by: i64) -> Eval<Val<'a>> {
    let moved = Timestamp::from_nanosecond(time.as_nanosecond() + i128::from(by)).ok().filter(|it| SECONDS.contains(&it.as_second()));
    or_fail(moved, "timestamp overflow").map(Val::Timestamp)
}

/// The format `duration` of schemas: Go's, and days and weeks in words (`strfmt.ParseDuration`).
pub fn parse_duration(text: &str) -> Option<i64> {
    duration::parse(text).or_else(|| {
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|it: char| !it.is_ascii_digit())?);
        let nanos = match unit.trim() {
            "hour" | "hours" | "hr" | "hrs" => 3600 * SECOND,
            "d" | "day" | "days" => 86_400 * SECOND,
            "w" | "week" | "weeks" => 604_800 * SECOND,
            unit => duration::unit(unit)?,
        };
        number.parse::<i64>().ok()?.checked_mul(nanos)
    })
}

pub fn duration_text(nanos: i64) -> String {
    format!("{}s", nanos as f64 / SECOND as f64)
}
