//! A policy and its bindings, read and compiled once. Source: apiserver `pkg/admission/plugin/policy/{validating/plugin.go,mutating/compilation.go}`.

use crate::{
    api::matching::Criteria,
    kinds::{
        admission::{mutation_type, scope},
        expressions::{self, Condition, Scope},
    },
    meta::{Meta, Value, object::split_api_version},
    schema::cel::{Program, Type},
};

pub type Compiled = Result<Program, String>;

pub struct Policy {
    pub name: String,
    pub fails_open: bool,
    pub is_reinvoked: bool,
    pub criteria: Criteria,
    /// Group, version, kind.
    pub param_kind: Option<(String, String, String)>,
    pub conditions: Vec<Condition>,
    pub variables: Vec<(String, Compiled)>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Annotation>,
    pub mutations: Vec<Mutation>,
    pub bindings: Vec<Binding>,
}

pub struct Validation {
    pub expression: String,
    pub program: Compiled,
    pub message: String,
    pub message_program: Option<Compiled>,
    pub reason: String,
}

pub struct Annotation {
    pub key: String,
    pub expression: String,
    pub program: Compiled,
}

pub struct Mutation {
    /// A JSON patch; otherwise a configuration to be applied.
    pub is_patch: bool,
    pub expression: String,
    pub program: Compiled,
}

pub struct Binding {
    pub name: String,
    /// `None`: all that the policy is for.
    pub criteria: Option<Criteria>,
    /// `paramRef`, null when there is none.
    pub params: Value,
    pub actions: Vec<String>,
}

impl Policy {
    pub fn new(policy: &Value, bindings: &[Value]) -> Self {
        let spec = &policy["spec"];
        let (scope, variables) = scope(spec);
        let kind = &spec["paramKind"];
        let (group, version) = split_api_version(kind.text("apiVersion"));
        let bound = bindings.iter().filter(|it| it["spec"].text("policyName") == policy.name());
        Self {
            name: policy.name().to_owned(),
            fails_open: spec.text("failurePolicy") == "Ignore",
            is_reinvoked: spec.text("reinvocationPolicy") == "IfNeeded",
            criteria: Criteria::of_policy(&spec["matchConstraints"]),
            param_kind: kind.is_object().then(|| (group.to_owned(), version.to_owned(), kind.text("kind").to_owned())),
            conditions: expressions::conditions(spec, &scope),
            variables,
            validations: spec.items_at(&["validations"]).iter().map(|it| Validation::new(it, &scope)).collect(),
            annotations: spec.items_at(&["auditAnnotations"]).iter().map(|it| Annotation::new(it, &scope)).collect(),
            mutations: spec.items_at(&["mutations"]).iter().map(|it| Mutation::new(it, &scope)).collect(),
            bindings: bound.map(Binding::new).collect(),
        }
    }
}

impl Validation {
    fn new(validation: &Value, scope: &Scope) -> Self {
        let text = |field: &str| validation.text(field).to_owned();
        let message = text("messageExpression");
        let plain = Scope { has_authorizer: false, ..scope.clone() };
        Self {
            program: scope.compile(validation.text("expression"), &[Type::BOOL]),
            expression: text("expression"),
            message: text("message"),
            message_program: (!message.is_empty()).then(|| plain.compile(&message, &[Type::STRING])),
            reason: if text("reason").is_empty() { "Invalid".to_owned() } else { text("reason") },
        }
    }
}

impl Annotation {
    fn new(annotation: &Value, scope: &Scope) -> Self {
        let expression = annotation.text("valueExpression").to_owned();
        Self { key: annotation.text("key").to_owned(), program: scope.compile(&expression, &[Type::STRING, Type::NULL]), expression }
    }
}

impl Mutation {
    fn new(mutation: &Value, scope: &Scope) -> Self {
        let is_patch = mutation.text("patchType") == "JSONPatch";
        let field = if is_patch { "jsonPatch" } else { "applyConfiguration" };
        let expression = mutation.text_at(&[field, "expression"]).to_owned();
        let scope = Scope { makes_objects: true, ..scope.clone() };
        Self { is_patch, program: scope.compile(&expression, &[mutation_type(mutation.text("patchType"))]), expression }
    }
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = &binding["spec"];
        Self {
            name: binding.name().to_owned(),
            criteria: spec.get("matchResources").filter(|it| it.is_object()).map(Criteria::of_policy),
            params: spec["paramRef"].clone(),
            actions: spec.texts_at(&["validationActions"]).map(str::to_owned).collect(),
        }
    }
}
