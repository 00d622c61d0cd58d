//! A policy and its bindings, read and compiled once. Source: apiserver `pkg/admission/plugin/policy/{validating/plugin.go,mutating/compilation.go}`.

use crate::{
    api::matching::Criteria,
    kinds::expressions::{Expression, Scope, Seen},
    meta::{GroupVersionKind, Meta, Value},
    schema::cel::Program,
};

pub struct Policy {
    pub name: String,
    pub fails_open: bool,
    pub is_reinvoked: bool,
    pub criteria: Criteria,
    pub param_kind: Option<GroupVersionKind>,
    pub conditions: Vec<Expression>,
    pub variables: Vec<(String, Result<Program, String>)>,
    pub validations: Vec<Validation>,
    /// The values of audit annotations by their keys.
    pub annotations: Vec<(String, Expression)>,
    pub mutations: Vec<Mutation>,
    pub bindings: Vec<Binding>,
}

pub struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: String,
}

pub struct Mutation {
    /// A JSON patch; otherwise a configuration to be applied.
    pub is_patch: bool,
    pub expression: Expression,
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
        let Seen { scope, variables } = Seen::by_policy(spec);
        let list = |field: &str| spec.items_at(&[field]).iter();
        let annotation = |it: &Value| (it.text("key").to_owned(), scope.expression("annotation", it.text("valueExpression")));
        let bound = bindings.iter().filter(|it| it["spec"].text("policyName") == policy.name());
        Self {
            name: policy.name().to_owned(),
            fails_open: spec.text("failurePolicy") == "Ignore",
            is_reinvoked: spec.text("reinvocationPolicy") == "IfNeeded",
            criteria: Criteria::of_policy(&spec["matchConstraints"]),
            param_kind: spec.get("paramKind").filter(|it| it.is_object()).map(GroupVersionKind::of),
            conditions: scope.conditions(spec),
            validations: list("validations").map(|it| Validation::new(it, &scope)).collect(),
            annotations: list("auditAnnotations").map(annotation).collect(),
            mutations: list("mutations").map(|it| Mutation::new(it, &scope)).collect(),
            bindings: bound.map(Binding::new).collect(),
            variables,
        }
    }
}

impl Validation {
    fn new(validation: &Value, scope: &Scope) -> Self {
        let text = |field: &str| Some(validation.text(field)).filter(|it| !it.is_empty());
        Self {
            expression: scope.expression("validation", validation.text("expression")),
            message: validation.text("message").to_owned(),
            message_expression: text("messageExpression").map(|it| scope.expression("message", it)),
            reason: text("reason").unwrap_or("Invalid").to_owned(),
        }
    }
}

impl Mutation {
    fn new(mutation: &Value, scope: &Scope) -> Self {
        let patch = mutation.text("patchType");
        let field = if patch == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
        Self { is_patch: patch == "JSONPatch", expression: scope.expression(patch, mutation.text_at(&[field, "expression"])) }
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
