//! Admission policies: what users allow and change by expressions, without a webhook.
//! Source: apiserver `pkg/admission/plugin/policy/{generic,validating,mutating}`.

mod compiled;
mod mutation;

use std::sync::Arc;

use self::compiled::{Binding, Mutation, Policy, Validation};
use super::{
    admission::Context,
    derived::Derived,
    forms::View,
    matching::{Form, GROUP, NAMESPACES, OWN, Question, Round, Versioned, is_exempt},
};
use crate::{
    kinds::expressions::meets,
    meta::{GroupVersionKind, LabelSelector, Meta, Result, Status, Value, object::GroupResource},
    schema::cel::{BUDGET, Bindings, Budget, Val},
    store::{Key, Snapshot},
};

/// The longest message that an expression may make (`MaxEvaluatedMessageExpressionSizeBytes`).
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// The reason of a denial that names no other.
const INVALID: &str = "Invalid";

/// The policies there are, with their bindings.
#[derive(Default)]
pub struct Policies {
    validating: Derived<Vec<Policy>>,
    mutating: Derived<Vec<Policy>>,
}

fn read(derived: &Derived<Vec<Policy>>, snapshot: &Snapshot, kind: &str) -> Arc<Vec<Policy>> {
    let resources = ["policies", "policybindings"].map(|it| format!("{GROUP}/{kind}admission{it}"));
    derived.get(snapshot, &[&resources[0], &resources[1]], |_| {
        let stored = |resource: &str| -> Vec<Value> { snapshot.list(resource, None, None).map(|it| it.value()).collect() };
        let bindings = stored(&resources[1]);
        stored(&resources[0]).iter().map(|it| Policy::new(it, &bindings)).filter(|it| !it.bindings.is_empty()).collect()
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

/// Why a policy does not let a request pass, and under which reason.
#[derive(Clone)]
struct Denial {
    /// The policy, and the binding if it is one's.
    who: String,
    message: String,
    reason: String,
}

impl Invocation<'_> {
    fn id(&self) -> String {
        format!("{}/{}/{}/{}", self.policy.name, self.binding.name, self.params.namespace(), self.params.name())
    }

    fn denial(&self, message: String, reason: &str) -> Denial {
        Denial { who: told(self.policy, Some(self.binding)), message, reason: reason.to_owned() }
    }
}

fn told(policy: &Policy, binding: Option<&Binding>) -> String {
    match binding {
        None => format!("'{}'", policy.name),
        Some(binding) => format!("'{}' with binding '{}'", policy.name, binding.name),
    }
}

/// The policies that are for a request, in their order; under `reason` the denials of those that are not configured well.
async fn invocations<'p>(question: &Question<'_>, policies: &'p [Policy], object: &Value, reason: &str) -> (Vec<Invocation<'p>>, Vec<Denial>) {
    let (mut found, mut denials) = (Vec::new(), Vec::new());
    for policy in policies {
        let misfit = |binding: Option<&Binding>, why: String| {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let denial = Denial { who: told(policy, binding), message: format!("failed to configure {what}: {why}"), reason: reason.to_owned() };
            Some(denial).filter(|_| !policy.fails_open)
        };
        let (form, params) = match applies(question, policy, object) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(why) => {
                denials.extend(misfit(None, why));
                continue;
            }
        };
        for binding in &policy.bindings {
            match parameters(question, binding, params.as_ref(), object).await {
                Ok(all) => found.extend(all.into_iter().map(|params| Invocation { policy, binding, form, params })),
                Err(why) => denials.extend(misfit(Some(binding), why)),
            }
        }
    }
    (found, denials)
}

/// The form in which a policy sees the request, if it is for it, and the kind of its parameters.
fn applies(question: &Question<'_>, policy: &Policy, object: &Value) -> std::result::Result<Option<(usize, Option<Form>)>, String> {
    let Some(form) = question.form_for(&policy.criteria, object).map_err(|it| it.message)? else { return Ok(None) };
    let params = policy.param_kind.as_ref().map(|it| param_kind(question.context, it)).transpose()?;
    Ok(Some((form, params)))
}

fn param_kind(context: &Context<'_>, wanted: &GroupVersionKind) -> std::result::Result<Form, String> {
    let registry = context.server.registry.load();
    let found = registry.iter().find(|it| it.group == wanted.group && it.kind == wanted.kind);
    let at = found.and_then(|it| Some((it, it.versions.iter().position(|it| it.name == wanted.version && it.is_served)?)));
    let missing = || format!("failed to find resource referenced by paramKind: '{wanted}'");
    at.map(|(kind, version)| Form { kind: kind.clone(), version }).ok_or_else(missing)
}

/// The parameters with which a binding lets its policy be asked: none where it is not for the request, null where it has none (`CollectParams`).
async fn parameters(question: &Question<'_>, binding: &Binding, kind: Option<&Form>, object: &Value) -> std::result::Result<Vec<Value>, String> {
    if let Some(criteria) = &binding.criteria
        && question.form_for(criteria, object).map_err(|it| it.message)?.is_none()
    {
        return Ok(Vec::new());
    }
    let (context, reference) = (question.context, &binding.params);
    let Some(form) = kind.filter(|_| reference.is_object()) else { return Ok(vec![Value::Null]) };
    let namespace = match (form.kind.is_namespaced(), reference.text("namespace")) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if context.target.namespace.is_empty() => return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()),
        (true, "") => &context.target.namespace,
        (true, named) => named,
    };
    let resource = form.kind.resource();
    let found: Vec<Value> = match reference.text("name") {
        "" => {
            let selector = LabelSelector::from_value(reference.get("selector"))?;
            let place = form.kind.is_namespaced().then_some(namespace);
            context.snapshot.list(&resource, place, None).map(|it| it.value()).filter(|it| selector.matches_object(it)).collect()
        }
        name => context.snapshot.get(&Key::new(&resource, namespace, name)).map(|it| it.value()).into_iter().collect(),
    };
    if found.is_empty() && reference.text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let mut params = Vec::with_capacity(found.len());
    for value in found {
        params.push(context.server.convert(View::stored(&form.kind), form.view(), value).await.map_err(|it| it.message)?);
    }
    Ok(params)
}

/// What the expressions of a policy see.
struct Inputs<'a> {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    question: &'a Question<'a>,
}

impl<'a> Inputs<'a> {
    async fn new(question: &'a Question<'a>, object: &Versioned) -> Result<Self> {
        Ok(Self {
            object: object.value.clone(),
            old: question.old(object.form).await?,
            request: question.attributes(object.form),
            namespace: namespace(question.context)?,
            question,
        })
    }

    /// For the expressions of `invocation`; those of messages have no authorizer.
    fn bind<'v>(&'v self, invocation: &'v Invocation<'_>, has_authorizer: bool) -> Bindings<'v> {
        let bindings = Bindings::default()
            .with("object", Val::json(&self.object))
            .with("oldObject", Val::json(&self.old))
            .with("request", Val::json(&self.request))
            .with("namespaceObject", Val::json(&self.namespace))
            .with("params", Val::json(&invocation.params))
            .with_variables(invocation.policy.variables.iter().filter_map(|(name, program)| Some((name.as_str(), program.as_ref().ok()?))));
        if has_authorizer { self.question.bind(bindings) } else { bindings }
    }
}

/// The namespace of the request as expressions see it; null for what is in none.
fn namespace(context: &Context<'_>) -> Result<Value> {
    let name = &context.target.namespace;
    if name.is_empty() {
        return Ok(Value::Null);
    }
    let mut namespace = context.find(NAMESPACES, "", name).ok_or_else(|| Status::not_found(&GroupResource::new("", NAMESPACES), name))?;
    for field in ["managedFields", "ownerReferences"] {
        namespace.remove_metadata(field);
    }
    Ok(namespace)
}

/// Refuses an object, null for a deletion, that a validating policy denies.
pub async fn validate(context: &Context<'_>, object: &Value) -> Result<()> {
    let policies = read(&context.server.policies.validating, context.snapshot, "validating");
    if policies.is_empty() || is_exempt(context) {
        return Ok(());
    }
    let question = Question::new(context, object);
    let (invocations, mut denied) = invocations(&question, &policies, object, INVALID).await;
    for invocation in &invocations {
        let Invocation { policy, binding, form, .. } = *invocation;
        let seen = question.brought(Versioned { form: OWN, value: object.clone() }, form).await?;
        let inputs = Inputs::new(&question, &seen).await?;
        let (denials, failures) = match invocation.decide(&inputs) {
            Ok(decided) => decided,
            Err(_) if policy.fails_open => continue,
            Err(why) => (vec![invocation.denial(why, INVALID)], Vec::new()),
        };
        for denial in denials {
            for action in &binding.actions {
                match action.as_str() {
                    "Deny" => denied.push(denial.clone()),
                    "Warn" => context.requester.warn(&format!("Validation failed for ValidatingAdmissionPolicy {}: {}", denial.who, denial.message)),
                    _ => tracing::info!(policy = policy.name, binding = binding.name, message = denial.message, "validation failure to be audited"),
                }
            }
        }
        denied.extend(failures);
    }
    denied.into_iter().next().map_or(Ok(()), |it| Err(it.refusal(context, object)))
}

impl Denial {
    /// `admission.NewForbidden` with the reason of the policy.
    fn refusal(self, context: &Context<'_>, object: &Value) -> Status {
        let named = if object.name().is_empty() { object.metadata("generateName") } else { object.name() };
        let name = if context.target.name.is_empty() { named } else { &context.target.name };
        let message = format!("ValidatingAdmissionPolicy {} denied request: {}", self.who, self.message);
        let mut status = Status::forbidden(&context.target.resource(), name, &message).with_cause("", message, "");
        status.code = match self.reason.as_str() {
            "Unauthorized" => 401,
            "Forbidden" => 403,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        status.reason = self.reason.into();
        status
    }
}

impl Invocation<'_> {
    /// What a validating policy says: denials, which the binding acts upon, and failures of audit annotations, which always deny.
    /// The error is one of the policy as a whole.
    fn decide(&self, inputs: &Inputs<'_>) -> std::result::Result<(Vec<Denial>, Vec<Denial>), String> {
        let (policy, bindings, plain) = (self.policy, inputs.bind(self, true), inputs.bind(self, false));
        if !meets(&policy.conditions, &bindings, policy.fails_open)? {
            return Ok((Vec::new(), Vec::new()));
        }
        let wrong = |why: String| (!policy.fails_open).then(|| self.denial(why, INVALID));
        let (mut budget, mut denials) = (Budget::new(BUDGET), Vec::new());
        for validation in &policy.validations {
            denials.extend(match validation.expression.run(&bindings, &mut budget)? {
                Ok(Val::Bool(true)) => None,
                Ok(_) => match validation.message(&plain, &mut budget) {
                    Ok(message) => Some(self.denial(message, &validation.reason)),
                    Err(why) => wrong(format!("failed messageExpression: {why}")),
                },
                Err(why) => wrong(why),
            });
        }
        Ok((denials, self.annotate(&bindings)?.into_iter().filter_map(wrong).collect()))
    }

    /// Tells the audit annotations of a request; what is wrong with those that cannot be computed.
    fn annotate(&self, bindings: &Bindings<'_>) -> std::result::Result<Vec<String>, String> {
        let (mut budget, mut failures) = (Budget::new(BUDGET), Vec::new());
        for (key, expression) in &self.policy.annotations {
            match expression.run(bindings, &mut budget)? {
                Ok(Val::String(text)) if !text.trim().is_empty() => tracing::info!(policy = self.policy.name, key, value = text.trim(), "audit annotation"),
                Ok(Val::String(_) | Val::Null) => (),
                Ok(other) => failures.push(format!(
                    "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                    expression.text,
                    other.type_name()
                )),
                Err(why) => failures.push(why),
            }
        }
        Ok(failures)
    }
}

impl Validation {
    /// What is told of an object that it denies; an error where the budget is spent.
    fn message(&self, bindings: &Bindings<'_>, budget: &mut Budget) -> std::result::Result<String, String> {
        let computed = self.message_expression.as_ref().map(|it| it.run(bindings, budget)).transpose()?;
        let computed = computed.and_then(|it| if let Ok(Val::String(text)) = it { Some(text.trim().to_owned()) } else { None });
        let fit = computed.filter(|it| !it.is_empty() && it.len() <= MESSAGE_BYTES_MAX && !it.contains('\n'));
        let written = || Some(self.message.trim().to_owned()).filter(|it| !it.is_empty());
        Ok(fit.or_else(written).unwrap_or_else(|| format!("failed expression: {}", self.expression.text.trim())))
    }
}

/// Lets the mutating policies change `object`. Returns whether one of them did.
pub async fn mutate(context: &Context<'_>, object: &mut Value, round: &mut Round) -> Result<bool> {
    let policies = read(&context.server.policies.mutating, context.snapshot, "mutating");
    if policies.is_empty() || is_exempt(context) || object.is_null() {
        return Ok(false);
    }
    round.begin(object);
    let question = Question::new(context, object);
    let (invocations, mut denied) = invocations(&question, &policies, object, "Forbidden").await;
    let before = object.clone();
    let mut current = Versioned { form: OWN, value: std::mem::take(object) };
    for invocation in &invocations {
        if !round.is_due(&invocation.id()) {
            continue;
        }
        current = question.brought(current, invocation.form).await?;
        let unchanged = current.value.clone();
        let failures = invocation.change(&question, &mut current).await?;
        denied.extend(failures.into_iter().filter(|_| !invocation.policy.fails_open).map(|why| invocation.denial(why, INVALID)));
        if current.value != unchanged {
            round.something_changed();
        }
        if invocation.policy.is_reinvoked {
            round.remember(&invocation.id());
        }
    }
    *object = question.brought(current, OWN).await?.value;
    round.end(object);
    if denied.is_empty() { Ok(*object != before) } else { Err(refusal(context, object, denied)) }
}

impl Invocation<'_> {
    /// Applies the mutations of one policy, one after the other; what went wrong with each.
    async fn change(&self, question: &Question<'_>, current: &mut Versioned) -> Result<Vec<String>> {
        let inputs = Inputs::new(question, current).await?;
        match meets(&self.policy.conditions, &inputs.bind(self, true), self.policy.fails_open) {
            Err(why) => return Ok(vec![why]),
            Ok(false) => return Ok(Vec::new()),
            Ok(true) => (),
        }
        let mut failures = Vec::new();
        for mutation in &self.policy.mutations {
            let inputs = Inputs::new(question, current).await?;
            match self.mutated(mutation, &inputs, current) {
                Ok(value) => current.value = question.decoded(current.form, value)?.1,
                Err(why) => failures.push(why),
            }
        }
        Ok(failures)
    }

    fn mutated(&self, mutation: &Mutation, inputs: &Inputs<'_>, current: &Versioned) -> std::result::Result<Value, String> {
        let bindings = inputs.bind(self, true);
        let value = mutation.expression.run(&bindings, &mut Budget::new(BUDGET))??;
        match (mutation.is_patch, inputs.question.schema(current.form)) {
            (true, _) => mutation::patch(&current.value, &value),
            (false, Some(schema)) => mutation::apply(&current.value, &value, &schema),
            (false, None) => Err("the type of the object is not known".to_owned()),
        }
    }
}

/// The first of the denials speaks, all of them are told.
fn refusal(context: &Context<'_>, object: &Value, denials: Vec<Denial>) -> Status {
    let texts: Vec<String> = denials.iter().map(|it| format!("policy {} denied request: {}", it.who, it.message)).collect();
    let status = Status::forbidden(&context.target.resource(), object.name(), "");
    let mut status = texts.iter().fold(status, |status, it| status.with_cause("", it.as_str(), ""));
    status.message = texts.into_iter().next().unwrap_or_default();
    status.reason = denials.into_iter().next().map(|it| it.reason).unwrap_or_default().into();
    status
}
