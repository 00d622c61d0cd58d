//! Secrets and what names them. Source: `pkg/apis/core/validation/validation.go`.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{Strategy, check::each};
use crate::meta::{Meta, Value};

pub const SECRET: Strategy = Strategy { default: default_secret, ..Strategy::PLAIN };

/// What is told of a secret is its name (`cleanSecretReferences`).
pub const SERVICE_ACCOUNT: Strategy = Strategy {
    prepare: |account, _| each(account, &["secrets"]).for_each(|it| it.as_object_mut().into_iter().for_each(|it| it.retain(|field, _| field == "name"))),
    ..Strategy::PLAIN
};

/// `stringData` is written into `data` and never kept.
fn default_secret(secret: &mut Value) {
    let Some(Value::Object(texts)) = secret.remove_at(&["stringData"]) else { return };
    for (key, text) in texts {
        secret.set_at(&["data", &key], BASE64.encode(text.as_str().unwrap_or_default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Change;
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
        let told = |object: serde_json::Value, change: Change<'_>| crate::kinds::rules::told("ConfigMap", &object, change);
        assert_eq!(told(json!({"immutable": true, "data": {"a": "2"}}), Change::Update(&old)), ["data: Forbidden: field is immutable when `immutable` is set"]);
        assert_eq!(told(json!({"data": {"a/b": "2"}}), Change::Create).len(), 1);
    }
}
