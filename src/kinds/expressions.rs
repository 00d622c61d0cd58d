//! Expressions of admission, by policies and by the match conditions of webhooks: which variables they see, and how they are compiled.
//! Source: apiserver `pkg/admission/plugin/cel/{compile,composition}.go`, `pkg/admission/plugin/webhook/matchconditions`.

use std::sync::LazyLock;

use crate::{
    meta::{Meta, Value, names, status::aggregate},
    schema::cel::{Bindings, Budget, Decl, Environment, EvalError, MATCH_BUDGET, Object, Program, Type, Val, decl},
};

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

    pub fn expression(&self, purpose: &str, text: &str) -> Expression {
        Expression { text: text.to_owned(), program: self.compile_for(purpose, text) }
    }

    /// The `matchConditions` of a webhook or a policy's specification.
    pub fn conditions(&self, owner: &Value) -> Vec<Expression> {
        owner.items_at(&["matchConditions"]).iter().map(|it| self.expression("condition", it.text("expression"))).collect()
    }

    /// The program of an expression by what it is for: `condition`, `validation`, `message`, `annotation`, or the type of a patch.
    pub fn compile_for(&self, purpose: &str, text: &str) -> Result<Program, String> {
        let made = |name: &str| Type::Object(Object { name: name.to_owned(), ..Object::default() }.into());
        let scope = self.clone();
        match purpose {
            "condition" => Self { variables: Vec::new(), ..scope }.compile(text, &[Type::BOOL]),
            "message" => Self { has_authorizer: false, ..scope }.compile(text, &[Type::STRING]),
            "annotation" => self.compile(text, &[Type::STRING, Type::NULL]),
            "ApplyConfiguration" => Self { makes_objects: true, ..scope }.compile(text, &[made("Object")]),
            "JSONPatch" => Self { makes_objects: true, ..scope }.compile(text, &[Type::list(made("JSONPatch"))]),
            _ => self.compile(text, &[Type::BOOL]),
        }
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

/// An expression, compiled once, or what is wrong with it.
#[derive(Debug)]
pub struct Expression {
    pub text: String,
    program: Result<Program, String>,
}

/// What came of an expression: its value, or what is wrong with it. The outer error is a budget that is spent.
pub type Ran<'v> = Result<Result<Val<'v>, String>, String>;

impl Expression {
    pub fn run<'v>(&self, bindings: &Bindings<'v>, budget: &mut Budget) -> Ran<'v> {
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        match program.evaluate(bindings, budget) {
            Err(EvalError::OutOfBudget) => Err(EvalError::OutOfBudget.to_string()),
            Err(why) => Ok(Err(format!("expression '{}' resulted in error: {why}", self.text))),
            Ok(value) => Ok(Ok(value)),
        }
    }
}

/// Whether the match conditions hold; one that is false outdoes errors of others (`matchconditions.Matcher`).
pub fn meets(conditions: &[Expression], bindings: &Bindings<'_>, fails_open: bool) -> Result<bool, String> {
    let (mut budget, mut errors) = (Budget::new(MATCH_BUDGET), Vec::new());
    for condition in conditions {
        match condition.run(bindings, &mut budget) {
            Ok(Ok(Val::Bool(false))) => return Ok(false),
            Ok(Ok(_)) => (),
            Ok(Err(why)) => errors.push(why),
            Err(_) if fails_open => return Ok(false),
            Err(why) => return Err(why),
        }
    }
    match aggregate(&errors) {
        None => Ok(true),
        Some(_) if fails_open => Ok(false),
        Some(why) => Err(why),
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

/// What the expressions of a policy see, after its variables.
pub struct Seen {
    pub scope: Scope,
    /// Compiled one after the other; those that do not compile with their complaint.
    pub variables: Vec<(String, Result<Program, String>)>,
}

impl Seen {
    /// By a policy's specification, or by none.
    pub fn by_policy(spec: &Value) -> Self {
        Self::with(spec, None, None)
    }

    /// The same where the types of objects and parameters are known.
    pub fn with(spec: &Value, object: Option<Decl>, params: Option<Decl>) -> Self {
        let mut scope = Scope { has_params: spec["paramKind"].is_object(), has_authorizer: true, object, params, ..Scope::default() };
        let mut variables = Vec::new();
        for variable in spec.items_at(&["variables"]) {
            let (name, program) = (variable.text("name").to_owned(), scope.compile(variable.text("expression"), &[]));
            scope.variables.extend(program.as_ref().ok().map(|it| (name.clone(), it.output().clone())));
            variables.push((name, program));
        }
        Self { scope, variables }
    }
}

/// Whether expressions can name a variable so.
pub fn is_identifier(name: &str) -> bool {
    names::c_identifier(name).is_empty() && decl::escape(name).is_some_and(|it| it == name || name.contains("__"))
}

#[cfg(test)]
mod tests;
