//! RBAC's bindings. Source: `pkg/apis/rbac/validation/validation.go`.

use super::{Strategy, check::fill};
use crate::meta::{Meta, Value};

pub const BINDING: Strategy = Strategy { default, ..Strategy::PLAIN };

const GROUP: &str = "rbac.authorization.k8s.io";

fn default(binding: &mut Value) {
    for subject in super::check::each(binding, &["subjects"]) {
        if matches!(subject.text("kind"), "User" | "Group") {
            fill(subject, "apiGroup", GROUP);
        }
    }
}
