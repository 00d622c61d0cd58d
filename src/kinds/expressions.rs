//! Expressions of admission, by policies and by the match conditions of webhooks: which variables they see, and how they are compiled.
//! Source: apiserver `pkg/admission/plugin/cel/{compile,composition}.go`, `pkg/admission/plugin/webhook/matchconditions`.

use std::sync::LazyLock;

use crate::{
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
    schema::cel::{Decl, Environment, Program, Type},
};

/// The most match conditions of one webhook or policy.
const CONDITIONS_MAX: usize = 64;

/// What an expression may use beyond the request itself.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub has_params: bool,
    pub has_authorizer: bool,
    /// It may make objects and patches.
    pub makes_objects: bool,
    /// The policy's variables before it, with their types.
    pub variables: Vec<(String, Type)>,
    /// The types of `object` and `oldObject`, and of `params`, where they are known; the type check of a policy knows them.
    pub object: Option<Decl>,
    pub params: Option<Decl>,
}

impl Scope {
    pub fn environment(&self) -> Environment {
        let anything = || Decl::scalar(Type::DYN);
        let object = || self.object.clone().unwrap_or_else(anything);
        let mut environment = Environment::default()
            .with("object", object())
            .with("oldObject", object())
            .with("request", REQUEST.clone())
            .with("namespaceObject", NAMESPACE.clone());
        if self.has_params {
            environment = environment.with("params", self.params.clone().unwrap_or_else(anything));
        }
        if self.has_authorizer {
            let resource = Type::simple("kubernetes.authorization.ResourceCheck");
            environment = environment.with_authorizer().with("authorizer.requestResource", Decl::scalar(resource));
        }
        if !self.variables.is_empty() {
            let fields = self.variables.iter().map(|(name, ty)| (name.as_str(), Decl::scalar(ty.clone())));
            environment = environment.with("variables", Decl::object("kubernetes.variables", fields));
        }
        if self.makes_objects { environment.with_objects() } else { environment }
    }

    /// The program of a text whose result is of one of the types wanted; any will do when none is named.
    pub fn compile(&self, text: &str, wanted: &[Type]) -> Result<Program, String> {
        let program = Program::compile(&self.environment(), text).map_err(|it| it.to_string())?;
        let found = program.output();
        match wanted {
            [] => Ok(program),
            _ if wanted.contains(found) => Ok(program),
            [one] => Err(format!("must evaluate to {} but got {}", shown(one), shown(found))),
            many => Err(format!("must evaluate to one of [{}] but got {}", many.iter().map(shown).collect::<Vec<_>>().join(" "), shown(found))),
        }
    }
}

/// A type as Go prints it.
fn shown(ty: &Type) -> String {
    if [Type::NULL, Type::DURATION, Type::TIMESTAMP].contains(ty) { ty.name().to_owned() } else { ty.to_string() }
}

/// `BuildRequestType`
static REQUEST: LazyLock<Decl> = LazyLock::new(|| {
    let (text, any) = (Decl::string, || Decl::scalar(Type::DYN));
    let three = |name: &'static str, last: &'static str| Decl::object(name, [("group", text()), ("version", text()), (last, text())]);
    let (kind, resource) = (|| three("kubernetes.GroupVersionKind", "kind"), || three("kubernetes.GroupVersionResource", "resource"));
    let user = [("username", text()), ("uid", text()), ("groups", Decl::list(text())), ("extra", Decl::map(Decl::list(text())))];
    Decl::object("kubernetes.AdmissionRequest", [
        ("kind", kind()), ("resource", resource()), ("subResource", text()), ("requestKind", kind()), ("requestResource", resource()), ("requestSubResource", text()),
        ("name", text()), ("namespace", text()), ("operation", text()), ("userInfo", Decl::object("kubernetes.UserInfo", user)), ("dryRun", Decl::scalar(Type::BOOL)), ("options", any()),
    ])
});

/// `BuildNamespaceType`
static NAMESPACE: LazyLock<Decl> = LazyLock::new(|| {
    let (text, time, int) = (Decl::string, || Decl::scalar(Type::TIMESTAMP), || Decl::scalar(Type::INT));
    let condition = [("status", text()), ("type", text()), ("lastTransitionTime", time()), ("message", text()), ("reason", text())];
    let metadata = [
        ("name", text()), ("generateName", text()), ("namespace", text()), ("labels", Decl::map(text())), ("annotations", Decl::map(text())), ("UID", text()),
        ("creationTimestamp", time()), ("deletionGracePeriodSeconds", int()), ("deletionTimestamp", time()), ("generation", int()), ("resourceVersion", text()), ("finalizers", Decl::list(text())),
    ];
    let status = [("conditions", Decl::list(Decl::object("kubernetes.NamespaceCondition", condition))), ("phase", text())];
    Decl::object("kubernetes.Namespace", [
        ("metadata", Decl::object("kubernetes.NamespaceMetadata", metadata)),
        ("spec", Decl::object("kubernetes.NamespaceSpec", [("finalizers", Decl::list(text()))])),
        ("status", Decl::object("kubernetes.NamespaceStatus", status)),
    ])
});

/// A condition under which a webhook or a policy is for a request.
#[derive(Clone, Debug)]
pub struct Condition {
    pub name: String,
    pub expression: String,
    pub program: Result<Program, String>,
}

/// The `matchConditions` of a webhook or a policy's specification.
pub fn conditions(owner: &Value, scope: &Scope) -> Vec<Condition> {
    let condition = |it: &Value| Condition {
        name: it.text("name").to_owned(),
        expression: it.text("expression").to_owned(),
        program: scope.compile(it.text("expression"), &[Type::BOOL]),
    };
    owner.items_at(&["matchConditions"]).iter().map(condition).collect()
}

/// `validateMatchConditions`
pub fn validate_conditions(conditions: &[Value], has_params: bool, path: &Path, errors: &mut FieldErrors) {
    if conditions.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, conditions.len(), CONDITIONS_MAX));
    }
    let scope = Scope { has_params, has_authorizer: true, ..Scope::default() };
    for (at, condition) in conditions.iter().enumerate() {
        let (path, name) = (path.index(at), condition.text("name"));
        match condition.text("expression").trim() {
            "" => errors.push(FieldError::required(&path.child("expression"), "")),
            text => errors.extend(scope.compile(text, &[Type::BOOL]).err().map(|why| FieldError::invalid(&path.child("expression"), text, why))),
        }
        match name {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            name => errors.extend(names::qualified_name(name).into_iter().map(|why| FieldError::invalid(&path.child("name"), name, why))),
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
            validate_conditions(&[json!({"name": name, "expression": expression})], false, &Path::new("m"), &mut errors);
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
