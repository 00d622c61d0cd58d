//! RBAC's bindings. Source: `pkg/apis/rbac/validation/validation.go`.

use super::{Strategy, check::fill};
use crate::meta::{Meta, Value, names};

pub const BINDING: Strategy = Strategy { default, name: names::path_segment, ..Strategy::PLAIN };

const GROUP: &str = "rbac.authorization.k8s.io";

fn default(binding: &mut Value) {
    for subject in super::check::each(binding, &["subjects"]) {
        if matches!(subject.text("kind"), "User" | "Group") {
            fill(subject, "apiGroup", GROUP);
        }
    }
}
