//! Dynamic admission: webhooks that users configure change and refuse requests.
//!
//! Mutating ones are asked one after the other, those of a configuration in their order and configurations by name; validating ones all at once.
//! Each sees the object in the version that its rules name. What happens when one cannot be asked is its failure policy.
//! Source: apiserver `pkg/admission/plugin/webhook/{generic,mutating,validating}`.

mod hook;
mod review;

use std::sync::Arc;

use futures::future::join_all;
use tokio::time::Instant;

use self::{hook::Hook, review::Verdict};
use super::{
    admission::Context,
    derived::Derived,
    matching::{GROUP, OWN, Question, Round, Versioned, is_exempt},
    outgoing::Review,
};
use crate::{
    kinds::expressions::meets,
    meta::{Result, Status, Value},
    schema::cel::{Bindings, Val},
    store::Snapshot,
};

/// The webhooks that are configured.
#[derive(Default)]
pub struct Webhooks {
    mutating: Derived<Vec<Hook>>,
    validating: Derived<Vec<Hook>>,
}

fn read(derived: &Derived<Vec<Hook>>, snapshot: &Snapshot, kind: &str) -> Arc<Vec<Hook>> {
    let resource = format!("{GROUP}/{kind}webhookconfigurations");
    derived.get(snapshot, &[&resource], |_| snapshot.list(&resource, None, None).flat_map(|it| Hook::all(&it.value())).collect())
}

/// Lets the mutating webhooks change `object`, which is null for a deletion. Returns whether one of them did.
pub async fn mutate(context: &Context<'_>, object: &mut Value, round: &mut Round) -> Result<bool> {
    let hooks = read(&context.server.webhooks.mutating, context.snapshot, "mutating");
    if hooks.is_empty() || is_exempt(context) {
        return Ok(false);
    }
    round.begin(object);
    let question = Question::new(context, object);
    let (mut current, mut is_changed) = (Versioned { form: OWN, value: std::mem::take(object) }, false);
    for hook in hooks.iter() {
        let Some(form) = question.form_for(&hook.criteria, &current.value)? else { continue };
        current = question.brought(current, form).await?;
        let old = question.old(form).await?;
        if !question.meets_conditions(hook, &current, &old)? || !round.is_due(&hook.id) {
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
            round.remember(&hook.id);
        }
    }
    *object = question.brought(current, OWN).await?.value;
    round.end(object);
    Ok(is_changed)
}

/// Asks all validating webhooks about `object`, which is null for a deletion.
pub async fn validate(context: &Context<'_>, object: &Value) -> Result<()> {
    let hooks = read(&context.server.webhooks.validating, context.snapshot, "validating");
    if hooks.is_empty() || is_exempt(context) {
        return Ok(());
    }
    let question = Question::new(context, object);
    let mut calls = Vec::new();
    for hook in hooks.iter() {
        let Some(form) = question.form_for(&hook.criteria, object)? else { continue };
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
        // `NewDryRunUnsupportedErr`
        return Err(Failure::Refused(Status::bad_request(format!("admission webhook {:?} does not support dry run", hook.name))));
    }
    let review = Review::new("admission.k8s.io", "AdmissionReview", &hook.review_versions, request);
    let unknown = || Failure::Call("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned());
    let review = review.ok_or_else(unknown)?;
    let destination = hook.destination.as_ref().map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
    let deadline = context.requester.deadline.min(Instant::now() + hook.timeout);
    let answer = context.server.outgoing.post(destination, &review.value, Some(deadline)).await;
    let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    let verdict = Verdict::read(&review, &answer, is_mutating).map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
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

impl Question<'_> {
    /// Whether all match conditions hold.
    fn meets_conditions(&self, hook: &Hook, object: &Versioned, old: &Value) -> Result<bool> {
        if hook.conditions.is_empty() {
            return Ok(true);
        }
        let request = self.attributes(object.form);
        let bindings = self.bind(Bindings::default())
            .with("object", Val::json(&object.value))
            .with("oldObject", Val::json(old))
            .with("request", Val::json(&request))
            .with("namespaceObject", Val::Null);
        meets(&hook.conditions, &bindings, hook.fails_open).map_err(|why| Status::forbidden(&self.context.target.resource(), &self.name, why))
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
}
