//! `authorizer.group('apps').resource('deployments').check('create').allowed()`. Follows apiserver `pkg/cel/library/authz.go`.

use std::{fmt, rc::Rc};

use super::{
    functions::Native,
    value::{Eval, Val, fail, no_overload},
};
use crate::meta::names;

/// Who answers the questions of an expression: the API server's authorizer for the user of the request.
pub trait Authorizer {
    fn authorize(&self, question: &Question) -> Decision;
}

/// What may be done, by whom.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Namespace and name of the service account it is about; the user of the request when `None`.
    pub service_account: Option<(String, String)>,
    /// A path that is no resource; empty for a resource.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    pub verb: String,
}

#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub is_allowed: bool,
    pub reason: String,
    /// Why no decision could be made; empty when one was.
    pub error: String,
}

/// A question on its way, or the answer.
#[derive(Clone)]
pub struct Check<'a> {
    authorizer: &'a dyn Authorizer,
    stage: Stage,
    question: Question,
    decision: Decision,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Start,
    Path,
    Group,
    Resource,
    Decided,
}

impl<'a> Check<'a> {
    pub fn new(authorizer: &'a dyn Authorizer) -> Self {
        Self { authorizer, stage: Stage::Start, question: Question::default(), decision: Decision::default() }
    }

    /// `authorizer.requestResource`: the resource of the request itself.
    pub fn of_resource(authorizer: &'a dyn Authorizer, question: Question) -> Self {
        Self { stage: Stage::Resource, question, ..Self::new(authorizer) }
    }

    pub fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Start => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
            Stage::Decided => "kubernetes.authorization.Decision",
        }
    }
}

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("stage", &self.stage).field("question", &self.question).finish()
    }
}

#[rustfmt::skip]
pub const TABLE: &[(&str, Native)] = &[
    ("path", |a| next(a, Stage::Start, Stage::Path, |it, text| if text.trim().is_empty() { fail("path must not be empty") } else { it.path = text; Ok(()) })),
    ("group", |a| next(a, Stage::Start, Stage::Group, |it, text| { it.group = text; Ok(()) })),
    ("resource", |a| next(a, Stage::Group, Stage::Resource, |it, text| if text.trim().is_empty() { fail("resource must not be empty") } else { it.resource = text; Ok(()) })),
    ("subresource", |a| next(a, Stage::Resource, Stage::Resource, |it, text| { it.subresource = text; Ok(()) })),
    ("namespace", |a| next(a, Stage::Resource, Stage::Resource, |it, text| { it.namespace = text; Ok(()) })),
    ("name", |a| next(a, Stage::Resource, Stage::Resource, |it, text| { it.name = text; Ok(()) })),
    ("fieldSelector", |a| next(a, Stage::Resource, Stage::Resource, |it, text| { it.field_selector = text; Ok(()) })),
    ("labelSelector", |a| next(a, Stage::Resource, Stage::Resource, |it, text| { it.label_selector = text; Ok(()) })),
    ("serviceAccount", |a| match a {
        [Val::Check(check), Val::String(namespace), Val::String(name)] if check.stage == Stage::Start => {
            if !names::dns1123_subdomain(name).is_empty() {
                return fail("Invalid service account name");
            }
            if !names::dns1123_label(namespace).is_empty() {
                return fail("Invalid service account namespace");
            }
            let mut check = check.as_ref().clone();
            check.question.service_account = Some((namespace.to_string(), name.to_string()));
            Ok(Val::Check(Rc::new(check)))
        }
        _ => no_overload(),
    }),
    ("check", |a| match a {
        [Val::Check(check), Val::String(verb)] if matches!(check.stage, Stage::Path | Stage::Resource) => {
            let question = Question { verb: verb.to_string(), ..check.question.clone() };
            let decision = check.authorizer.authorize(&question);
            Ok(Val::Check(Rc::new(Check { authorizer: check.authorizer, stage: Stage::Decided, question, decision })))
        }
        _ => no_overload(),
    }),
    ("allowed", |a| decided(a, |it| Val::Bool(it.is_allowed))),
    ("reason", |a| decided(a, |it| Val::text(it.reason.as_str()))),
    ("errored", |a| decided(a, |it| Val::Bool(!it.error.is_empty()))),
    ("error", |a| decided(a, |it| Val::text(it.error.as_str()))),
];

fn next<'a>(args: &[Val<'a>], from: Stage, to: Stage, set: fn(&mut Question, String) -> Eval<()>) -> Eval<Val<'a>> {
    match args {
        [Val::Check(check), Val::String(text)] if check.stage == from => {
            let mut check = Check { stage: to, ..check.as_ref().clone() };
            set(&mut check.question, text.to_string())?;
            Ok(Val::Check(Rc::new(check)))
        }
        _ => no_overload(),
    }
}

fn decided<'a>(args: &[Val<'a>], read: fn(&Decision) -> Val<'static>) -> Eval<Val<'a>> {
    match args {
        [Val::Check(check)] if check.stage == Stage::Decided => Ok(read(&check.decision)),
        _ => no_overload(),
    }
}
