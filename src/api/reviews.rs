//! Kinds that are only the answer to a question: TokenReview, SubjectAccessReview and its relatives, SelfSubjectReview, TokenRequest.
//! Source: kubernetes `pkg/registry/{authentication,authorization}`, `pkg/registry/core/serviceaccount/storage/token.go`.

use jiff::{Timestamp, ToSpan};
use serde::Deserialize;
use serde_json::json;

use super::{
    Server,
    identity::{Attributes, Decision, User},
    rbac::Rule,
    tokens::{Bound, Find, Grant, Reference, Tokens},
};
use crate::{
    base::clock,
    kinds::{Change, Kind, rules},
    meta::{FieldError, FieldErrors, GroupVersionKind, Meta, Path, Result, Status, Value, object::GroupResource},
    schema,
    store::Key,
};

const EXPIRATION_SECONDS: i64 = 3600;
/// What nodes ask for in volumes of every pod. Such a token lives for a year, as clients may not re-read it, but is remarked after
/// this time (`--service-account-extend-token-expiration`).
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;
const TOKEN_REQUEST: (&str, &str) = ("authentication.k8s.io", "TokenRequest");

/// What the answers are made from.
struct Context<'a> {
    kind: &'a Kind,
    user: &'a User,
    /// That of the path.
    namespace: &'a str,
    decide: &'a dyn Fn(&User, &Attributes) -> Decision,
    rules: &'a dyn Fn(&User, &str) -> Vec<Rule>,
    tokens: &'a Tokens,
    find: Find<'a>,
    now: Timestamp,
}

/// Answers a create of a review kind: the object with its status. `namespace` is that of the path.
pub async fn answer(server: &Server, user: &User, kind: &Kind, namespace: &str, review: Value) -> Result<Value> {
    let snapshot = server.store.snapshot();
    let index = server.authorizer.index(&snapshot);
    let context = Context {
        kind,
        user,
        namespace,
        decide: &|user, attributes| server.authorizer.authorize(user, attributes, &snapshot),
        rules: &|user, namespace| index.rules_for(user, namespace).0.into_iter().cloned().collect(),
        tokens: &server.tokens,
        find: &|key| snapshot.get(key),
        now: clock::now(),
    };
    context.answer(review)
}

/// `serviceaccounts/{name}/token`: a TokenRequest with its status. `account` is the stored ServiceAccount.
pub async fn token_request(server: &Server, account: &Value, request: Value) -> Result<Value> {
    let snapshot = server.store.snapshot();
    issue(&server.tokens, account, request, &|key| snapshot.get(key), clock::now())
}

impl Context<'_> {
    fn answer(&self, mut review: Value) -> Result<Value> {
        let status = match self.kind.kind.as_ref() {
            "TokenReview" => self.token(&review)?,
            "SelfSubjectReview" => {
                review["metadata"] = json!({"creationTimestamp": clock::rfc3339(self.now)});
                json!({"userInfo": self.user})
            }
            "SelfSubjectRulesReview" => self.rules(&mut review)?,
            "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview" => self.access(&mut review)?,
            _ => return Err(Status::method_not_allowed()),
        };
        review["status"] = status;
        Ok(review)
    }

    fn token(&self, review: &Value) -> Result<Value> {
        let token = review.text_at(&["spec", "token"]);
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        Ok(match self.tokens.verify(token, &texts(&review["spec"], "audiences"), self.now, self.find) {
            Ok(Some(verified)) => json!({"authenticated": true, "user": verified.user, "audiences": verified.audiences}),
            Ok(None) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
        })
    }

    fn access(&self, review: &mut Value) -> Result<Value> {
        let is_local = self.kind.is_namespaced();
        if is_local && review.namespace().is_empty() {
            review.set_metadata("namespace", self.namespace);
        }
        refuse(rules::check(review, &self.kind.stored_version().schema, Change::Create, true), &self.kind.group, &self.kind.kind)?;
        if is_local && review.namespace() != self.namespace {
            return Err(Status::bad_request(format!("spec.resourceAttributes.namespace must match namespace: {}", self.namespace)));
        }
        let spec = &review["spec"];
        let asked = ["nonResourceAttributes", "resourceAttributes"].into_iter().map(|it| &spec[it]).find(|it| it.is_object());
        let attributes = Attributes::deserialize(asked.unwrap_or(&Value::Null)).map_err(Status::internal)?;
        let decision = match self.kind.kind == "SelfSubjectAccessReview" {
            true => (self.decide)(self.user, &attributes),
            false => (self.decide)(&subject(spec), &attributes),
        };
        let mut status = json!({"allowed": decision.is_allowed});
        if !decision.reason.is_empty() {
            status["reason"] = decision.reason.into();
        }
        Ok(status)
    }

    fn rules(&self, review: &mut Value) -> Result<Value> {
        let namespace = review.text_at(&["spec", "namespace"]);
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = (self.rules)(self.user, namespace);
        let resources = rules.iter().filter(|it| !it.resources.is_empty());
        let resources: Vec<Value> = resources.map(|it| json!(Rule { non_resource_urls: vec![], ..it.clone() })).collect();
        let urls = rules.iter().filter(|it| !it.non_resource_urls.is_empty());
        let urls: Vec<Value> = urls.map(|it| json!({"verbs": it.verbs, "nonResourceURLs": it.non_resource_urls})).collect();
        review["spec"] = json!({});
        Ok(json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": false}))
    }
}

fn refuse(errors: FieldErrors, group: &str, kind: &str) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(group, kind, "", errors)) }
}

/// Whom a review is about.
fn subject(spec: &Value) -> User {
    let extra = spec.map_at(&["extra"]).into_iter().flatten();
    User {
        name: spec.text("user").to_owned(),
        uid: spec.text("uid").to_owned(),
        groups: texts(spec, "groups"),
        extra: extra.map(|(key, _)| (key.clone(), texts(&spec["extra"], key))).collect(),
    }
}

fn texts(object: &Value, field: &str) -> Vec<String> {
    object.texts_at(&[field]).map(str::to_owned).collect()
}

/// Answers a TokenRequest for `account`.
fn issue(tokens: &Tokens, account: &Value, mut request: Value, find: Find<'_>, now: Timestamp) -> Result<Value> {
    complete(&mut request, account, tokens.audiences())?;
    let schema = schema::builtin("io.k8s.api.authentication.v1.TokenRequest").unwrap_or_default();
    refuse(rules::check(&request, &schema, Change::Create, true), TOKEN_REQUEST.0, TOKEN_REQUEST.1)?;
    request["metadata"]["creationTimestamp"] = clock::rfc3339(now).into();
    let seconds = request.int_at(&["spec", "expirationSeconds"]).unwrap_or(EXPIRATION_SECONDS);
    let (audiences, bound) = (texts(&request["spec"], "audiences"), bind(account, &request["spec"]["boundObjectRef"], find)?);
    let is_extended = bound.pod.is_some() && seconds == WARN_ONLY_SECONDS && audiences.iter().all(|it| tokens.audiences().contains(it));
    let (lasts, warn_after_seconds) = if is_extended { (EXTENDED_SECONDS, Some(seconds)) } else { (seconds, None) };
    let token = tokens.issue(Grant { bound, audiences, seconds: lasts, warn_after_seconds }, now);
    let expires = now.checked_add(seconds.seconds()).map_err(Status::internal)?;
    request["status"] = json!({"token": token, "expirationTimestamp": clock::rfc3339(expires)});
    Ok(request)
}

/// Fills in what the request leaves open, and checks what it says of the account.
fn complete(request: &mut Value, account: &Value, audiences: &[String]) -> Result<()> {
    let (group, kind) = TOKEN_REQUEST;
    let fields =
        [("name", "must match the service account name if specified"), ("namespace", "must match the service account namespace if specified")];
    for (field, detail) in fields {
        let (asked, own) = (request.metadata(field), account.metadata(field));
        if !asked.is_empty() && asked != own {
            let error = FieldError::invalid(&Path::new("metadata").child(field), asked, detail);
            return Err(Status::invalid(group, kind, account.name(), vec![error]));
        }
    }
    let (asked, own) = (request.uid(), account.uid());
    if !asked.is_empty() && asked != own {
        let why = format!("the UID in the token request ({asked}) does not match the UID of the service account ({own})");
        return Err(Status::conflict(&GroupResource::new(group, kind), account.name(), why));
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

/// What the token is bound to: the account, and the object that the request names, if it does.
fn bind(account: &Value, wanted: &Value, find: Find<'_>) -> Result<Bound> {
    let mut bound = Bound { namespace: account.namespace().to_owned(), account: Reference::to(account), ..Bound::default() };
    if wanted.is_null() {
        return Ok(bound);
    }
    let (kind, name, uid) = (GroupVersionKind::of(wanted), wanted.text("name"), wanted.text("uid"));
    let (resource, namespace, place) = match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("", "Pod") => ("pods", account.namespace(), &mut bound.pod),
        ("", "Node") => ("nodes", "", &mut bound.node),
        ("", "Secret") => ("secrets", account.namespace(), &mut bound.secret),
        _ => return Err(Status::bad_request(format!("cannot bind token to object of type {kind}"))),
    };
    let found = find(&Key::new(resource, namespace, name)).ok_or_else(|| Status::not_found(&GroupResource::new("", resource), name))?;
    let object = found.value();
    if resource == "pods" && object.text_at(&["spec", "serviceAccountName"]) != account.name() {
        let account = account.name();
        return Err(Status::bad_request(format!("cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name.")));
    }
    if !uid.is_empty() && uid != object.uid() {
        let why = format!("the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated");
        return Err(Status::conflict(&GroupResource::new(kind.group, kind.kind), name, why));
    }
    *place = Some(Reference::to(&object));
    if resource == "pods" {
        bound.node = node_of(&object, find);
    }
    Ok(bound)
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

    use std::sync::Arc;

    use super::*;
    use crate::{
        api::{
            identity::AUTHENTICATED,
            tokens::{ISSUER, generate_key},
        },
        store::{Header, Stored},
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
    fn ask(kind: &str, namespace: &str, tokens: &Tokens, review: Value) -> Result<Value> {
        let jane = User { name: "jane".into(), groups: vec![AUTHENTICATED.into()], ..User::default() };
        let registry = crate::kinds::table::registry();
        let kind = registry.iter().find(|it| it.kind == kind).expect("a kind");
        let context = Context {
            kind,
            user: &jane,
            namespace,
            decide: &|user, it| match user.name == "jane" && it.verb == "get" && (it.namespace == "a" || it.path == "/x") {
                true => Decision { is_allowed: true, reason: "because".into(), ..Decision::default() },
                false => Decision::default(),
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
        context.answer(review)
    }

    #[test]
    fn access_reviews_tell_the_decision() {
        let pods = |namespace: &str| json!({"resource": "pods", "verb": "get", "namespace": namespace});
        let allowed = json!({"allowed": true, "reason": "because"});
        let refused = json!({"allowed": false});
        let cases: [(&str, Value, Value); 6] = [
            ("SelfSubjectAccessReview", json!({"resourceAttributes": pods("a")}), allowed.clone()),
            ("SelfSubjectAccessReview", json!({"resourceAttributes": pods("b")}), refused.clone()),
            ("SelfSubjectAccessReview", json!({"nonResourceAttributes": {"path": "/x", "verb": "get"}}), allowed.clone()),
            ("SubjectAccessReview", json!({"user": "jane", "resourceAttributes": pods("a")}), allowed.clone()),
            ("SubjectAccessReview", json!({"groups": ["jane"], "resourceAttributes": pods("a")}), refused),
            ("LocalSubjectAccessReview", json!({"user": "jane", "resourceAttributes": pods("a")}), allowed),
        ];
        for (kind, spec, expected) in cases {
            let review = json!({"kind": "R", "metadata": {"creationTimestamp": null}, "spec": spec});
            assert_eq!(ask(kind, "a", &tokens(), review).unwrap()["status"], expected);
        }
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        let pods = json!({"resource": "pods", "verb": "get", "namespace": "b"});
        let cases: [(&str, Value, &str); 6] = [
            (
                "SelfSubjectAccessReview",
                json!({"spec": {}}),
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            (
                "SubjectAccessReview",
                json!({"spec": {"resourceAttributes": pods}}),
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ),
            (
                "LocalSubjectAccessReview",
                json!({"spec": {"user": "x", "resourceAttributes": pods}}),
                "spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace",
            ),
            ("SelfSubjectAccessReview", json!({"metadata": {"name": "x"}, "spec": {"resourceAttributes": pods}}), "must be empty"),
            ("SelfSubjectRulesReview", json!({"spec": {}}), "no namespace on request"),
            ("TokenReview", json!({"spec": {}}), "token is required for TokenReview in authentication"),
        ];
        for (kind, review, expected) in cases {
            let message = ask(kind, "a", &tokens(), review).unwrap_err().message;
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn reviews_tell_the_user_and_its_rules() {
        let review = ask("SelfSubjectReview", "", &tokens(), json!({})).unwrap();
        assert_eq!(review["status"]["userInfo"], json!({"username": "jane", "groups": ["system:authenticated"]}));
        let review = ask("SelfSubjectRulesReview", "", &tokens(), json!({"spec": {"namespace": "a"}})).unwrap();
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
            let review = ask("TokenReview", "", &tokens, json!({"spec": {"token": token}})).unwrap();
            assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:ns:bot", "{review}");
        }
        let review = ask("TokenReview", "", &tokens, json!({"spec": {"token": "x.y.z"}})).unwrap();
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
