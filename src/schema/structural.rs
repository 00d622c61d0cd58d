//! From the `openAPIV3Schema` of a CRD to a [`Schema`], and what makes it structural.

use super::{Schema, SchemaRef};
use crate::meta::{FieldErrors, Path, Value};

/// The value checks of OpenAPI v3 at one node, as the CRD wrote them; `validate.rs` interprets them.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub source: Value,
}

/// The schema of a custom resource's version: `apiVersion`, `kind` and `metadata` are added as built-in. With no schema, everything is preserved.
pub fn from_crd(open_api_v3_schema: Option<&Value>, preserves_unknown: bool) -> SchemaRef {
    let _ = (open_api_v3_schema, preserves_unknown, Schema::default());
    todo!()
}

/// Why a schema is not structural; empty where it is.
pub fn problems(open_api_v3_schema: &Value, path: &Path) -> FieldErrors {
    let _ = (open_api_v3_schema, path);
    todo!()
}
