//! Namespaces. Source: `pkg/registry/core/namespace/strategy.go`.

use serde_json::json;

use super::{Change, Strategy};
use crate::meta::{Meta, Value};

pub const NAMESPACE: Strategy = Strategy { prepare, is_emptied: true, ..Strategy::PLAIN };

const FINALIZER: &str = "kubernetes";
fn prepare(namespace: &mut Value, change: Change<'_>) {
    match change {
        Change::Create => {
            namespace["status"] = json!({"phase": "Active"});
            let finalizers = namespace.items_at(&["spec", "finalizers"]);
            if !finalizers.iter().any(|it| it == FINALIZER) {
                let all: Vec<Value> = finalizers.iter().cloned().chain([FINALIZER.into()]).collect();
                namespace.set_at(&["spec", "finalizers"], all);
            }
        }
        Change::Update(old) => namespace["spec"] = old["spec"].clone(),
        Change::Part(..) => (),
    }
}
