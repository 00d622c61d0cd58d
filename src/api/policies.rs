//! Admission policies: what users allow and change by expressions, without a webhook.
//! Source: apiserver `pkg/admission/plugin/policy/{generic,validating,mutating}`, `pkg/admission/plugin/webhook/matchconditions`.

mod compiled;
mod mutation;

use std::sync::Arc;

use self::compiled::{Binding, Mutation, Policy, Validation};
use super::{
    admission::Context,
    derived::Derived,
    forms::View,
    matching::{Asks, OWN, Question, Round, Versioned, is_exempt},
};
use crate::{
    kinds::expressions::Condition,
    meta::{LabelSelector, Meta, Result, Status, Value},
    schema::cel::{BUDGET, Bindings, Budget, EvalError, MATCH_BUDGET, Program, Val},
    store::{Key, Snapshot},
};

const GROUP: &str = "admissionregistration.k8s.io";
/// The longest message that an expression may make (`MaxEvaluatedMessageExpressionSizeBytes`).
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// The policies there are, compiled anew when one of them or of their bindings has changed.
#[derive(Default)]
pub struct Policies {
    validating: Derived<Vec<Policy>>,
    mutating: Derived<Vec<Policy>>,
}

fn read(kept: &Derived<Vec<Policy>>, snapshot: &Snapshot, policies: &str, bindings: &str) -> Arc<Vec<Policy>> {
    let [policies, bindings] = [policies, bindings].map(|it| format!("{GROUP}/{it}"));
    kept.get(snapshot, &[&policies, &bindings], |_| {
        let values = |resource: &str| snapshot.list(resource, None, None).map(|it| it.value()).collect::<Vec<_>>();
        let bindings = values(&bindings);
        values(&policies).iter().map(|it| Policy::new(it, &bindings)).filter(|it| !it.bindings.is_empty()).collect()
    })
}

/// A policy that is for the request, with one of its bindings and one of its parameters.
struct Invocation<'p> {
    policy: &'p Policy,
    binding: &'p Binding,
    form: usize,
    /// Null where there are none.
    params: Value,
}

impl Invocation<'_> {
    fn id(&self) -> String {
        format!("{}/{}/{}/{}", self.policy.name, self.binding.name, self.params.namespace(), self.params.name())
    }
}

/// Why a policy cannot be asked: it or its binding is not configured well.
struct Misfit<'p> {
    policy: &'p Policy,
    binding: Option<&'p Binding>,
    why: String,
}

/// The policies that are for a request, in their order.
async fn invocations<'p>(question: &Question<'_>, policies: &'p [Policy], object: &Value) -> Result<(Vec<Invocation<'p>>, Vec<Misfit<'p>>)> {
    let (mut found, mut misfits) = (Vec::new(), Vec::new());
    for policy in policies {
        let form = match question.form_for(&policy.criteria, object) {
            Ok(None) => continue,
            Ok(Some(form)) => form,
            Err(status) => {
                misfits.push(Misfit { policy, binding: None, why: status.message });
                continue;
            }
        };
        let params = policy.param_kind.as_ref().map(|it| ParamKind::find(question.context, it)).transpose();
        let params = match params {
            Ok(params) => params,
            Err(why) => {
                misfits.push(Misfit { policy, binding: None, why });
                continue;
            }
        };
        for binding in &policy.bindings {
            let is_meant = match &binding.criteria {
                None => Ok(true),
                Some(criteria) => question.form_for(criteria, object).map(|it| it.is_some()).map_err(|it| it.message),
            };
            let collected = match is_meant {
                Ok(false) => continue,
                Ok(true) => collect(question.context, params.as_ref(), &binding.params).await,
                Err(why) => Err(why),
            };
            match collected {
                Ok(all) => found.extend(all.into_iter().map(|params| Invocation { policy, binding, form, params })),
                Err(why) => misfits.push(Misfit { policy, binding: Some(binding), why }),
            }
        }
    }
    Ok((found, misfits))
}

/// The kind of a policy's parameters.
struct ParamKind {
    kind: Arc<crate::kinds::Kind>,
    version: usize,
}

impl ParamKind {
    fn find(context: &Context<'_>, (group, version, kind): &(String, String, String)) -> std::result::Result<Self, String> {
        let registry = context.server.registry.load();
        let found = registry.iter().find(|it| it.group == *group && it.kind == *kind);
        let at = found.and_then(|it| Some((it, it.versions.iter().position(|it| it.name == *version && it.is_served)?)));
        let missing = || format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind}'");
        at.map(|(kind, version)| Self { kind: kind.clone(), version }).ok_or_else(missing)
    }
}

/// The parameters that a binding names; null for a policy or a binding without any (`CollectParams`).
async fn collect(context: &Context<'_>, kind: Option<&ParamKind>, reference: &Value) -> std::result::Result<Vec<Value>, String> {
    let Some(kind) = kind.filter(|_| reference.is_object()) else { return Ok(vec![Value::Null]) };
    let named = reference.text("namespace");
    let namespace = match (kind.kind.is_namespaced(), named) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if context.target.namespace.is_empty() => return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()),
        (true, "") => &context.target.namespace,
        (true, named) => named,
    };
    let resource = kind.kind.resource();
    let found: Vec<Value> = match reference.text("name") {
        "" => {
            let selector = LabelSelector::from_value(reference.get("selector"))?;
            let place = kind.kind.is_namespaced().then_some(namespace);
            context.snapshot.list(&resource, place, None).map(|it| it.value()).filter(|it| selector.matches_object(it)).collect()
        }
        name => context.snapshot.get(&Key::new(&resource, namespace, name)).map(|it| it.value()).into_iter().collect(),
    };
    if found.is_empty() && reference.text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let wanted = View { kind: &kind.kind, version: &kind.kind.versions[kind.version] };
    let mut params = Vec::with_capacity(found.len());
    for value in found {
        params.push(context.server.convert(View::stored(&kind.kind), wanted, value).await.map_err(|it| it.message)?);
    }
    Ok(params)
}

/// What the expressions of a policy see.
struct Inputs<'a> {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    asks: Asks<'a>,
}

impl<'a> Inputs<'a> {
    async fn new(question: &'a Question<'a>, object: &Versioned) -> Result<Self> {
        Ok(Self {
            object: object.value.clone(),
            old: question.old(object.form).await?,
            request: question.attributes(object.form),
            namespace: namespace(question.context)?,
            asks: Asks { question },
        })
    }

    fn bind<'v>(&'v self, policy: &'v Policy, params: &'v Value, has_authorizer: bool) -> Bindings<'v> {
        let bindings = Bindings::default()
            .with("object", Val::json(&self.object))
            .with("oldObject", Val::json(&self.old))
            .with("request", Val::json(&self.request))
            .with("namespaceObject", Val::json(&self.namespace))
            .with("params", Val::json(params))
            .with_variables(policy.variables.iter().filter_map(|(name, program)| Some((name.as_str(), program.as_ref().ok()?))));
        if has_authorizer { self.asks.bind(bindings) } else { bindings }
    }
}

/// The namespace of the request as expressions see it; null for what is in none.
fn namespace(context: &Context<'_>) -> Result<Value> {
    let name = &context.target.namespace;
    if name.is_empty() {
        return Ok(Value::Null);
    }
    let missing = || Status::not_found(&crate::meta::object::GroupResource::new("", "namespaces"), name);
    let mut namespace = context.snapshot.get(&Key::new("namespaces", "", name)).ok_or_else(missing)?.value();
    for field in ["managedFields", "ownerReferences"] {
        namespace.remove_metadata(field);
    }
    Ok(namespace)
}

/// Runs an expression: its value, or what is wrong with it. The outer error is a budget that is spent.
fn run<'v>(program: &std::result::Result<Program, String>, text: &str, bindings: &Bindings<'v>, budget: &mut Budget) -> std::result::Result<std::result::Result<Val<'v>, String>, String> {
    let program = match program {
        Ok(program) => program,
        Err(why) => return Ok(Err(format!("compilation error: {why}"))),
    };
    match program.evaluate(bindings, budget) {
        Err(EvalError::OutOfBudget) => Err(EvalError::OutOfBudget.to_string()),
        Err(why) => Ok(Err(format!("expression '{text}' resulted in error: {why}"))),
        Ok(value) => Ok(Ok(value)),
    }
}

/// Whether the conditions hold; one that is false outdoes errors of others (`matchconditions.Matcher`).
pub fn meets(conditions: &[Condition], bindings: &Bindings<'_>, fails_open: bool) -> std::result::Result<bool, String> {
    let (mut budget, mut errors) = (Budget::new(MATCH_BUDGET), Vec::new());
    for condition in conditions {
        match run(&condition.program, &condition.expression, bindings, &mut budget) {
            Ok(Ok(Val::Bool(false))) => return Ok(false),
            Ok(Ok(_)) => (),
            Ok(Err(why)) => errors.push(why),
            Err(_) if fails_open => return Ok(false),
            Err(why) => return Err(why),
        }
    }
    match errors.as_slice() {
        [] => Ok(true),
        _ if fails_open => Ok(false),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// Why a policy does not let a request pass, and under which reason.
struct Denial {
    message: String,
    reason: String,
}

impl Denial {
    fn invalid(message: String) -> Self {
        Self { message, reason: "Invalid".to_owned() }
    }
}

/// Refuses an object, null for a deletion, that a validating policy denies.
pub async fn validate(context: &Context<'_>, object: &Value) -> Result<()> {
    let policies = read(&context.server.policies.validating, context.snapshot, "validatingadmissionpolicies", "validatingadmissionpolicybindings");
    if policies.is_empty() || is_exempt(context) {
        return Ok(());
    }
    let question = Question::new(context, object);
    let (invocations, misfits) = invocations(&question, &policies, object).await?;
    let mut denied: Vec<(String, Denial)> = Vec::new();
    for Misfit { policy, binding, why } in misfits.into_iter().filter(|it| !it.policy.fails_open) {
        let (who, what) = (told(policy, binding), if binding.is_some() { "binding" } else { "policy" });
        denied.push((who, Denial::invalid(format!("failed to configure {what}: {why}"))));
    }
    for invocation in invocations {
        let Invocation { policy, binding, form, ref params } = invocation;
        let seen = question.brought(Versioned { form: OWN, value: object.clone() }, form).await?;
        let inputs = Inputs::new(&question, &seen).await?;
        let (denials, failures) = decide(policy, &inputs, params);
        for denial in denials {
            for action in &binding.actions {
                match action.as_str() {
                    "Deny" => denied.push((told(policy, Some(binding)), Denial { message: denial.message.clone(), reason: denial.reason.clone() })),
                    "Warn" => context.requester.warn(&format!("Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}", policy.name, binding.name, denial.message)),
                    _ => tracing::info!(policy = policy.name, binding = binding.name, message = denial.message, "validation failure to be audited"),
                }
            }
        }
        denied.extend(failures.into_iter().map(|it| (told(policy, Some(binding)), it)));
    }
    match denied.into_iter().next() {
        None => Ok(()),
        Some((who, denial)) => Err(refusal(context, object, format!("ValidatingAdmissionPolicy {who} denied request: {}", denial.message), denial.reason)),
    }
}

fn told(policy: &Policy, binding: Option<&Binding>) -> String {
    match binding {
        None => format!("'{}'", policy.name),
        Some(binding) => format!("'{}' with binding '{}'", policy.name, binding.name),
    }
}

/// `admission.NewForbidden` with the reason of the policy.
fn refusal(context: &Context<'_>, object: &Value, message: String, reason: String) -> Status {
    let named = if object.name().is_empty() { object.metadata("generateName") } else { object.name() };
    let name = if context.target.name.is_empty() { named } else { &context.target.name };
    let mut status = Status::forbidden(&context.target.resource(), name, &message).with_cause("", message, "");
    status.code = match reason.as_str() {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = reason.into();
    status
}

/// What a validating policy says: denials, which the binding acts upon, and failures of audit annotations, which always deny.
fn decide(policy: &Policy, inputs: &Inputs<'_>, params: &Value) -> (Vec<Denial>, Vec<Denial>) {
    let failed = |why: String| (if policy.fails_open { Vec::new() } else { vec![Denial::invalid(why)] }, Vec::new());
    let bindings = inputs.bind(policy, params, true);
    match meets(&policy.conditions, &bindings, policy.fails_open) {
        Err(why) => return failed(why),
        Ok(false) => return (Vec::new(), Vec::new()),
        Ok(true) => (),
    }
    let (mut budget, mut denials) = (Budget::new(BUDGET), Vec::new());
    let plain = inputs.bind(policy, params, false);
    for validation in &policy.validations {
        match run(&validation.program, &validation.expression, &bindings, &mut budget) {
            Err(why) => return failed(why),
            Ok(Ok(Val::Bool(true))) => (),
            Ok(Err(_)) if policy.fails_open => (),
            Ok(Err(why)) => denials.push(Denial::invalid(why)),
            Ok(Ok(_)) => match validation.message(&plain, &mut budget) {
                Ok(message) => denials.push(Denial { message, reason: validation.reason.clone() }),
                Err(_) if policy.fails_open => (),
                Err(why) => denials.push(Denial::invalid(format!("failed messageExpression: {why}"))),
            },
        }
    }
    match annotate(policy, &bindings) {
        Ok(failures) => (denials, failures),
        Err(why) => failed(why),
    }
}

/// The audit annotations of a request; what cannot be computed denies it, unless the policy fails open.
fn annotate(policy: &Policy, bindings: &Bindings<'_>) -> std::result::Result<Vec<Denial>, String> {
    let (mut budget, mut failures) = (Budget::new(BUDGET), Vec::new());
    for annotation in &policy.annotations {
        match run(&annotation.program, &annotation.expression, bindings, &mut budget)? {
            Ok(Val::String(text)) if !text.trim().is_empty() => tracing::info!(policy = policy.name, key = annotation.key, value = text.trim(), "audit annotation"),
            Ok(Val::String(_) | Val::Null) => (),
            Ok(other) => {
                let why = format!("valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.", annotation.expression, other.type_name());
                failures.push(Denial::invalid(why));
            }
            Err(_) if policy.fails_open => (),
            Err(why) => failures.push(Denial::invalid(why)),
        }
    }
    Ok(failures)
}

impl Validation {
    /// What is told of an object that it denies; an error where the budget is spent.
    fn message(&self, bindings: &Bindings<'_>, budget: &mut Budget) -> std::result::Result<String, String> {
        let computed = match &self.message_program {
            None => None,
            Some(program) => match run(program, &self.expression, bindings, budget)? {
                Ok(Val::String(text)) => Some(text.trim().to_owned()),
                _ => None,
            },
        };
        let fit = computed.filter(|it| !it.is_empty() && it.len() <= MESSAGE_BYTES_MAX && !it.contains('\n'));
        let written = || Some(self.message.trim().to_owned()).filter(|it| !it.is_empty());
        Ok(fit.or_else(written).unwrap_or_else(|| format!("failed expression: {}", self.expression.trim())))
    }
}

/// Lets the mutating policies change `object`. Returns whether one of them did.
pub async fn mutate(context: &Context<'_>, object: &mut Value, round: &mut Round) -> Result<bool> {
    let policies = read(&context.server.policies.mutating, context.snapshot, "mutatingadmissionpolicies", "mutatingadmissionpolicybindings");
    if policies.is_empty() || is_exempt(context) || object.is_null() {
        return Ok(false);
    }
    round.begin(object);
    let question = Question::new(context, object);
    let (invocations, misfits) = invocations(&question, &policies, object).await?;
    let configured = |it: Misfit<'_>| (told(it.policy, it.binding), format!("failed to configure {}: {}", if it.binding.is_some() { "binding" } else { "policy" }, it.why), String::new());
    let mut errors: Vec<(String, String, String)> = misfits.into_iter().filter(|it| !it.policy.fails_open).map(configured).collect();
    let before = object.clone();
    let mut current = Versioned { form: OWN, value: std::mem::take(object) };
    for invocation in &invocations {
        if !round.is_due(&invocation.id()) {
            continue;
        }
        current = question.brought(current, invocation.form).await?;
        let unchanged = current.value.clone();
        let failures = change(&question, invocation, &mut current).await?;
        errors.extend(failures.into_iter().filter(|_| !invocation.policy.fails_open).map(|why| (told(invocation.policy, Some(invocation.binding)), why, "Invalid".to_owned())));
        if current.value != unchanged {
            round.something_changed();
        }
        if invocation.policy.is_reinvoked {
            round.remember(&invocation.id());
        }
    }
    *object = question.brought(current, OWN).await?.value;
    round.end(object);
    if errors.is_empty() { Ok(*object != before) } else { Err(denied(context, object, errors)) }
}

/// Applies the mutations of one policy, one after the other; what went wrong with each.
async fn change(question: &Question<'_>, invocation: &Invocation<'_>, current: &mut Versioned) -> Result<Vec<String>> {
    let Invocation { policy, params, .. } = invocation;
    let inputs = Inputs::new(question, current).await?;
    match meets(&policy.conditions, &inputs.bind(policy, params, true), policy.fails_open) {
        Err(why) => return Ok(vec![why]),
        Ok(false) => return Ok(Vec::new()),
        Ok(true) => (),
    }
    let mut failures = Vec::new();
    for mutation in &policy.mutations {
        let inputs = Inputs::new(question, current).await?;
        match mutated(question, policy, mutation, &inputs, params, current) {
            Ok(value) => current.value = question.decoded(current.form, value)?.1,
            Err(why) => failures.push(why),
        }
    }
    Ok(failures)
}

fn mutated(question: &Question<'_>, policy: &Policy, mutation: &Mutation, inputs: &Inputs<'_>, params: &Value, current: &Versioned) -> std::result::Result<Value, String> {
    let bindings = inputs.bind(policy, params, true);
    let value = run(&mutation.program, &mutation.expression, &bindings, &mut Budget::new(BUDGET))??;
    match (mutation.is_patch, question.schema(current.form)) {
        (true, _) => mutation::patch(&current.value, &value),
        (false, Some(schema)) => mutation::apply(&current.value, &value, &schema),
        (false, None) => Err("the type of the object is not known".to_owned()),
    }
}

/// The first of the errors speaks, all of them are told.
fn denied(context: &Context<'_>, object: &Value, errors: Vec<(String, String, String)>) -> Status {
    let texts: Vec<String> = errors.iter().map(|(who, why, _)| format!("policy {who} denied request: {why}")).collect();
    let status = Status::forbidden(&context.target.resource(), object.name(), "admission request denied by policy");
    let mut status = texts.iter().fold(status, |status, it| status.with_cause("", it.as_str(), ""));
    status.message = texts.first().cloned().unwrap_or_default();
    if let Some((_, _, reason)) = errors.into_iter().next().filter(|(_, _, reason)| !reason.is_empty()) {
        status.reason = reason.into();
    }
    status
}
