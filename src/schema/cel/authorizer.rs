//! `authorizer.group('apps').resource('deployments').check('create').allowed()`. Follows apiserver `pkg/cel/library/authz.go`.

use std::{fmt, sync::Arc};

use serde::Deserialize;

use super::value::{Eval, Val, fail, no_overload};
use crate::meta::names;

/// Who answers the questions of an expression: the API server's authorizer for the user of the request.
pub trait Authorizer: Sync {
    fn authorize(&self, question: &Attributes) -> Decision;
}

/// `authorizer.Attributes`: one question to the authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Namespace and name of the service account it is about; the user of the request when `None`.
    pub service_account: Option<(String, String)>,
    /// A path that is no resource (`/healthz`); empty for resources.
    pub path: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// `get`, `list`, `create`, `impersonate` …; for other paths the HTTP method in lower case.
    pub verb: String,
}

impl Attributes {
    /// The question whether `verb` may be done to a resource.
    pub fn new(verb: &str, group: &str, resource: &str) -> Self {
        Self { verb: verb.to_owned(), group: group.to_owned(), resource: resource.to_owned(), ..Self::default() }
    }

    pub fn is_resource(&self) -> bool {
        self.path.is_empty()
    }

    /// What a call says of the question that is at that stage, and the stage that it leads to.
    fn part(&mut self, stage: Stage, function: &str) -> Eval<(&mut String, Stage)> {
        Ok(match (stage, function) {
            (Stage::Start, "path") => (&mut self.path, Stage::Path),
            (Stage::Start, "group") => (&mut self.group, Stage::Group),
            (Stage::Group, "resource") => (&mut self.resource, Stage::Resource),
            (Stage::Resource, "subresource") => (&mut self.subresource, stage),
            (Stage::Resource, "namespace") => (&mut self.namespace, stage),
            (Stage::Resource, "name") => (&mut self.name, stage),
            _ => return no_overload(),
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub is_allowed: bool,
    /// If there is one to tell.
    pub reason: String,
    /// Why no decision could be made; empty when one was.
    pub error: String,
}

/// A question on its way, or the answer.
#[derive(Clone)]
pub struct Check<'a> {
    authorizer: &'a dyn Authorizer,
    stage: Stage,
    question: Attributes,
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
        Self { authorizer, stage: Stage::Start, question: Attributes::default(), decision: Decision::default() }
    }

    /// `authorizer.requestResource`: the resource of the request itself.
    pub fn of_resource(authorizer: &'a dyn Authorizer, question: Attributes) -> Self {
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

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Eval<Val<'a>> {
    let [Val::Check(check), rest @ ..] = args else { return no_overload() };
    let text = |it: &Val<'a>| if let Val::String(text) = it { Ok(text.to_string()) } else { no_overload() };
    let texts: Vec<String> = rest.iter().map(text).collect::<Eval<_>>()?;
    let mut next = check.as_ref().clone();
    let (question, decision) = (&mut next.question, &check.decision);
    next.stage = match (check.stage, function, &texts[..]) {
        (Stage::Start, "path", [text]) | (Stage::Group, "resource", [text]) if text.trim().is_empty() => return fail(format!("{function} must not be empty")),
        (Stage::Start, "serviceAccount", [_, name]) if !names::dns1123_subdomain(name).is_empty() => return fail("Invalid service account name"),
        (Stage::Start, "serviceAccount", [namespace, _]) if !names::dns1123_label(namespace).is_empty() => return fail("Invalid service account namespace"),
        (Stage::Start, "serviceAccount", [namespace, name]) => {
            question.service_account = Some((namespace.clone(), name.clone()));
            Stage::Start
        }
        (Stage::Path | Stage::Resource, "check", [verb]) => {
            question.verb = verb.clone();
            next.decision = check.authorizer.authorize(question);
            Stage::Decided
        }
        // RBAC looks at no selectors.
        (Stage::Resource, "fieldSelector" | "labelSelector", [_]) => Stage::Resource,
        (stage, _, [text]) => {
            let (part, stage) = question.part(stage, function)?;
            part.clone_from(text);
            stage
        }
        (Stage::Decided, "allowed", []) => return Ok(Val::Bool(decision.is_allowed)),
        (Stage::Decided, "reason", []) => return Ok(Val::text(&*decision.reason)),
        (Stage::Decided, "errored", []) => return Ok(Val::Bool(!decision.error.is_empty())),
        (Stage::Decided, "error", []) => return Ok(Val::text(&*decision.error)),
        _ => return no_overload(),
    };
    Ok(Val::Check(Arc::new(next)))
}
