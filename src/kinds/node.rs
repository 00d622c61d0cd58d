//! Nodes. Source: `pkg/registry/core/node/strategy.go`.

use super::{Change, Strategy};
use crate::meta::Value;

/// A node registers itself with its status, so that a create keeps it.
pub const NODE: Strategy = Strategy { prepare, ..Strategy::PLAIN };

fn prepare(node: &mut Value, change: Change<'_>) {
    match change {
        Change::Update(old) => node["status"] = old["status"].clone(),
        Change::Part("status", old) => node["spec"] = old["spec"].clone(),
        _ => (),
    }
}
