//! JSON and YAML into a tree, strictly: what the schema does not know and what stands there twice is noted with its path,
//! and a value of the wrong type is refused as Go's decoder refuses it.

use super::Schema;
use crate::meta::{Result, Value};

/// What strict field validation wants to know, in upstream's words (`unknown field "spec.foo"`, `duplicate field "spec.bar"`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub unknown: Vec<String>,
    pub duplicate: Vec<String>,
}

/// Parses JSON text of any shape, within the limit of depth, without a schema. 400 where it is no JSON.
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>)> {
    let _ = bytes;
    todo!()
}

/// Decodes JSON as a value of `schema`. Unknown fields are noted and dropped (kept where the schema preserves them).
pub fn decode_json(bytes: &[u8], schema: &Schema) -> Result<(Value, Notes)> {
    let _ = (bytes, schema);
    todo!()
}

/// Decodes YAML (1.1 booleans as Go's sigs.k8s.io/yaml reads them) as a value of `schema`.
pub fn decode_yaml(bytes: &[u8], schema: &Schema) -> Result<(Value, Notes)> {
    let _ = (bytes, schema);
    todo!()
}

/// Checks and normalises a tree that was not decoded by the two above (the result of a patch) as they do.
pub fn decode_value(value: Value, schema: &Schema) -> Result<(Value, Notes)> {
    let _ = (value, schema);
    todo!()
}
