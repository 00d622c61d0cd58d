//! Field paths and field errors, as apimachinery `pkg/util/validation/field` prints them.

use std::{borrow::Cow, fmt};

use serde_json::Value;

use super::status::Cause;

/// `spec.containers[0].ports[name]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// The path of the object itself; printed as `<nil>` by upstream.
    pub fn root() -> Self {
        Self::default()
    }

    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub fn index(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }

    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    /// The path without its last field.
    pub fn parent(&self) -> Self {
        Self(self.0.rsplit_once('.').map_or_else(String::new, |it| it.0.to_owned()))
    }

    /// The path without its last field, index or key.
    pub fn up(&self) -> Self {
        let end = if self.0.ends_with(']') { self.0.rfind('[') } else { self.0.rfind('.') };
        Self(self.0[..end.unwrap_or(0)].to_owned())
    }

    /// This path and the text of a path below it.
    pub fn with(&self, below: &str) -> Self {
        if below.is_empty() || below.starts_with('[') { Self(format!("{}{below}", self.0)) } else { self.child(below) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

pub type FieldErrors = Vec<FieldError>;

/// One thing wrong with one field. Build it with the constructors, which carry upstream's wording.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub field: Path,
    pub reason: FieldReason,
    /// What was found, printed as Go would; absent where upstream prints none.
    pub value: Option<Value>,
    pub detail: Cow<'static, str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldReason {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl FieldReason {
    /// `metav1.CauseType`.
    pub fn cause(self) -> String {
        format!("FieldValue{self:?}")
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

impl FieldError {
    fn new(field: &Path, reason: FieldReason, value: Option<Value>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.clone(), reason, value, detail: detail.into() }
    }

    pub fn required(field: &Path, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(field, FieldReason::Required, None, detail)
    }

    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(field, FieldReason::Invalid, Some(value.into()), detail)
    }

    /// The same, of a value that is too large to be told (`OmitValueType`).
    pub fn untold(self) -> Self {
        Self { value: None, ..self }
    }

    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(field, FieldReason::TypeInvalid, Some(value.into()), detail)
    }

    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(field, FieldReason::Duplicate, Some(value.into()), "")
    }

    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(field, FieldReason::NotFound, Some(value.into()), "")
    }

    pub fn forbidden(field: &Path, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(field, FieldReason::Forbidden, None, detail)
    }

    /// `Unsupported value: "x": supported values: "a", "b"`, the values in the order given (sort them as upstream does).
    pub fn not_supported<S: AsRef<str>>(field: &Path, value: impl Into<Value>, supported: &[S]) -> Self {
        let list: Vec<String> = supported.iter().map(|it| format!("{:?}", it.as_ref())).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(field, FieldReason::NotSupported, Some(value.into()), detail)
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: &Path, most: usize) -> Self {
        Self::new(field, FieldReason::TooLong, None, format!("may not be more than {most} bytes"))
    }

    pub fn too_many(field: &Path, actual: usize, most: usize) -> Self {
        Self::new(field, FieldReason::TooMany, Some(actual.into()), format!("must have at most {most} items"))
    }

    /// The text after the field's path (`ErrorBody`).
    pub fn body(&self) -> String {
        let value = self.value.as_ref().map(|it| format!(": {}", go_value(it))).unwrap_or_default();
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        format!("{}{value}{detail}", self.reason.text())
    }

    pub fn to_cause(&self) -> Cause {
        Cause { reason: self.reason.cause().into(), message: self.body(), field: self.field.to_string() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A value as `field.Error` prints it: strings quoted, numbers bare, composite values as JSON, nothing as `null`.
fn go_value(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstreams() {
        let path = Path::new("spec").child("ports").index(0).child("name");
        let cases = [
            (FieldError::required(&path, ""), "spec.ports[0].name: Required value"),
            (FieldError::invalid(&path, "A", "must be lower case"), "spec.ports[0].name: Invalid value: \"A\": must be lower case"),
            (FieldError::invalid(&path, -1, "must be positive"), "spec.ports[0].name: Invalid value: -1: must be positive"),
            (FieldError::not_supported(&path, "x", &["a", "b"]), "spec.ports[0].name: Unsupported value: \"x\": supported values: \"a\", \"b\""),
            (FieldError::duplicate(&path, "x"), "spec.ports[0].name: Duplicate value: \"x\""),
            (FieldError::forbidden(&path, "no"), "spec.ports[0].name: Forbidden: no"),
            (FieldError::too_many(&path, 5, 3), "spec.ports[0].name: Too many: 5: must have at most 3 items"),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
