//! Nodes. Source: `pkg/registry/core/node/strategy.go`.

use super::{
    Strategy,
    check::{fill_at, same_first},
};
use crate::meta::{Meta, Value};

/// A node registers itself with its status, so that a create keeps it.
pub const NODE: Strategy = Strategy { default, prepare, ..Strategy::PLAIN };

fn default(node: &mut Value) {
    if let Some(capacity) = node.at(&["status", "capacity"]).cloned() {
        fill_at(node, &["status", "allocatable"], capacity);
    }
    same_first(&mut node["spec"], "podCIDR", "podCIDRs", "");
}

fn prepare(node: &mut Value, change: super::Change<'_>) {
    match change {
        super::Change::Update(old) => node["status"] = old["status"].clone(),
        super::Change::Part("status", old) => node["spec"] = old["spec"].clone(),
        _ => (),
    }
}
