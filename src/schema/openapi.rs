//! OpenAPI documents from schemas: v3 per group and version, v2 for the whole server.

use crate::meta::Value;

use super::Schema;

/// The definitions of a document (`components.schemas` or `definitions`): `schema` and all that it refers to, put into `into`.
/// `reference` is the prefix of a `$ref` (`#/components/schemas/`).
pub fn define(schema: &Schema, name: &str, reference: &str, into: &mut serde_json::Map<String, Value>) {
    let _ = (schema, name, reference, into);
    todo!()
}
