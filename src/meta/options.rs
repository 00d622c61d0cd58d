//! The options of a request, read from its query: what every verb understands.
//! Source: apimachinery `pkg/apis/meta/v1/types.go` and `pkg/apis/meta/internalversion/validation`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    FieldError, FieldErrors, Path, duration,
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
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
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
            Some(text) => duration::parse(text).and_then(|it| u64::try_from(it).ok()).map(|it| Some(Duration::from_nanos(it))).ok_or_else(|| format!("time: invalid duration {text:?}")),
        }
    }

    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                let is_number = text.strip_prefix('-').unwrap_or(text).bytes().all(|it| it.is_ascii_digit());
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {}", if is_number { "value out of range" } else { "invalid syntax" }))
            }),
        }
    }
}

/// A segment of a path with its `%xx` decoded; what is no valid escape stays as it is.
pub fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl ListOptions {
    pub fn from_query(query: &Query) -> Result<Self> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        Ok(Self {
            labels,
            fields,
            resource_version: query.text("resourceVersion"),
            resource_version_match: query.text("resourceVersionMatch"),
            limit: query.number::<i64>("limit")?.and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0),
            continues: query.text("continue"),
            timeout_seconds: query.number::<i64>("timeoutSeconds")?.and_then(|it| u64::try_from(it).ok()),
            allow_watch_bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            send_initial_events: query.flag("sendInitialEvents"),
        })
    }
}

/// The longest name of a field manager (`FieldManagerMaxLength`).
const MANAGER_MAX: usize = 128;

impl WriteOptions {
    /// `ValidateCreateOptions` and its kin; `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn from_query(query: &Query, kind: &'static str) -> Result<Self> {
        let mut errors = FieldErrors::new();
        let (field_manager, path) = (query.text("fieldManager"), Path::new("fieldManager"));
        if field_manager.len() > MANAGER_MAX {
            errors.push(FieldError::too_long(&path, MANAGER_MAX));
        }
        for (at, letter) in field_manager.char_indices().filter(|(_, it)| it.is_control()) {
            errors.push(FieldError::invalid(&path, field_manager.as_str(), format!("invalid character U+{:04X} (at position {at})", u32::from(letter))));
        }
        let is_dry_run = dry_run(query.all("dryRun"), &mut errors);
        let field_validation = match query.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(FieldError::not_supported(&Path::new("fieldValidation"), other, &["", "Ignore", "Strict", "Warn"]));
                FieldValidation::Strict
            }
        };
        if !errors.is_empty() {
            return Err(invalid(kind, errors));
        }
        Ok(Self { is_dry_run, field_manager, field_validation, is_forced: query.flag("force") })
    }

    /// The options as admission sees them: a `CreateOptions` or `UpdateOptions`.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut options = typed(kind, self.is_dry_run);
        if !self.field_manager.is_empty() {
            options["fieldManager"] = self.field_manager.as_str().into();
        }
        if self.field_validation != FieldValidation::Warn {
            options["fieldValidation"] = format!("{:?}", self.field_validation).into();
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

/// Whether `All` is given (`ValidateDryRun`); anything else is wrong.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut FieldErrors) -> bool {
    let given: Vec<&str> = values.filter(|it| !it.is_empty()).collect();
    if given.iter().any(|it| *it != "All") {
        errors.push(FieldError::not_supported(&Path::new("dryRun"), given.clone(), &["All"]));
    }
    !given.is_empty()
}

/// What `ListOptions` and the like are told of themselves (`errors.NewInvalid`).
pub fn invalid(kind: &'static str, errors: FieldErrors) -> Status {
    Status::invalid("meta.k8s.io", kind, "", errors)
}

impl Propagation {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Orphan, Self::Background, Self::Foreground].into_iter().find(|it| format!("{it:?}") == text)
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
        assert_eq!(options.timeout_seconds, Some(30));
        assert!(WriteOptions::from_query(&query, "CreateOptions").expect("valid options").is_dry_run);
    }
}
