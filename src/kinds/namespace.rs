//! Namespaces. Source: `pkg/registry/core/namespace/strategy.go`.

use serde_json::json;

use super::{Change, Strategy};
use crate::meta::{Meta, Value};

pub const NAMESPACE: Strategy = Strategy { default, prepare, is_emptied: true, ..Strategy::PLAIN };

const FINALIZER: &str = "kubernetes";
/// Lets selectors choose a namespace by name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn default(namespace: &mut Value) {
    let name = namespace.name().to_owned();
    if !name.is_empty() {
        namespace.set_at(&["metadata", "labels", NAME_LABEL], name);
    }
    super::check::fill_at(namespace, &["status", "phase"], "Active");
}

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
