//! Fills in the defaults that the schema declares, wherever an object on the way exists.

use super::Schema;
use crate::meta::Value;

pub fn default(value: &mut Value, schema: &Schema) {
    let _ = (value, schema);
    todo!()
}
