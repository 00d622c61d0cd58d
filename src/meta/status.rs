//! `metav1.Status`: the one error type of the API, in upstream's wording.
//! Source: apimachinery `pkg/api/errors/errors.go`, apiserver `pkg/endpoints/handlers/responsewriters/errors.go`.

use std::{borrow::Cow, collections::HashSet, fmt};

use serde_json::{Value, json};

use super::{
    field::FieldErrors,
    object::{GroupResource, Meta},
};

pub type Result<T> = std::result::Result<T, Status>;

/// An error as clients see it. What happened inside belongs into the log, not in here.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    pub reason: Cow<'static, str>,
    pub message: String,
    pub details: Option<Box<Details>>,
}

/// What the error is about. `kind` holds the resource (plural) for most errors and the kind for `Invalid`, as upstream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
    /// Where an expired list may go on; stands in the status' own metadata.
    pub continues: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    pub reason: Cow<'static, str>,
    pub message: String,
    pub field: String,
}

/// Several errors as one text (`utilerrors.NewAggregate`): each once, in brackets unless it is alone.
pub fn aggregate<S: AsRef<str>>(errors: &[S]) -> Option<String> {
    let mut seen = HashSet::new();
    let told: Vec<&str> = errors.iter().map(AsRef::as_ref).filter(|it| seen.insert(*it)).collect();
    match told.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: Cow::Borrowed(reason), message: message.into(), details: None }
    }

    fn about(mut self, resource: &GroupResource, name: &str) -> Self {
        self.details = Some(Box::new(Details::of(resource, name)));
        self
    }

    pub fn with_cause(mut self, reason: &'static str, message: impl Into<String>, field: impl Into<String>) -> Self {
        let details = self.details.get_or_insert_default();
        details.causes.push(Cause { reason: Cow::Borrowed(reason), message: message.into(), field: field.into() });
        self
    }

    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found")).about(resource, name)
    }

    /// No such path: what upstream's mux answers.
    pub fn no_route() -> Self {
        Self { details: Some(Box::default()), ..Self::new(404, "NotFound", "the server could not find the requested resource") }
    }

    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists")).about(resource, name)
    }

    /// `NewGenerateNameConflict`.
    pub fn generate_name_conflict(resource: &GroupResource, name: &str, retry_after: u32) -> Self {
        let message = format!("{resource} \"{name}\" already exists, the server was not able to generate a unique name for the object");
        Self::new(409, "AlreadyExists", message).about(resource, name).with_retry_after(retry_after)
    }

    pub fn conflict(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// The conflict of optimistic concurrency (`registry.OptimisticLockErrorMsg`).
    pub fn modified(resource: &GroupResource, name: &str) -> Self {
        Self::conflict(resource, name, "the object has been modified; please apply your changes to the latest version and try again")
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: FieldErrors) -> Self {
        let kind = GroupResource::new(group.to_owned(), kind.to_owned());
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = aggregate(&texts).map(|it| format!(": {it}")).unwrap_or_default();
        let mut status = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid{text}")).about(&kind, name);
        status.details.get_or_insert_default().causes = errors.iter().map(|it| it.to_cause()).collect();
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = match (resource.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} \"{name}\" is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// `NewGenericServerResponse` for 405 on paths that exist with other methods.
    pub fn method_not_allowed() -> Self {
        Self { details: Some(Box::default()), ..Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource") }
    }

    /// `NewNotAcceptableError`: none of the asked media types can be served.
    pub fn not_acceptable(served: &[&str]) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {}", served.join(", ")))
    }

    /// What no route of the path takes or answers: said before the API is asked (go-restful's `CurlyRouter`).
    pub fn not_routed(code: u16) -> Self {
        let (reason, message) = match code {
            406 => ("NotAcceptable", "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf"),
            _ => ("UnsupportedMediaType", "415: Unsupported Media Type"),
        };
        Self { details: Some(Box::default()), ..Self::new(code, reason, message) }
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", "));
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// A resourceVersion or continue token older than the kept history (`NewResourceExpired`).
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The same, with a token by which the rest can be had from what is there now (`handleCompactedErrorForPaging`).
    pub fn expired_but_continues(token: String) -> Self {
        let mut status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue \
             parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token \
             results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and \
             now may show up in the list.",
        );
        status.details.get_or_insert_default().continues = token;
        status
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with_retry_after(retry_after)
    }

    /// The reader asks for a revision that has not been reached (`storage.NewTooLargeResourceVersionError`).
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        Self::new(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"))
            .with_cause("ResourceVersionTooLarge", "Too large resource version", "")
            .with_retry_after(1)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn internal(why: impl fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {why}")).with_cause("", why.to_string(), "")
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// The JSON object that goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message, "reason": self.reason, "code": self.code,
        });
        if self.reason.is_empty() {
            _ = body.remove_at(&["reason"]);
        }
        if let Some(details) = &self.details {
            let value = details.to_value();
            if !details.continues.is_empty() {
                body["metadata"]["continue"] = details.continues.as_str().into();
            }
            // A mere place to go on is no detail.
            if details.continues.is_empty() || value != json!({}) {
                body["details"] = value;
            }
        }
        body
    }

    /// `Status` of a deletion that removed the object (`kind: Status, status: Success`).
    pub fn success(resource: &GroupResource, name: &str, uid: &str) -> Value {
        let details = Details { uid: uid.into(), ..Details::of(resource, name) };
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_value()})
    }
}

impl Details {
    fn of(resource: &GroupResource, name: &str) -> Self {
        Self { name: name.to_owned(), group: resource.group.to_string(), kind: resource.resource.to_string(), ..Self::default() }
    }

    /// Of a Status that somebody else has made.
    pub fn from_value(details: &Value) -> Self {
        let text = |value: &Value, field: &str| value.text(field).to_owned();
        let cause = |it: &Value| Cause { reason: text(it, "reason").into(), message: text(it, "message"), field: text(it, "field") };
        Self {
            name: text(details, "name"),
            group: text(details, "group"),
            kind: text(details, "kind"),
            uid: text(details, "uid"),
            causes: details.items_at(&["causes"]).iter().map(cause).collect(),
            retry_after_seconds: details.int_at(&["retryAfterSeconds"]).and_then(|it| u32::try_from(it).ok()).unwrap_or(0),
            ..Self::default()
        }
    }

    fn to_value(&self) -> Value {
        let causes = self.causes.iter().map(|it| sparse(json!({"reason": it.reason, "message": it.message, "field": it.field})));
        sparse(json!({
            "name": self.name, "group": self.group, "kind": self.kind, "uid": self.uid,
            "causes": causes.collect::<Vec<_>>(), "retryAfterSeconds": self.retry_after_seconds,
        }))
    }
}

/// An object without the fields in which nothing is set.
fn sparse(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, it| *it != "" && *it != 0 && it.as_array().is_none_or(|it| !it.is_empty()));
    }
    object
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
