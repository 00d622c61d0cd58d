//! Server-side apply and managed fields (KEP-555; structured-merge-diff): who owns which field.
//!
//! `managedFields` of an object is decoded into [`Managers`], and every write of an object goes through [`update`] or [`apply`].

use super::Schema;
use crate::meta::{Result, Value};

/// Who writes, for the entry in `managedFields`.
#[derive(Clone, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// The version in which the manager speaks of the object.
    pub api_version: &'a str,
    /// "" or "status", "scale" …
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
}

/// Records in `new.metadata.managedFields` what a create or update by `manager` changed (operation `Update`).
/// `old` is the object as stored (null on create), both in the manager's version. `reset` are paths that this subresource may not
/// own (`status` on the main resource), written as `["status"]`.
pub fn update(old: &Value, new: &mut Value, schema: &Schema, manager: &Manager<'_>, reset: &[&[&str]]) {
    let _ = (old, new, schema, manager, reset);
    todo!()
}

/// Merges `applied` into `live` (null when the object does not exist), records the ownership, and returns the result.
/// 409 `Conflict` with a cause per field (`conflict with "x" using apps/v1: .spec.replicas`) unless `is_forced`.
pub fn apply(live: &Value, applied: &Value, schema: &Schema, manager: &Manager<'_>, is_forced: bool, reset: &[&[&str]]) -> Result<Value> {
    let _ = (live, applied, schema, manager, is_forced, reset);
    todo!()
}
