//! Schedules of CronJobs: five fields, a name such as `@daily`, or `@every 1h30m`. Source: robfig/cron v3 `ParseStandard`.

use std::{sync::LazyLock, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use regex::Regex;
use jiff::{SignedDuration, Timestamp, ToSpan, tz::TimeZone};

const NAMED: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// What a field is made of for robfig: the library reads other letters too, as in `5#2` and `15W`.
static FIELD: LazyLock<Regex> = LazyLock::new(|| {
    let names = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC|SUN|MON|TUE|WED|THU|FRI|SAT";
    Regex::new(&format!("(?i)^(?:[^#+LW]|{names})*$")).expect("a constant pattern")
});
/// A schedule that has no time within so many years has none.
const HORIZON_YEARS: i64 = 5;

/// When something happens again and again, in a time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    when: When,
    zone: TimeZone,
}

#[derive(Debug, Clone)]
enum When {
    Cron(Box<Cron>),
    Every(SignedDuration),
}

impl Schedule {
    /// `zone` is a name of the IANA database; without one it is UTC, as the controller's zone is nobody's business.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}"))?,
        };
        Ok(Self { when: when(text)?, zone })
    }

    /// The first time after `after`; none if there will be no such time.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Every(delay) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*delay).ok(),
            When::Cron(cron) => {
                let from = after.to_zoned(self.zone.clone());
                let next = cron.find_next_occurrence(&from, false).ok()?;
                let horizon = from.checked_add(HORIZON_YEARS.years()).ok()?;
                (next <= horizon).then(|| next.timestamp())
            }
        }
    }

    /// A time as the schedule's zone writes it (RFC 3339).
    pub fn shown(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.zone.clone());
        if zoned.offset().is_zero() { zoned.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() } else { zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string() }
    }
}

fn when(text: &str) -> Result<When, String> {
    if let Some(delay) = text.strip_prefix("@every ") {
        let nanos = super::duration::parse(delay).ok_or_else(|| format!("failed to parse duration {text}: time: invalid duration {delay:?}"))?;
        return Ok(When::Every(SignedDuration::from_secs(SignedDuration::from_nanos(nanos).as_secs().max(1))));
    }
    let fields = match NAMED.iter().find(|it| it.0 == text) {
        Some((_, fields)) => fields,
        None if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
        None => text,
    };
    let parts: Vec<&str> = fields.split_whitespace().collect();
    if parts.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    }
    if let Some(part) = parts.iter().find(|it| !FIELD.is_match(it)) {
        return Err(format!("failed to parse int from {part}: strconv.Atoi: parsing {part:?}: invalid syntax"));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(fields).map(|it| When::Cron(Box::new(it))).map_err(|error| error.to_string())
}

/// From now to a time to come; nothing once it is past.
pub fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_say_when_they_are_next() {
        let cases = [
            ("*/15 * * * *", None, "2026-01-01T00:07:30Z", "2026-01-01T00:15:00Z"),
            ("@hourly", None, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@weekly", None, "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@every 1h30m", None, "2026-01-01T00:00:10.5Z", "2026-01-01T01:30:10Z"),
            // A day of the month or of the week, when both are given.
            ("0 0 13 * 5", None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 13 * *", None, "2026-01-01T00:00:00Z", "2026-01-13T00:00:00Z"),
            ("0 9 * JUL mon-FRI", None, "2026-01-01T00:00:00Z", "2026-07-01T09:00:00Z"),
            ("0 9 * * *", Some("America/New_York"), "2026-01-01T00:00:00Z", "2026-01-01T14:00:00Z"),
            ("0 0 29 2 ?", None, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ];
        for (text, zone, after, expected) in cases {
            let next = Schedule::parse(text, zone).unwrap().next(after.parse().unwrap());
            assert_eq!(next, Some(expected.parse().unwrap()), "{text}");
        }
        assert_eq!(Schedule::parse("59 23 31 2 *", None).unwrap().next(Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        for text in ["", "* * * *", "* * * * * *", "@never", "@every soon", "61 * * * *", "* * L * *", "* * 15W * *", "* * * * 5#2", "error"] {
            assert!(Schedule::parse(text, None).is_err(), "{text}");
        }
        assert_eq!(Schedule::parse("* * * * *", Some("Mars/Olympus")).unwrap_err(), "unknown time zone Mars/Olympus");
    }
}
