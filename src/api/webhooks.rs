//! Dynamic admission: webhooks that users configure change and refuse requests.
//!
//! Mutating ones are asked one after the other, those of a configuration in their order and configurations by name; validating ones all at once.
//! Each sees the object in the version that its rules name. What happens when one cannot be asked is its failure policy.
//! Source: apiserver `pkg/admission/plugin/webhook/{generic,mutating,validating}`.

mod hook;
mod review;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use self::{
    hook::{Hook, Place},
    review::{Review, Verdict},
};
use super::{
    admission::{Context, Operation},
    authz::Decision,
    forms::View,
    identity::{Attributes, User},
    reviews::user_info,
};
use crate::{
    kinds::Kind,
    meta::{
        Meta, Result, Status, Value,
        object::{GroupResource, split_api_version},
    },
    schema::{
        cel::{self, EvalError, Val, authorizer::Check},
        codec, default, prune,
    },
    store::{Key, Revision, Snapshot},
};

const GROUP: &str = "admissionregistration.k8s.io";
/// Kinds whose objects no webhook is asked about, so that a bad one can be removed (`IsExemptAdmissionConfigurationResource`).
const EXEMPT: [&str; 6] = [
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

/// The webhooks that are configured, read anew when a configuration has changed.
#[derive(Default)]
pub struct Webhooks {
    mutating: Read,
    validating: Read,
}

/// The revisions of all configurations, and what they say.
type Read = Mutex<(Vec<Revision>, Arc<[Hook]>)>;

impl Webhooks {
    fn mutating(&self, snapshot: &Snapshot) -> Arc<[Hook]> {
        read(&self.mutating, snapshot, "mutatingwebhookconfigurations")
    }

    fn validating(&self, snapshot: &Snapshot) -> Arc<[Hook]> {
        read(&self.validating, snapshot, "validatingwebhookconfigurations")
    }
}

fn read(kept: &Read, snapshot: &Snapshot, plural: &str) -> Arc<[Hook]> {
    let stored: Vec<_> = snapshot.list(&format!("{GROUP}/{plural}"), None, None).collect();
    let revisions: Vec<Revision> = stored.iter().map(|it| it.revision).collect();
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.0 != revisions {
        *kept = (revisions, stored.iter().flat_map(|it| Hook::all(&super::forms::parse(&it.json))).collect());
    }
    kept.1.clone()
}

/// What is remembered between the first and the second round of mutating webhooks (`webhookReinvokeContext`).
#[derive(Default)]
pub struct Round {
    is_second: bool,
    last: Value,
    /// Those that want to be asked again when something changes after them.
    invoked: BTreeSet<String>,
    due: BTreeSet<String>,
}

impl Round {
    fn something_changed(&mut self) {
        self.due.append(&mut self.invoked);
    }
}

/// Lets the mutating webhooks change `object`, which is null for a deletion. Returns whether one of them did.
pub async fn mutate(context: &Context<'_>, object: &mut Value, round: &mut Round) -> Result<bool> {
    let hooks = context.server.webhooks.mutating(context.snapshot);
    if hooks.is_empty() || is_exempt(context) {
        return Ok(false);
    }
    if round.is_second && round.last != *object {
        round.something_changed();
    }
    let question = Question::new(context, object);
    let (mut current, mut is_changed) = (Versioned { form: OWN, value: std::mem::take(object) }, false);
    for hook in hooks.iter() {
        let Some(form) = question.form_for(hook, &current.value)? else { continue };
        current = question.brought(current, form).await?;
        let old = question.old(form).await?;
        if !question.meets_conditions(hook, &current, &old)? || round.is_second && !round.due.contains(&hook.id) {
            continue;
        }
        if let Some((is_different, filled)) = question.change(hook, &current, old).await? {
            current.value = filled;
            if is_different {
                round.something_changed();
                is_changed = true;
            }
        }
        if hook.is_reinvoked {
            round.invoked.insert(hook.id.clone());
        }
    }
    *object = question.brought(current, OWN).await?.value;
    round.is_second = true;
    round.last = object.clone();
    Ok(is_changed)
}

/// Asks all validating webhooks about `object`, which is null for a deletion.
pub async fn validate(context: &Context<'_>, object: &Value) -> Result<()> {
    let hooks = context.server.webhooks.validating(context.snapshot);
    if hooks.is_empty() || is_exempt(context) {
        return Ok(());
    }
    let question = Question::new(context, object);
    let mut calls = Vec::new();
    for hook in hooks.iter() {
        let Some(form) = question.form_for(hook, object)? else { continue };
        let seen = question.brought(Versioned { form: OWN, value: object.clone() }, form).await?;
        let old = question.old(form).await?;
        if !question.meets_conditions(hook, &seen, &old)? {
            continue;
        }
        let request = question.request(&seen, old);
        calls.push(async move { tolerated(context, hook, ask(context, hook, request, false).await).map(drop) });
    }
    if !calls.is_empty() && context.requester.deadline <= Instant::now() {
        return Err(timed_out());
    }
    join_all(calls).await.into_iter().collect()
}

fn is_exempt(context: &Context<'_>) -> bool {
    let kind = &context.target.kind;
    kind.group == GROUP && EXEMPT.contains(&kind.kind.as_ref())
}

fn timed_out() -> Status {
    Status::timeout("Timeout: request did not complete within requested timeout")
}

/// Why a webhook does not let a request pass.
enum Failure {
    /// It could not be asked, or gave no answer: its failure policy decides.
    Call(String),
    Refused(Status),
}

/// Asks one webhook; an answer that allows.
async fn ask(context: &Context<'_>, hook: &Hook, request: Value, is_mutating: bool) -> std::result::Result<Verdict, Failure> {
    if context.is_dry_run && !hook.is_harmless {
        return Err(Failure::Refused(review::dry_run_unsupported(&hook.name)));
    }
    let review = Review::new(hook, request).map_err(Failure::Call)?;
    let destination = hook.destination.as_ref().map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
    let deadline = context.requester.deadline.min(Instant::now() + hook.timeout);
    let answer = context.server.outgoing.post(destination, &review.request, Some(deadline)).await;
    let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    let verdict = review.read(&answer, is_mutating).map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
    verdict.warnings.iter().for_each(|it| context.requester.warn(it));
    match verdict.is_allowed {
        true => Ok(verdict),
        false => Err(Failure::Refused(verdict.refusal(&hook.name))),
    }
}

/// What came of a call under the webhook's failure policy; `None` where its failure is ignored.
fn tolerated<T>(context: &Context<'_>, hook: &Hook, answered: std::result::Result<T, Failure>) -> Result<Option<T>> {
    match answered {
        Ok(answer) => Ok(Some(answer)),
        Err(Failure::Refused(status)) => Err(status),
        Err(Failure::Call(why)) if hook.fails_open => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            if context.requester.deadline <= Instant::now() { Err(timed_out()) } else { Ok(None) }
        }
        Err(Failure::Call(why)) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name))),
    }
}

/// An object, null for none, in one of the forms of a question.
struct Versioned {
    form: usize,
    value: Value,
}

/// How a request can be put: in its own version, or in another one of the same objects.
struct Form {
    place: Place,
    kind: Arc<Kind>,
    version: usize,
}

impl Form {
    fn view(&self) -> View<'_> {
        View { kind: &self.kind, version: &self.kind.versions[self.version] }
    }
}

/// The request's own form stands first.
const OWN: usize = 0;

/// A request as it is put to webhooks.
struct Question<'a> {
    context: &'a Context<'a>,
    forms: Vec<Form>,
    places: Vec<Place>,
    /// Whether what is sent is the object itself; what a subresource takes beside it has one form only.
    is_object: bool,
    /// That of the request; a namespace is its own.
    namespace: String,
    name: String,
}

impl<'a> Question<'a> {
    fn new(context: &'a Context<'a>, object: &Value) -> Self {
        let target = context.target;
        let registry = context.server.registry.load();
        let resource = target.kind.resource();
        let rows = registry.iter().filter(|it| it.resource() == resource);
        let served = rows.flat_map(|kind| (0..kind.versions.len()).filter(|at| kind.versions[*at].is_served).map(move |at| (kind.clone(), at)));
        let form = |kind: Arc<Kind>, version: usize| Form { place: place(&kind, version, target.subresource_name()), kind, version };
        let own = form(target.kind.clone(), target.version_at());
        let has_part = |kind: &Kind| target.subresource.is_none() || kind.subresource(target.subresource_name()).is_some();
        let others = served.filter(|(kind, _)| has_part(kind)).map(|(kind, at)| form(kind, at)).filter(|it| it.place != own.place);
        let forms: Vec<Form> = others.collect();
        let forms: Vec<Form> = std::iter::once(own).chain(forms).collect();
        let name = if target.name.is_empty() { object.name() } else { &target.name };
        let is_namespace = resource == NAMESPACES;
        Self {
            context,
            places: forms.iter().map(|it| it.place.clone()).collect(),
            forms,
            is_object: target.body_type().1 == target.kind.kind,
            namespace: if is_namespace { name } else { &target.namespace }.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The form in which a webhook is asked, if it is (`ShouldCallHook`).
    fn form_for(&self, hook: &Hook, object: &Value) -> Result<Option<usize>> {
        let namespace = self.matches_namespace(hook, object);
        if namespace == Ok(false) || !self.matches_object(hook, object).unwrap_or(true) {
            return Ok(None);
        }
        let Some(place) = hook.matched(self.context.operation, &self.places[OWN], &self.places) else { return Ok(None) };
        namespace?;
        self.matches_object(hook, object)?;
        Ok(self.places.iter().position(|it| it == place))
    }

    fn matches_namespace(&self, hook: &Hook, object: &Value) -> Result<bool> {
        if self.namespace.is_empty() && self.places[OWN].resource != NAMESPACES {
            return Ok(true);
        }
        let selector = hook.namespaces.as_ref().map_err(Status::internal)?;
        if selector.is_everything() {
            return Ok(true);
        }
        let is_whole = self.context.target.kind.resource() == NAMESPACES && self.context.target.subresource.is_none();
        if is_whole && matches!(self.context.operation, Operation::Create | Operation::Update) {
            return Ok(selector.matches_object(object));
        }
        let found = self.context.snapshot.get(&Key::new(NAMESPACES, "", &self.namespace));
        let found = found.ok_or_else(|| Status::not_found(&GroupResource::new("", NAMESPACES), &self.namespace))?;
        Ok(selector.matches_with(|key| found.header.label(key)))
    }

    fn matches_object(&self, hook: &Hook, object: &Value) -> Result<bool> {
        let selector = hook.objects.as_ref().map_err(Status::internal)?;
        let is_selected = |object: &Value| object.is_object() && selector.matches_object(object);
        Ok(selector.is_everything() || is_selected(object) || self.context.old.is_some_and(is_selected))
    }

    /// The object in another form.
    async fn brought(&self, object: Versioned, form: usize) -> Result<Versioned> {
        if object.form == form || object.value.is_null() || !self.is_object {
            return Ok(Versioned { form, ..object });
        }
        let (from, to) = (self.forms[object.form].view(), self.forms[form].view());
        Ok(Versioned { form, value: self.context.server.convert(from, to, object.value).await.map_err(|it| Status::internal(it.message))? })
    }

    /// The object as it was, null for none, in a form.
    async fn old(&self, form: usize) -> Result<Value> {
        let old = Versioned { form: OWN, value: self.context.old.cloned().unwrap_or_default() };
        Ok(self.brought(old, form).await?.value)
    }

    /// `AdmissionRequest`, without its uid.
    fn request(&self, object: &Versioned, old: Value) -> Value {
        let mut request = self.attributes(object.form);
        request["object"] = object.value.clone();
        request["oldObject"] = old;
        request
    }

    /// An `AdmissionRequest` without its objects: the `request` of expressions.
    fn attributes(&self, form: usize) -> Value {
        let (context, form) = (self.context, &self.forms[form]);
        let mut request = json!({
            "kind": self.kind(form), "resource": resource(&form.place),
            "requestKind": self.kind(&self.forms[OWN]), "requestResource": resource(&self.places[OWN]),
            "operation": context.operation.as_str(), "userInfo": user_info(&context.requester.user),
            "dryRun": context.is_dry_run, "options": context.options,
        });
        let subresource = context.target.subresource_name();
        for (field, text) in [("subResource", subresource), ("requestSubResource", subresource), ("name", &self.name), ("namespace", &self.namespace)] {
            if !text.is_empty() {
                request[field] = text.into();
            }
        }
        request
    }

    /// Whether all match conditions hold. One that fails fails the request or passes the webhook over, by its policy; one that does not hold
    /// passes it over whatever else fails.
    fn meets_conditions(&self, hook: &Hook, object: &Versioned, old: &Value) -> Result<bool> {
        if hook.conditions.is_empty() {
            return Ok(true);
        }
        let failures = match self.evaluate(hook, object, old) {
            Some(failures) if failures.is_empty() => return Ok(true),
            Some(failures) if !hook.fails_open => failures,
            _ => return Ok(false),
        };
        let why = if let [one] = failures.as_slice() { one.clone() } else { format!("[{}]", failures.join(", ")) };
        Err(Status::forbidden(&self.context.target.resource(), &self.name, why))
    }

    /// Why conditions could not be evaluated; `None` when one does not hold.
    fn evaluate(&self, hook: &Hook, object: &Versioned, old: &Value) -> Option<Vec<String>> {
        let (request, asker) = (self.attributes(object.form), Asker { question: self });
        let own = cel::authorizer::Question {
            group: self.places[OWN].group.clone(),
            resource: self.places[OWN].resource.clone(),
            subresource: self.places[OWN].subresource.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ..Default::default()
        };
        let bindings = cel::Bindings::default()
            .with("object", Val::json(&object.value))
            .with("oldObject", Val::json(old))
            .with("request", Val::json(&request))
            .with("namespaceObject", Val::Null)
            .with("authorizer", Val::Check(Check::new(&asker).into()))
            .with("authorizer.requestResource", Val::Check(Check::of_resource(&asker, own).into()));
        let (mut budget, mut failures) = (cel::Budget::new(cel::MATCH_BUDGET), Vec::new());
        for (text, program) in &hook.conditions {
            let result = program.as_ref().map_err(|why| format!("compilation error: {why}")).and_then(|it| match it.evaluate(&bindings, &mut budget) {
                Err(EvalError::Failed(why)) => Err(format!("expression '{text}' resulted in error: {why}")),
                other => other.map_err(|why| why.to_string()),
            });
            match result {
                Ok(Val::Bool(false)) => return None,
                Ok(_) => (),
                Err(why) => failures.push(why),
            }
        }
        Some(failures)
    }

    fn kind(&self, form: &Form) -> Value {
        let (own_version, kind) = self.context.target.body_type();
        let api_version = if self.is_object { form.view().api_version() } else { own_version };
        let kind = if self.is_object { form.kind.kind.as_ref() } else { kind };
        let (group, version) = split_api_version(&api_version);
        json!({"group": group, "version": version, "kind": kind})
    }

    /// Asks a mutating webhook: the object with what it has changed and its defaults, and whether that is anything. `None` without a patch.
    async fn change(&self, hook: &Hook, object: &Versioned, old: Value) -> Result<Option<(bool, Value)>> {
        let answered = ask(self.context, hook, self.request(object, old), true).await;
        let changed = answered.and_then(|verdict| self.patched(hook, object, &verdict));
        Ok(tolerated(self.context, hook, changed)?.flatten())
    }

    fn patched(&self, hook: &Hook, object: &Versioned, verdict: &Verdict) -> std::result::Result<Option<(bool, Value)>, Failure> {
        if verdict.patch.is_empty() {
            return Ok(None);
        }
        let undecodable = |why: serde_json::Error| Failure::Call(format!("received undecodable patch in webhook response: {why}"));
        let patch: json_patch::Patch = serde_json::from_slice(&verdict.patch).map_err(undecodable)?;
        if patch.0.is_empty() {
            return Ok(None);
        }
        let internal = |why: String| Failure::Refused(Status::internal(why));
        if object.value.is_null() {
            return Err(internal(format!("admission webhook {:?} attempted to modify the object, which is not supported for this operation", hook.name)));
        }
        let mut new = object.value.clone();
        json_patch::patch(&mut new, &patch).map_err(|why| internal(why.to_string()))?;
        let (decoded, filled) = self.decoded(object.form, new).map_err(|status| internal(status.message))?;
        Ok(Some((decoded != object.value, filled)))
    }

    /// A patched object, read as a client's would be, and the same with its defaults.
    fn decoded(&self, form: usize, value: Value) -> Result<(Value, Value)> {
        let view = self.forms[form].view();
        let schema = match self.is_object {
            true => view.version.schema.clone(),
            false => self.context.target.body_schema().ok_or_else(|| Status::internal("the type of the object is not known"))?,
        };
        let mut decoded = codec::decode_value(value, &schema)?.0;
        if self.is_object && view.kind.custom.is_some() {
            prune::prune(&mut decoded, &schema);
        }
        let mut filled = decoded.clone();
        default::default(&mut filled, &schema);
        if self.is_object {
            (view.kind.strategy.default)(&mut filled);
        }
        Ok((decoded, filled))
    }
}

/// Answers the questions of expressions for the user of the request.
struct Asker<'a> {
    question: &'a Question<'a>,
}

impl cel::authorizer::Authorizer for Asker<'_> {
    fn authorize(&self, asked: &cel::authorizer::Question) -> cel::authorizer::Decision {
        let context = self.question.context;
        let account = asked.service_account.as_ref().map(|(namespace, name)| User::service_account(namespace, name));
        let attributes = Attributes {
            verb: asked.verb.clone(),
            path: asked.path.clone(),
            group: asked.group.clone(),
            version: "*".to_owned(),
            resource: asked.resource.clone(),
            subresource: asked.subresource.clone(),
            namespace: asked.namespace.clone(),
            name: asked.name.clone(),
        };
        let user = account.as_ref().unwrap_or(&context.requester.user);
        let (is_allowed, reason) = match context.server.authorizer.authorize(user, &attributes, context.snapshot) {
            Decision::Allow(reason) => (true, reason),
            Decision::NoOpinion(reason) => (false, reason),
        };
        cel::authorizer::Decision { is_allowed, reason, error: String::new() }
    }
}

const NAMESPACES: &str = "namespaces";

fn place(kind: &Kind, version: usize, subresource: &str) -> Place {
    Place {
        group: kind.group.to_string(),
        version: kind.versions[version].name.to_string(),
        resource: kind.plural.to_string(),
        subresource: subresource.to_owned(),
        is_namespaced: kind.is_namespaced(),
    }
}

fn resource(place: &Place) -> Value {
    json!({"group": place.group, "version": place.version, "resource": place.resource})
}
