//! The options of a request, read from its query: what every verb understands.
//! Source: apimachinery `pkg/apis/meta/v1/types.go` and `pkg/apis/meta/internalversion/validation`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    selector::{FieldSelector, LabelSelector},
    status::{Result, Status},
};

/// `metav1.ListOptions`, for list, watch and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub resource_version: String,
    pub resource_version_match: String,
    pub limit: Option<u64>,
    pub continues: String,
    pub timeout_seconds: Option<u64>,
    pub is_watch: bool,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

/// What POST, PUT, PATCH and apply share.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub is_dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Apply only: take over fields that others own.
    pub is_forced: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// `metav1.DeleteOptions`: from the query, or the body, which goes first.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub is_dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// The decoded pairs of a query string.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|it| !it.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key), percent_decode(value))
        });
        Self(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(it, _)| it == key).map(|(_, value)| value.as_str())
    }

    pub fn text(&self, key: &str) -> String {
        self.get(key).unwrap_or_default().to_owned()
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(it, _)| it == key).map(|(_, value)| value.as_str())
    }

    /// A boolean as apimachinery's query conversion reads it: present and empty, "true" or "1" is true, anything else false.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A duration in Go's notation; the error is the text of Go's.
    pub fn duration(&self, key: &str) -> std::result::Result<Option<Duration>, String> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => parse_duration(text).map(Some).ok_or_else(|| format!("time: invalid duration {text:?}")),
        }
    }

    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }
}

/// Go's `time.ParseDuration`, without signs: `1m30s`, `1.5h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    loop {
        let number_end = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let (number, unit) = rest.split_at(number_end);
        let unit_end = unit.find(|it: char| it.is_ascii_digit() || it == '.').unwrap_or(unit.len());
        seconds += number.parse::<f64>().ok()? * UNITS.iter().find(|(it, _)| *it == &unit[..unit_end])?.1;
        rest = &unit[unit_end..];
        if rest.is_empty() {
            return Duration::try_from_secs_f64(seconds).ok();
        }
    }
}

/// Decodes `%xx` and `+`; what is no valid escape stays as it is.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut res = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten().and_then(|it| u8::from_str_radix(it, 16).ok());
        match (escaped, bytes[at]) {
            (Some(byte), _) => {
                res.push(byte);
                at += 2;
            }
            (None, b'+') => res.push(b' '),
            (None, byte) => res.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&res).into_owned()
}

impl ListOptions {
    pub fn from_query(query: &Query) -> Result<Self> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(|why| Status::bad_request(format!("unable to parse requirement: {why}")))?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        Ok(Self {
            labels,
            fields,
            resource_version: query.text("resourceVersion"),
            resource_version_match: query.text("resourceVersionMatch"),
            limit: query.number::<i64>("limit")?.and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0),
            continues: query.text("continue"),
            timeout_seconds: query.number::<i64>("timeoutSeconds")?.and_then(|it| u64::try_from(it).ok()),
            is_watch: query.flag("watch").unwrap_or(false),
            allow_watch_bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            send_initial_events: query.flag("sendInitialEvents"),
        })
    }
}

impl WriteOptions {
    pub fn from_query(query: &Query) -> Result<Self> {
        Ok(Self {
            is_dry_run: dry_run(query.all("dryRun"))?,
            field_manager: query.text("fieldManager"),
            field_validation: match query.get("fieldValidation").unwrap_or_default() {
                "" | "Warn" => FieldValidation::Warn,
                "Ignore" => FieldValidation::Ignore,
                "Strict" => FieldValidation::Strict,
                other => {
                    let message = format!("fieldValidation: Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"");
                    return Err(Status::new(422, "Invalid", format!("invalid options: {message}")));
                }
            },
            is_forced: query.flag("force"),
        })
    }
}

impl WriteOptions {
    /// The options as admission sees them: a `CreateOptions` or `UpdateOptions`.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut options = typed(kind, self.is_dry_run);
        if !self.field_manager.is_empty() {
            options["fieldManager"] = self.field_manager.as_str().into();
        }
        match self.field_validation {
            FieldValidation::Ignore => options["fieldValidation"] = "Ignore".into(),
            FieldValidation::Strict => options["fieldValidation"] = "Strict".into(),
            FieldValidation::Warn => (),
        }
        options
    }
}

impl DeleteOptions {
    /// The options as admission sees them.
    pub fn to_value(&self) -> Value {
        let mut options = typed("DeleteOptions", self.is_dry_run);
        if let Some(seconds) = self.grace_period_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        for (field, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                options["preconditions"][field] = value.as_str().into();
            }
        }
        if let Some(propagation) = self.propagation {
            options["propagationPolicy"] = format!("{propagation:?}").into();
        }
        options
    }
}

fn typed(kind: &str, is_dry_run: bool) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if is_dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}

/// Whether any of the values is `All`; anything else is refused.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool> {
    let mut is_dry_run = false;
    for value in values.filter(|it| !it.is_empty()) {
        if value != "All" {
            let message = format!("dryRun: Unsupported value: {value:?}: supported values: \"All\"");
            return Err(Status::new(422, "Invalid", format!("invalid options: {message}")));
        }
        is_dry_run = true;
    }
    Ok(is_dry_run)
}

impl Propagation {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Orphan" => Some(Self::Orphan),
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=1&timeoutSeconds=30&x=a+b&dryRun=All&bad=%zz");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("x"), Some("a b"));
        assert_eq!(query.get("bad"), Some("%zz"));
        let options = ListOptions::from_query(&query).expect("valid options");
        assert!(options.is_watch);
        assert_eq!(options.timeout_seconds, Some(30));
        assert!(WriteOptions::from_query(&query).expect("valid options").is_dry_run);
    }

    #[test]
    fn durations_are_gos() {
        let cases = [("0", Some(0)), ("10s", Some(10_000)), ("1m30s", Some(90_000)), ("1.5h", Some(5_400_000)), ("5ms", Some(5)), ("", None), ("5", None), ("s", None), ("-1s", None)];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text).map(|it| it.as_millis()), millis, "{text}");
        }
    }
}
