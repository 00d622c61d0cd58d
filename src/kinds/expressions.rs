//! CEL expressions over admission requests: the variables that they see, and match conditions of webhooks and policies.
//! Source: apiserver `pkg/admission/plugin/cel/compile.go`, kubernetes `pkg/apis/admissionregistration/validation/validation.go`.

use crate::{
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
    schema::cel::{Decl, Environment, Program, Type},
};

const CONDITIONS_MAX: usize = 64;

/// `object`, `oldObject`, `request`, `namespaceObject` and the authorizer.
pub fn environment() -> Environment {
    let check = Decl::scalar(Type::Opaque("kubernetes.authorization.ResourceCheck"));
    let variables = Environment::default().with_dyn("object").with_dyn("oldObject");
    variables.with("namespaceObject", namespace()).with("request", request()).with_authorizer().with("authorizer.requestResource", check)
}

fn texts<const N: usize>(name: &str, fields: [&'static str; N]) -> Decl {
    Decl::object(name, fields.map(|it| (it, Decl::string())))
}

/// `BuildRequestType`.
fn request() -> Decl {
    let kind = || texts("kubernetes.GroupVersionKind", ["group", "version", "kind"]);
    let resource = || texts("kubernetes.GroupVersionResource", ["group", "version", "resource"]);
    let user = Decl::object(
        "kubernetes.UserInfo",
        [("username", Decl::string()), ("uid", Decl::string()), ("groups", Decl::list(Decl::string())), ("extra", Decl::map(Decl::list(Decl::string())))],
    );
    Decl::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", Decl::string()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", Decl::string()),
            ("name", Decl::string()),
            ("namespace", Decl::string()),
            ("operation", Decl::string()),
            ("userInfo", user),
            ("dryRun", Decl::scalar(Type::Bool)),
            ("options", Decl::scalar(Type::Dyn)),
        ],
    )
}

/// `BuildNamespaceType`.
fn namespace() -> Decl {
    let (time, number) = (|| Decl::scalar(Type::Timestamp), || Decl::scalar(Type::Int));
    let condition = Decl::object(
        "kubernetes.NamespaceCondition",
        [("status", Decl::string()), ("type", Decl::string()), ("lastTransitionTime", time()), ("message", Decl::string()), ("reason", Decl::string())],
    );
    let metadata = Decl::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", Decl::string()),
            ("generateName", Decl::string()),
            ("namespace", Decl::string()),
            ("labels", Decl::map(Decl::string())),
            ("annotations", Decl::map(Decl::string())),
            ("UID", Decl::string()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", number()),
            ("deletionTimestamp", time()),
            ("generation", number()),
            ("resourceVersion", Decl::string()),
            ("finalizers", Decl::list(Decl::string())),
        ],
    );
    let spec = Decl::object("kubernetes.NamespaceSpec", [("finalizers", Decl::list(Decl::string()))]);
    let status = Decl::object("kubernetes.NamespaceStatus", [("conditions", Decl::list(condition)), ("phase", Decl::string())]);
    Decl::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
}

/// A condition as a program; the error is upstream's.
pub fn condition(environment: &Environment, expression: &str) -> Result<Program, String> {
    let program = Program::compile(environment, expression).map_err(|why| why.to_string())?;
    match program.output() {
        Type::Bool => Ok(program),
        other => Err(format!("must evaluate to bool but got {other}")),
    }
}

/// `validateMatchConditions`.
pub fn match_conditions(conditions: &[Value], path: &Path, errors: &mut FieldErrors) {
    if conditions.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, conditions.len(), CONDITIONS_MAX));
    }
    let environment = environment();
    for (at, it) in conditions.iter().enumerate() {
        let (path, name, expression) = (path.index(at), it.text("name"), it.text("expression").trim());
        match expression {
            "" => errors.push(FieldError::required(&path.child("expression"), "")),
            text => errors.extend(condition(&environment, text).err().map(|why| FieldError::invalid(&path.child("expression"), text, why))),
        }
        match name {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            name => errors.extend(names::qualified_name(name).into_iter().map(|it| FieldError::invalid(&path.child("name"), name, it))),
        }
        if !name.is_empty() && conditions[..at].iter().any(|it| it.text("name") == name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_checked_against_what_they_see() {
        let check = |name: &str, expression: &str, expected: &[&str]| {
            let mut errors = FieldErrors::new();
            match_conditions(&[json!({"name": name, "expression": expression})], &Path::new("m"), &mut errors);
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(errors.len(), expected.len(), "{expression}: {errors:?}");
            errors.iter().zip(expected).for_each(|(error, start)| assert!(error.starts_with(start), "{error}"));
        };
        check("a", "object.metadata.name != 'skip-me' && request.userInfo.username != 'x'", &[]);
        check("a", "authorizer.requestResource.check('update').allowed() || has(request.subResource)", &[]);
        check("a", "namespaceObject.metadata.labels['x'] == 'y' && oldObject == null", &[]);
        check("a", "... [] bad expression", &["m[0].expression: Invalid value: \"... [] bad expression\": compilation failed: ERROR: <input>:1:"]);
        check("a", "request.nothing == 1", &["m[0].expression: Invalid value: \"request.nothing == 1\": compilation failed: ERROR: <input>:1:8: undefined field 'nothing'"]);
        check("a", "object.metadata.name", &["m[0].expression: Invalid value: \"object.metadata.name\": must evaluate to bool but got dyn"]);
        check("", " ", &["m[0].expression: Required value", "m[0].name: Required value"]);
    }
}
