//! Kinds that are only the answer to a question: TokenReview, SubjectAccessReview and its relatives, SelfSubjectReview, TokenRequest.
//! Source: kubernetes `pkg/registry/{authentication,authorization}`, `pkg/registry/core/serviceaccount/storage/token.go`,
//! `pkg/apis/{authentication,authorization}/validation`.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan};
use serde_json::json;

use super::{
    Server,
    authz::Decision,
    identity::{Attributes, User},
    rbac::Rule,
    tokens::{Find, Grant, Reference, Tokens},
};
use crate::{
    base::clock,
    kinds::Kind,
    meta::{FieldError, FieldErrors, GroupVersionKind, Meta, Path, Result, Status, Value, object::GroupResource},
    store::{Key, Stored},
};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

const EXPIRATION_SECONDS: i64 = 3600;
const MIN_EXPIRATION_SECONDS: i64 = 600;
const MAX_EXPIRATION_SECONDS: i64 = 1 << 32;
/// What nodes ask for in volumes of every pod. Such a token lives for a year, as clients may not re-read it, but is remarked after
/// this time (`--service-account-extend-token-expiration`).
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;

/// What the answers are made from.
struct Context<'a> {
    user: &'a User,
    /// That of the path.
    namespace: &'a str,
    decide: &'a dyn Fn(&User, &Attributes) -> Decision,
    rules: &'a dyn Fn(&User, &str) -> Vec<Rule>,
    tokens: &'a Tokens,
    find: Find<'a>,
    now: Timestamp,
}

type Answer = fn(&Context<'_>, Value) -> Result<Value>;

const ANSWERS: [(&str, &str, Answer); 6] = [
    (AUTHENTICATION, "TokenReview", token_review),
    (AUTHENTICATION, "SelfSubjectReview", self_subject_review),
    (AUTHORIZATION, "SubjectAccessReview", subject_access_review),
    (AUTHORIZATION, "LocalSubjectAccessReview", local_subject_access_review),
    (AUTHORIZATION, "SelfSubjectAccessReview", self_subject_access_review),
    (AUTHORIZATION, "SelfSubjectRulesReview", self_subject_rules_review),
];

/// Answers a create of a review kind: the object with its status. `namespace` is that of the path.
pub async fn answer(server: &Server, user: &User, kind: &Kind, namespace: &str, review: Value) -> Result<Value> {
    let found = ANSWERS.iter().find(|(group, name, _)| *group == kind.group && *name == kind.kind);
    let (_, _, answer) = found.ok_or_else(Status::method_not_allowed)?;
    let snapshot = server.store.snapshot();
    let index = server.authorizer.index(&snapshot);
    let context = Context {
        user,
        namespace,
        decide: &|user, attributes| server.authorizer.authorize(user, attributes, &snapshot),
        rules: &|user, namespace| index.rules_for(user, namespace).0.into_iter().cloned().collect(),
        tokens: &server.tokens,
        find: &|key| snapshot.get(key),
        now: clock::now(),
    };
    answer(&context, review)
}

/// `serviceaccounts/{name}/token`: a TokenRequest with its status. `account` is the stored ServiceAccount.
pub async fn token_request(server: &Server, account: &Value, request: Value) -> Result<Value> {
    let snapshot = server.store.snapshot();
    issue(&server.tokens, account, request, &|key| snapshot.get(key), clock::now())
}

fn token_review(context: &Context<'_>, mut review: Value) -> Result<Value> {
    let token = review.text_at(&["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = texts(&review, &["spec", "audiences"]);
    review["status"] = match context.tokens.verify(token, &audiences, context.now, context.find) {
        Ok(Some(verified)) => json!({"authenticated": true, "user": user_info(&verified.user), "audiences": verified.audiences}),
        Ok(None) => json!({"user": {}, "error": "invalid bearer token"}),
        Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
    };
    Ok(review)
}

fn self_subject_review(context: &Context<'_>, mut review: Value) -> Result<Value> {
    review["metadata"] = json!({"creationTimestamp": clock::rfc3339(context.now)});
    review["status"] = json!({"userInfo": user_info(context.user)});
    Ok(review)
}

fn self_subject_access_review(context: &Context<'_>, review: Value) -> Result<Value> {
    let mut errors = check_attributes(&review);
    errors.extend(check_metadata(&review, "must be empty", &[]));
    decide(context, context.user.clone(), review, errors)
}

fn subject_access_review(context: &Context<'_>, review: Value) -> Result<Value> {
    let mut errors = check_attributes(&review);
    errors.extend(check_subject(&review));
    errors.extend(check_metadata(&review, "must be empty", &[]));
    decide(context, subject(&review), review, errors)
}

fn local_subject_access_review(context: &Context<'_>, mut review: Value) -> Result<Value> {
    if review.namespace().is_empty() {
        review.set_metadata("namespace", context.namespace);
    }
    let mut errors = check_attributes(&review);
    errors.extend(check_subject(&review));
    errors.extend(check_metadata(&review, "must be empty except for namespace", &["namespace"]));
    let namespace = review.text_at(&["spec", "resourceAttributes", "namespace"]);
    if present(&review, "resourceAttributes").is_some() && namespace != review.namespace() {
        errors.push(FieldError::invalid(&Path::new("spec.resourceAttributes.namespace"), namespace, "must match metadata.namespace"));
    }
    if let Some(attributes) = present(&review, "nonResourceAttributes") {
        errors.push(FieldError::invalid(&Path::new("spec.nonResourceAttributes"), attributes.clone(), "disallowed on this kind of request"));
    }
    if errors.is_empty() && review.namespace() != context.namespace {
        return Err(Status::bad_request(format!("spec.resourceAttributes.namespace must match namespace: {}", context.namespace)));
    }
    decide(context, subject(&review), review, errors)
}

fn self_subject_rules_review(context: &Context<'_>, mut review: Value) -> Result<Value> {
    let namespace = review.text_at(&["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let rules = (context.rules)(context.user, namespace);
    let resources: Vec<Value> =
        rules.iter().filter(|it| !it.resources.is_empty()).map(|it| json!(Rule { non_resource_urls: vec![], ..it.clone() })).collect();
    let urls = rules.iter().filter(|it| !it.non_resource_urls.is_empty());
    let urls: Vec<Value> = urls.map(|it| json!({"verbs": it.verbs, "nonResourceURLs": it.non_resource_urls})).collect();
    review["spec"] = json!({});
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": false});
    Ok(review)
}

fn decide(context: &Context<'_>, user: User, mut review: Value, errors: FieldErrors) -> Result<Value> {
    if !errors.is_empty() {
        return Err(Status::invalid(AUTHORIZATION, review.text("kind"), "", errors));
    }
    let Decision { is_allowed, reason } = (context.decide)(&user, &attributes(&review));
    review["status"] = json!({"allowed": is_allowed});
    if !reason.is_empty() {
        review["status"]["reason"] = reason.into();
    }
    Ok(review)
}

/// The question in a review's spec.
fn attributes(review: &Value) -> Attributes {
    if let Some(path) = present(review, "nonResourceAttributes") {
        return Attributes { verb: path.text("verb").to_owned(), path: path.text("path").to_owned(), ..Attributes::default() };
    }
    let asked = |field: &str| review.text_at(&["spec", "resourceAttributes", field]).to_owned();
    let version = Some(asked("version")).filter(|it| !it.is_empty()).unwrap_or_else(|| "*".to_owned());
    Attributes {
        verb: asked("verb"),
        path: String::new(),
        group: asked("group"),
        version,
        resource: asked("resource"),
        subresource: asked("subresource"),
        namespace: asked("namespace"),
        name: asked("name"),
    }
}

fn subject(review: &Value) -> User {
    let extra = review.map_at(&["spec", "extra"]).into_iter().flatten();
    User {
        name: review.text_at(&["spec", "user"]).to_owned(),
        uid: review.text_at(&["spec", "uid"]).to_owned(),
        groups: texts(review, &["spec", "groups"]),
        extra: extra.map(|(key, values)| (key.clone(), texts(values, &[]))).collect(),
    }
}

fn present<'a>(review: &'a Value, field: &str) -> Option<&'a Value> {
    review.at(&["spec", field]).filter(|it| !it.is_null())
}

fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    value.texts_at(path).map(str::to_owned).collect()
}

fn check_attributes(review: &Value) -> FieldErrors {
    let spec = Path::new("spec");
    match (present(review, "resourceAttributes"), present(review, "nonResourceAttributes")) {
        (Some(_), Some(path)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            vec![FieldError::invalid(&spec.child("nonResourceAttributes"), path.clone(), detail)]
        }
        (None, None) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            vec![FieldError::invalid(&spec.child("resourceAttributes"), Value::Null, detail)]
        }
        _ => Vec::new(),
    }
}

fn check_subject(review: &Value) -> Option<FieldError> {
    let is_missing = review.text_at(&["spec", "user"]).is_empty() && review.items_at(&["spec", "groups"]).is_empty();
    is_missing.then(|| FieldError::invalid(&Path::new("spec").child("user"), "", "at least one of user or group must be specified"))
}

fn check_metadata(review: &Value, detail: &'static str, allowed: &[&str]) -> Option<FieldError> {
    let mut fields = review.map_at(&["metadata"])?.iter();
    let is_set = fields.any(|(name, value)| !value.is_null() && name != "managedFields" && !allowed.contains(&name.as_str()));
    is_set.then(|| FieldError::invalid(&Path::new("metadata"), review["metadata"].clone(), detail))
}

/// `UserInfo`.
pub fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// Answers a TokenRequest for `account`.
fn issue(tokens: &Tokens, account: &Value, mut request: Value, find: Find<'_>, now: Timestamp) -> Result<Value> {
    complete(&mut request, account, tokens.audiences())?;
    check_expiration(&request)?;
    request["metadata"]["creationTimestamp"] = clock::rfc3339(now).into();
    let seconds = request.int_at(&["spec", "expirationSeconds"]).unwrap_or(EXPIRATION_SECONDS);
    let mut grant = Grant {
        namespace: account.namespace().to_owned(),
        account: reference(account),
        audiences: texts(&request, &["spec", "audiences"]),
        seconds,
        ..Grant::default()
    };
    bind(&mut grant, &request, find)?;
    let is_for_server = grant.audiences.iter().all(|it| tokens.audiences().contains(it));
    if grant.pod.is_some() && seconds == WARN_ONLY_SECONDS && is_for_server {
        (grant.seconds, grant.warn_after_seconds) = (EXTENDED_SECONDS, Some(seconds));
    }
    let expires = now.checked_add(seconds.seconds()).map_err(Status::internal)?;
    request["status"] = json!({"token": tokens.issue(&grant, now), "expirationTimestamp": clock::rfc3339(expires)});
    Ok(request)
}

/// Fills in what the request leaves open, and checks what it says of the account.
fn complete(request: &mut Value, account: &Value, audiences: &[String]) -> Result<()> {
    let fields =
        [("name", "must match the service account name if specified"), ("namespace", "must match the service account namespace if specified")];
    for (field, detail) in fields {
        let (asked, own) = (request.metadata(field), account.metadata(field));
        if !asked.is_empty() && asked != own {
            let error = FieldError::invalid(&Path::new("metadata").child(field), asked, detail);
            return Err(Status::invalid(AUTHENTICATION, "TokenRequest", account.name(), vec![error]));
        }
    }
    let (asked, own) = (request.uid(), account.uid());
    if !asked.is_empty() && asked != own {
        let why = format!("the UID in the token request ({asked}) does not match the UID of the service account ({own})");
        return Err(Status::conflict(&GroupResource::new(AUTHENTICATION, "TokenRequest"), account.name(), why));
    }
    for field in ["name", "namespace", "uid"] {
        request.set_metadata(field, account.metadata(field));
    }
    if request.items_at(&["spec", "audiences"]).is_empty() {
        request.set_at(&["spec", "audiences"], json!(audiences));
    }
    if request.int_at(&["spec", "expirationSeconds"]).is_none() {
        request.set_at(&["spec", "expirationSeconds"], EXPIRATION_SECONDS);
    }
    Ok(())
}

fn check_expiration(request: &Value) -> Result<()> {
    let seconds = request.int_at(&["spec", "expirationSeconds"]).unwrap_or_default();
    let detail = match seconds {
        ..MIN_EXPIRATION_SECONDS => "may not specify a duration less than 10 minutes",
        MIN_EXPIRATION_SECONDS..=MAX_EXPIRATION_SECONDS => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let error = FieldError::invalid(&Path::new("spec").child("expirationSeconds"), seconds, detail);
    Err(Status::invalid(AUTHENTICATION, "TokenRequest", "", vec![error]))
}

/// Binds the token to the object that the request names.
fn bind(grant: &mut Grant, request: &Value, find: Find<'_>) -> Result<()> {
    let Some(bound) = present(request, "boundObjectRef") else { return Ok(()) };
    let (kind, name) = (GroupVersionKind::of(bound), bound.text("name"));
    let namespace = grant.namespace.clone();
    let read = |resource: &'static str, namespace: &str| read(find, resource, namespace, name);
    let object = match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("", "Pod") => read("pods", &namespace)?,
        ("", "Node") => read("nodes", "")?,
        ("", "Secret") => read("secrets", &namespace)?,
        _ => return Err(Status::bad_request(format!("cannot bind token to object of type {}", described(&kind)))),
    };
    if kind.kind == "Pod" && object.text_at(&["spec", "serviceAccountName"]) != grant.account.name {
        let account = &grant.account.name;
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    let uid = bound.text("uid");
    if !uid.is_empty() && uid != object.uid() {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&GroupResource::new(kind.group, kind.kind), name, why));
    }
    match kind.kind.as_ref() {
        "Pod" => (grant.pod, grant.node) = (Some(reference(&object)), node_of(&object, find)),
        "Node" => grant.node = Some(reference(&object)),
        _ => grant.secret = Some(reference(&object)),
    }
    Ok(())
}

/// `schema.GroupVersionKind.String`.
fn described(kind: &GroupVersionKind) -> String {
    format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind)
}

fn read(find: Find<'_>, resource: &'static str, namespace: &str, name: &str) -> Result<Value> {
    let stored: Arc<Stored> = find(&Key::new(resource, namespace, name)).ok_or_else(|| Status::not_found(&GroupResource::new("", resource), name))?;
    Ok(stored.value())
}

fn reference(object: &Value) -> Reference {
    Reference { name: object.name().to_owned(), uid: object.uid().to_owned() }
}

/// The node that a pod is on; without its UID if the node is gone.
fn node_of(pod: &Value, find: Find<'_>) -> Option<Reference> {
    let name = pod.text_at(&["spec", "nodeName"]);
    let uid = find(&Key::new("nodes", "", name)).map(|it| it.header.uid.to_string()).unwrap_or_default();
    (!name.is_empty()).then(|| Reference { name: name.to_owned(), uid })
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;
    use crate::{
        api::{
            identity::AUTHENTICATED,
            tokens::{ISSUER, generate_key},
        },
        store::Header,
    };

    fn stored(key: &Key, object: Value) -> Arc<Stored> {
        let header = Header { uid: object.uid().into(), ..Header::default() };
        Arc::new(Stored { key: key.clone(), revision: 1, json: object.to_string().into(), header, forms: Default::default() })
    }

    fn objects(key: &Key) -> Option<Arc<Stored>> {
        let object = match (&*key.resource, &*key.name) {
            ("pods", "web") => json!({"metadata": {"name": "web", "uid": "p1"}, "spec": {"serviceAccountName": "bot", "nodeName": "n1"}}),
            ("pods", "db") => json!({"metadata": {"name": "db", "uid": "p2"}, "spec": {"serviceAccountName": "other"}}),
            ("nodes", "n1") => json!({"metadata": {"name": "n1", "uid": "n"}}),
            ("serviceaccounts", "bot") => account(),
            _ => return None,
        };
        Some(stored(key, object))
    }

    fn account() -> Value {
        json!({"metadata": {"name": "bot", "namespace": "ns", "uid": "s1"}})
    }

    fn tokens() -> Tokens {
        Tokens::new(ISSUER, &generate_key()).unwrap()
    }

    /// Asks as jane, who may get pods in namespace a.
    fn ask(answer: Answer, namespace: &str, tokens: &Tokens, review: Value) -> Result<Value> {
        let jane = User { name: "jane".into(), groups: vec![AUTHENTICATED.into()], ..User::default() };
        let context = Context {
            user: &jane,
            namespace,
            decide: &|user, it| match user.name == "jane" && it.verb == "get" && (it.namespace == "a" || it.path == "/x") {
                true => Decision { is_allowed: true, reason: "because".into() },
                false => Decision { is_allowed: false, reason: String::new() },
            },
            rules: &|_, _| {
                let one = |it: &str| vec![it.to_owned()];
                let urls = Rule { verbs: one("get"), non_resource_urls: one("/x"), ..Rule::default() };
                vec![Rule { verbs: one("get"), api_groups: one(""), resources: one("pods"), ..Rule::default() }, urls]
            },
            tokens,
            find: &objects,
            now: clock::now(),
        };
        answer(&context, review)
    }

    #[test]
    fn access_reviews_tell_the_decision() {
        let pods = |namespace: &str| json!({"resource": "pods", "verb": "get", "namespace": namespace});
        let allowed = json!({"allowed": true, "reason": "because"});
        let refused = json!({"allowed": false});
        let cases: [(Answer, Value, Value); 6] = [
            (self_subject_access_review, json!({"resourceAttributes": pods("a")}), allowed.clone()),
            (self_subject_access_review, json!({"resourceAttributes": pods("b")}), refused.clone()),
            (self_subject_access_review, json!({"nonResourceAttributes": {"path": "/x", "verb": "get"}}), allowed.clone()),
            (subject_access_review, json!({"user": "jane", "resourceAttributes": pods("a")}), allowed.clone()),
            (subject_access_review, json!({"groups": ["jane"], "resourceAttributes": pods("a")}), refused),
            (local_subject_access_review, json!({"user": "jane", "resourceAttributes": pods("a")}), allowed),
        ];
        for (answer, spec, expected) in cases {
            let review = json!({"kind": "R", "metadata": {"creationTimestamp": null}, "spec": spec});
            assert_eq!(ask(answer, "a", &tokens(), review).unwrap()["status"], expected);
        }
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        let pods = json!({"resource": "pods", "verb": "get", "namespace": "b"});
        let cases: [(Answer, Value, &str); 6] = [
            (
                self_subject_access_review,
                json!({"spec": {}}),
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            (
                subject_access_review,
                json!({"spec": {"resourceAttributes": pods}}),
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ),
            (
                local_subject_access_review,
                json!({"spec": {"user": "x", "resourceAttributes": pods}}),
                "spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace",
            ),
            (self_subject_access_review, json!({"metadata": {"name": "x"}, "spec": {"resourceAttributes": pods}}), "must be empty"),
            (self_subject_rules_review, json!({"spec": {}}), "no namespace on request"),
            (token_review, json!({"spec": {}}), "token is required for TokenReview in authentication"),
        ];
        for (answer, review, expected) in cases {
            let message = ask(answer, "a", &tokens(), review).unwrap_err().message;
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn reviews_tell_the_user_and_its_rules() {
        let review = ask(self_subject_review, "", &tokens(), json!({})).unwrap();
        assert_eq!(review["status"]["userInfo"], json!({"username": "jane", "groups": ["system:authenticated"]}));
        let review = ask(self_subject_rules_review, "", &tokens(), json!({"spec": {"namespace": "a"}})).unwrap();
        let expected = json!({
            "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}],
            "incomplete": false,
        });
        assert_eq!(review["status"], expected);
    }

    #[test]
    fn a_requested_token_is_good_and_bound() {
        let tokens = tokens();
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "name": "web"});
        // (spec, claims' pod and node, lifetime, warn after)
        let cases = [
            (json!({}), Value::Null, Value::Null, 3600, None),
            (
                json!({"boundObjectRef": pod, "expirationSeconds": 600}),
                json!({"name": "web", "uid": "p1"}),
                json!({"name": "n1", "uid": "n"}),
                600,
                None,
            ),
            (
                json!({"boundObjectRef": pod, "expirationSeconds": 3607}),
                json!({"name": "web", "uid": "p1"}),
                json!({"name": "n1", "uid": "n"}),
                EXTENDED_SECONDS,
                Some(3607),
            ),
        ];
        for (spec, pod, node, seconds, warn) in cases {
            let answer = issue(&tokens, &account(), json!({"spec": spec}), &objects, clock::now()).unwrap();
            let token = answer.text_at(&["status", "token"]);
            let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap();
            let bound = &claims["kubernetes.io"];
            assert_eq!((&bound["pod"], &bound["node"]), (&pod, &node));
            assert_eq!(claims.int_at(&["exp"]).unwrap() - claims.int_at(&["iat"]).unwrap(), seconds);
            assert_eq!(bound.int_at(&["warnafter"]).map(|it| it - claims.int_at(&["iat"]).unwrap()), warn);
            assert_eq!(answer["spec"]["audiences"], json!([ISSUER]));
            let review = ask(token_review, "", &tokens, json!({"spec": {"token": token}})).unwrap();
            assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:ns:bot", "{review}");
        }
        let review = ask(token_review, "", &tokens, json!({"spec": {"token": "x.y.z"}})).unwrap();
        assert_eq!(review["status"], json!({"user": {}, "error": "invalid bearer token"}));
    }

    #[test]
    fn token_requests_are_checked() {
        let pod = |name: &str, uid: &str| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
        let cases = [
            (json!({"spec": {"expirationSeconds": 599}}), 422, "may not specify a duration less than 10 minutes"),
            (json!({"spec": {"expirationSeconds": 1i64 << 33}}), 422, "may not specify a duration larger than 2^32 seconds"),
            (
                json!({"metadata": {"name": "x"}, "spec": {}}),
                422,
                "metadata.name: Invalid value: \"x\": must match the service account name if specified",
            ),
            (
                json!({"metadata": {"uid": "x"}, "spec": {}}),
                409,
                "the UID in the token request (x) does not match the UID of the service account (s1)",
            ),
            (json!({"spec": {"boundObjectRef": pod("gone", "")}}), 404, "pods \"gone\" not found"),
            (json!({"spec": {"boundObjectRef": pod("web", "other")}}), 409, "does not match the UID in record"),
            (
                json!({"spec": {"boundObjectRef": pod("db", "")}}),
                400,
                "cannot bind token for serviceaccount \"bot\" to pod running with different serviceaccount name.",
            ),
            (
                json!({"spec": {"boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1"}}}),
                400,
                "cannot bind token to object of type /v1, Kind=ConfigMap",
            ),
        ];
        for (request, code, expected) in cases {
            let status = issue(&tokens(), &account(), request, &objects, clock::now()).unwrap_err();
            assert_eq!(status.code, code, "{status}");
            assert!(status.message.contains(expected), "{status}");
        }
    }
}
