//! Nodes. Source: `pkg/registry/core/node/strategy.go`.

use super::Strategy;
use crate::meta::{Meta, Value};

/// A node registers itself with its status, so that a create keeps it.
pub const NODE: Strategy = Strategy { resets_status: false, prepare, ..Strategy::PLAIN };

pub fn unschedulable(node: &Value) -> String {
    (node.at(&["spec", "unschedulable"]) == Some(&Value::Bool(true))).to_string()
}

fn prepare(node: &mut Value, change: super::Change<'_>) {
    match change {
        super::Change::Update(old) => node["status"] = old["status"].clone(),
        super::Change::Part("status", old) => node["spec"] = old["spec"].clone(),
        _ => (),
    }
}
