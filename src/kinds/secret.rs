//! ConfigMaps and Secrets. Source: `pkg/apis/core/validation/validation.go`.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{
    Change, Strategy,
    check::{all, each},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, names};

pub const CONFIG_MAP: Strategy = Strategy { validate: validate_config_map, ..Strategy::PLAIN };
pub const SECRET: Strategy = Strategy { default: default_secret, validate: validate_secret, ..Strategy::PLAIN };

/// What is told of a secret is its name (`cleanSecretReferences`).
pub const SERVICE_ACCOUNT: Strategy = Strategy {
    prepare: |account, _| each(account, &["secrets"]).for_each(|it| it.as_object_mut().into_iter().for_each(|it| it.retain(|field, _| field == "name"))),
    ..Strategy::PLAIN
};

/// `MaxSecretSize`, for ConfigMaps too.
const SIZE_MAX: usize = 1 << 20;

/// `stringData` is written into `data` and never kept.
fn default_secret(secret: &mut Value) {
    let Some(Value::Object(texts)) = secret.remove_at(&["stringData"]) else { return };
    for (key, text) in texts {
        secret.set_at(&["data", &key], BASE64.encode(text.as_str().unwrap_or_default()));
    }
}

fn validate_config_map(object: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for (key, _) in object.map_at(&["data"]).into_iter().flatten() {
        all(names::config_map_key(key), key, &Path::new("data").key(key), &mut errors);
        if object.at(&["binaryData", key]).is_some() {
            errors.push(FieldError::invalid(&Path::new("data").key(key), key.as_str(), "duplicate of key present in binaryData"));
        }
    }
    for (key, _) in object.map_at(&["binaryData"]).into_iter().flatten() {
        all(names::config_map_key(key), key, &Path::new("binaryData").key(key), &mut errors);
    }
    check_size(object, &mut errors);
    check_immutable(object, change, &mut errors);
    errors
}

fn validate_secret(object: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for (key, _) in object.map_at(&["data"]).into_iter().flatten() {
        all(names::config_map_key(key), key, &Path::new("data").key(key), &mut errors);
    }
    check_size(object, &mut errors);
    let needed: &[&str] = match object.text("type") {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|it| object.at(&["data", it]).is_none()) {
        errors.push(FieldError::required(&Path::new("data").key(key), ""));
    }
    if let Some(old) = change.old() {
        super::check::immutable(object, old, &["type"], &mut errors);
    }
    check_immutable(object, change, &mut errors);
    errors
}

fn check_size(object: &Value, errors: &mut FieldErrors) {
    let text = |field: &str| object.map_at(&[field]).into_iter().flatten().filter_map(|(_, value)| value.as_str()).map(str::len).sum::<usize>();
    let size = if object.text("type").is_empty() { text("data") + text("binaryData") * 3 / 4 } else { text("data") * 3 / 4 };
    if size > SIZE_MAX {
        errors.push(FieldError::too_long(&Path::new("data"), SIZE_MAX));
    }
}

fn check_immutable(object: &Value, change: Change<'_>, errors: &mut FieldErrors) {
    let Some(old) = change.old().filter(|it| it.get("immutable") == Some(&Value::Bool(true))) else { return };
    let detail = "field is immutable when `immutable` is set";
    for field in ["immutable", "data", "binaryData"] {
        if object.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(&Path::new(field), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        (SECRET.default)(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eQ==", "b": "eg=="}}));
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let errors = validate_config_map(&json!({"immutable": true, "data": {"a": "2"}}), Change::Update(&old));
        assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), ["data: Forbidden: field is immutable when `immutable` is set"]);
        let errors = validate_config_map(&json!({"data": {"a/b": "2"}}), Change::Create);
        assert_eq!(errors.len(), 1);
    }
}
