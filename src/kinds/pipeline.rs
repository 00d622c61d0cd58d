//! The pure steps of a write that every kind takes, in the order in which the API floor calls them: confine, default, prepare
//! (a strategy's own), count, check. Source: apiserver `pkg/registry/rest/{create,update}.go`.

use super::{Action, Change, Kind, Subresource, Version, metadata, rules};
use crate::{
    meta::{FieldErrors, Meta, Value},
    schema,
};

impl Kind {
    /// Only what a request may write: everything but the status, or the status alone.
    pub fn confine(&self, subresource: Option<&Subresource>, old: &Value, new: Value) -> Value {
        match subresource.map(|it| &it.action) {
            Some(Action::Status) if self.custom.is_some() => {
                let managed = new.at(&["metadata", "managedFields"]).cloned();
                let mut confined = take(old.clone(), &new, "status");
                managed.into_iter().for_each(|it| confined.set_metadata("managedFields", it));
                confined
            }
            Some(Action::Status) => take(take(old.clone(), &new, "status"), &new, "metadata"),
            None if self.strategy.resets_status => take(new, old, "status"),
            _ => new,
        }
    }

    /// What a new object may not bring: what the server writes itself, and a status where that is written apart.
    pub fn start(&self, version: &Version, object: &mut Value) {
        SERVER_OWNED.iter().for_each(|it| object.remove_metadata(it));
        if self.strategy.has_generation {
            object.set_metadata("generation", 1);
        }
        if !self.is_namespaced() {
            object.remove_metadata("namespace");
        }
        if self.strategy.resets_status && object.remove_at(&["status"]).is_some() {
            let empty = version.schema.field("status").and_then(|it| schema::codec::decode_value(serde_json::json!({}), &it.schema).ok());
            empty.filter(|_| self.custom.is_none()).into_iter().for_each(|it| object["status"] = it.0);
        }
    }

    /// Metadata that an update leaves as it is, whatever it says; what it may not even say otherwise is refused later (`BeforeUpdate`).
    pub fn keep(&self, old: &Value, new: &mut Value) {
        let is_once = |field: &str| matches!(field, "uid" | "deletionGracePeriodSeconds") || field == "deletionTimestamp" && old.deletion_timestamp().is_none();
        for field in SERVER_OWNED.into_iter().chain(["name", "namespace", "resourceVersion"]) {
            if is_once(field) && new.at(&["metadata", field]).is_some_and(|it| !it.is_null() && *it != "") {
                continue;
            }
            match old.at(&["metadata", field]) {
                Some(value) => new.set_metadata(field, value.clone()),
                None => new.remove_metadata(field),
            }
        }
    }

    /// Fills in defaults: those that the schema declares, then the kind's own.
    pub fn fill(&self, version: &Version, object: &mut Value) {
        schema::default::default(object, &version.schema);
        if self.custom.is_none() {
            rules::fill(object, &version.schema);
        }
        (self.strategy.default)(object);
    }

    /// Drops what a client may not set and normalises (`PrepareForCreate`, `PrepareForUpdate`).
    pub fn prepare(&self, version: &Version, object: &mut Value, change: Change<'_>) {
        if self.custom.is_none() {
            rules::drop_gated(object, change.old(), &version.schema);
        }
        (self.strategy.prepare)(object, change);
    }

    /// Counts a change in `metadata.generation`, where the kind counts.
    pub fn count(&self, subresource: Option<&Subresource>, old: &Value, new: &mut Value) {
        let is_bound = subresource.is_some_and(|it| it.action == Action::Binding);
        if self.strategy.has_generation && !is_bound && differs_beyond_status(old, new) {
            new.set_metadata("generation", old.generation() + 1);
        }
    }

    /// Whether finalizers hold an object that is to go.
    pub fn is_held(&self, object: &Value) -> bool {
        object.finalizers().next().is_some() || self.strategy.is_emptied && !object.items_at(&["spec", "finalizers"]).is_empty()
    }

    /// All validations, in upstream's order: metadata, the schema of custom resources, the kind's own.
    /// With the errors come warnings.
    pub fn check(&self, version: &Version, new: &Value, step: Change<'_>) -> (FieldErrors, Vec<String>) {
        let mut errors = metadata::validate(new, self);
        let mut warnings = Vec::new();
        if let Some(old) = step.old() {
            errors.extend(metadata::validate_update(new, old));
        }
        if self.custom.is_some() {
            let (wrong, not_good) = schema::validate::custom(new, step.old(), &version.schema);
            errors.extend(wrong);
            warnings = not_good;
        }
        errors.extend(rules::check(new, &version.schema, step, !self.strategy.resets_status));
        errors.extend((self.strategy.validate)(new, step));
        (errors, warnings)
    }
}

/// Metadata that only the server writes.
pub const SERVER_OWNED: [&str; 6] = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"];

/// `base` with one field as it is in `from`.
fn take(mut base: Value, from: &Value, field: &str) -> Value {
    match from.get(field) {
        Some(value) => base[field] = value.clone(),
        None => _ = base.remove_at(&[field]),
    }
    base
}

/// Whether anything but metadata and status changed.
fn differs_beyond_status(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| -> Vec<(String, Value)> {
        let fields = object.as_object().into_iter().flatten();
        fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind")).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    rest(old) != rest(new)
}
