//! Strategic merge patch over plain JSON (apimachinery `pkg/util/strategicpatch`), and JSON merge patch (RFC 7386).

use super::Schema;
use crate::meta::{Result, Value};

/// Applies a strategic merge patch. 400 for a patch that no object could take, with upstream's text.
pub fn strategic(document: &mut Value, patch: Value, schema: &Schema) -> Result<()> {
    let _ = (document, patch, schema);
    todo!()
}

/// Applies a JSON merge patch.
pub fn json_merge(document: &mut Value, patch: Value) {
    let _ = (document, patch);
    todo!()
}
