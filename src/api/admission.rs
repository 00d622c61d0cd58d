//! The built-in admission chain: what the cluster adds to objects, and what it refuses, beyond their own validity.
//! Source: apiserver `pkg/admission/plugin/namespace/lifecycle`, kubernetes `plugin/pkg/admission/{serviceaccount,priority,
//! defaulttolerationseconds,nodetaint,runtimeclass,network/defaultingressclass,storage/{storageclass/setdefault,storageobjectinuseprotection}}`.

use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tokio::time::Instant;

use super::{
    Server, certificates,
    identity::User,
    limits, node, podsecurity, rbac,
    target::Target,
    matching::Round,
    policies,
    webhooks,
};
use crate::{
    kinds::check::{each, fill_at},
    meta::{Meta, Result, Status, Value, object::GroupResource},
    store::{Key, Snapshot},
};

/// Who asks, and what the request that he made has come to.
#[derive(Debug)]
pub struct Requester {
    pub user: User,
    /// When the client gives up (`?timeout=`), or the server does.
    pub deadline: Instant,
    warnings: Mutex<Vec<String>>,
}

impl Requester {
    pub fn new(user: User, deadline: Instant) -> Self {
        Self { user, deadline, warnings: Mutex::default() }
    }

    /// Keeps a sentence for a `Warning` header of the answer, once.
    pub fn warn(&self, text: &str) {
        let mut all = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|it| it == text) {
            all.push(text.to_owned());
        }
    }

    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As webhooks and their rules have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What is asked of admission (`admission.Attributes`); the new object comes beside it.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub server: &'a Server,
    pub requester: &'a Requester,
    pub target: &'a Target,
    pub snapshot: &'a Snapshot,
    pub operation: Operation,
    /// `None` on create and connect.
    pub old: Option<&'a Value>,
    /// `CreateOptions`, `UpdateOptions` or `DeleteOptions`; null on connect.
    pub options: &'a Value,
    pub is_dry_run: bool,
}

type Mutate = fn(&Context<'_>, &mut Value) -> Result<()>;
type Validate = fn(&Context<'_>, &Value) -> Result<()>;

const NEW: &[Operation] = &[Operation::Create];
const WRITTEN: &[Operation] = &[Operation::Create, Operation::Update];
/// In upstream's order: when each is asked and for which resource.
const MUTATING: &[(&[Operation], &str, &str, Mutate)] = &[
    (NEW, "certificates.k8s.io", "certificatesigningrequests", certificates::requester),
    (NEW, "", "pods", limits::default),
    (NEW, "", "pods", service_account),
    (NEW, "", "nodes", node_taint),
    (NEW, "", "pods", priority),
    (WRITTEN, "", "pods", toleration_seconds),
    (NEW, "", "pods", runtime_class),
    (NEW, "", "persistentvolumeclaims", storage_class),
    (NEW, "", "persistentvolumes", |_, object| protect(object, "kubernetes.io/pv-protection")),
    (NEW, "", "persistentvolumeclaims", |_, object| protect(object, "kubernetes.io/pvc-protection")),
    (NEW, "storage.k8s.io", "volumeattributesclasses", |_, object| protect(object, "kubernetes.io/vac-protection")),
    (NEW, "networking.k8s.io", "ingresses", ingress_class),
];
/// Each looks at what it is for and lets the rest pass.
const VALIDATING: &[Validate] = &[limits::check, node::restrict, certificates::check, podsecurity::check, rbac_escalation];

/// Changes a new object, or refuses it: the plugins first, then policies, then webhooks. What policies and webhooks have changed the plugins
/// see once more, and so do policies and webhooks that want to (`reinvocationPolicy`).
pub async fn mutate(context: &Context<'_>, object: &mut Value) -> Result<()> {
    let (mut policies_round, mut webhooks_round) = (Round::default(), Round::default());
    for _ in 0..2 {
        plugins(context, object)?;
        let by_policies = policies::mutate(context, object, &mut policies_round).await?;
        let by_webhooks = webhooks::mutate(context, object, &mut webhooks_round).await?;
        if !by_policies && !by_webhooks {
            break;
        }
    }
    Ok(())
}

fn plugins(context: &Context<'_>, object: &mut Value) -> Result<()> {
    if context.is_create() {
        namespace_lifecycle(context, object)?;
    }
    let due = MUTATING.iter().filter(|(operations, group, plural, _)| operations.contains(&context.operation) && context.is(group, plural));
    due.into_iter().try_for_each(|(.., plugin)| plugin(context, object))
}

/// Refuses an object that may not be stored so.
pub async fn validate(context: &Context<'_>, object: &Value) -> Result<()> {
    // Connections are for webhooks alone.
    VALIDATING.iter().filter(|_| WRITTEN.contains(&context.operation)).try_for_each(|plugin| plugin(context, object))?;
    policies::validate(context, object).await?;
    webhooks::validate(context, object).await
}

/// Both, for what is not stored: a binding, an eviction, a review, the options of a connection.
pub async fn admit(context: &Context<'_>, object: &mut Value) -> Result<()> {
    mutate(context, object).await?;
    validate(context, object).await
}

/// Refuses a deletion: a node's of what is not its own, policies' and webhooks'.
pub async fn remove(context: &Context<'_>) -> Result<()> {
    node::restrict(context, &Value::Null)?;
    webhooks::mutate(context, &mut Value::Null, &mut Round::default()).await?;
    policies::validate(context, &Value::Null).await?;
    webhooks::validate(context, &Value::Null).await
}

impl Context<'_> {
    /// Whether this is a write of the main resource `plural` of `group`.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.target.kind.group == group && self.target.kind.plural == plural && self.target.subresource.is_none()
    }

    pub fn is_create(&self) -> bool {
        self.operation == Operation::Create
    }

    /// Why an object may not be as it is.
    pub fn forbid(&self, object: &Value, why: impl std::fmt::Display) -> Status {
        Status::forbidden(&self.target.resource(), object.name(), why)
    }

    pub fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        Some(self.snapshot.get(&Key::new(resource, namespace, name))?.value())
    }
}

/// Nothing is made in a namespace that is not there, or that ends.
fn namespace_lifecycle(context: &Context<'_>, object: &mut Value) -> Result<()> {
    let namespace = &context.target.namespace;
    if namespace.is_empty() || context.is("authorization.k8s.io", "localsubjectaccessreviews") {
        return Ok(());
    }
    let found = context.find("namespaces", "", namespace).ok_or_else(|| Status::not_found(&GroupResource::new("", "namespaces"), namespace))?;
    if found.deletion_timestamp().is_none() && found.text_at(&["status", "phase"]) != "Terminating" {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = format!("namespace {namespace} is being terminated");
    Err(context.forbid(object, why).with_cause("NamespaceTerminating", cause, "metadata.namespace"))
}

const TOKEN_VOLUME: &str = "kube-api-access-";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour and seven seconds: the seconds tell this token's requests apart from others (`WarnOnlyBoundTokenExpirationSeconds`).
const TOKEN_SECONDS: u32 = 3607;

/// Gives a pod its service account, and the account's token as a volume.
fn service_account(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    if pod.annotations().any(|(key, _)| key == "kubernetes.io/config.mirror") {
        return Ok(());
    }
    fill_at(pod, &["spec", "serviceAccountName"], "default");
    let name = pod.text_at(&["spec", "serviceAccountName"]).to_owned();
    let Some(account) = context.find("serviceaccounts", &context.target.namespace, &name) else {
        let why = format!("error looking up service account {}/{name}: serviceaccount \"{name}\" not found", context.target.namespace);
        return Err(context.forbid(pod, why));
    };
    pod.set_at(&["spec", "serviceAccount"], name.as_str());
    let wants = |object: &Value, path: &[&str]| object.at(path).and_then(Value::as_bool);
    let is_mounted = wants(pod, &["spec", "automountServiceAccountToken"]).or_else(|| wants(&account, &["automountServiceAccountToken"])).unwrap_or(true);
    if is_mounted {
        mount_token(pod);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let existing = pod.items_at(&["spec", "volumes"]).iter().map(|it| it.text("name")).find(|it| it.starts_with(TOKEN_VOLUME));
    let has_volume = existing.is_some();
    let random = uuid::Uuid::new_v4().simple().to_string();
    let volume = existing.map_or_else(|| format!("{TOKEN_VOLUME}{}", &random[..5]), str::to_owned);
    let mut is_used = false;
    for list in ["initContainers", "containers"] {
        for container in each(pod, &["spec", list]).filter(|it| it.items_at(&["volumeMounts"]).iter().all(|it| it.text("mountPath") != TOKEN_PATH)) {
            container.list_at(&["volumeMounts"]).push(json!({"name": volume, "mountPath": TOKEN_PATH, "readOnly": true}));
            is_used = true;
        }
    }
    if has_volume || !is_used {
        return;
    }
    pod.list_at(&["spec", "volumes"]).push(json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}}));
}

/// A new node is not ready: nothing is scheduled onto it before it says so.
fn node_taint(_: &Context<'_>, node: &mut Value) -> Result<()> {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    if node.items_at(&["spec", "taints"]).iter().all(|it| it.text("key") != NOT_READY) {
        node.list_at(&["spec", "taints"]).push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
    Ok(())
}

/// The priority of a pod from its class, or from the default class.
fn priority(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    const CLASSES: &str = "scheduling.k8s.io/priorityclasses";
    let name = pod.text_at(&["spec", "priorityClassName"]).to_owned();
    let class = match name.as_str() {
        "" => context.snapshot.list(CLASSES, None, None).map(|it| it.value()).find(|it| it["globalDefault"] == true),
        name => {
            let class = context.find(CLASSES, "", name);
            Some(class.ok_or_else(|| context.forbid(pod, format!("no PriorityClass with name {name} was found")))?)
        }
    };
    let value = class.as_ref().and_then(|it| it.int_at(&["value"])).unwrap_or(0);
    if pod.int_at(&["spec", "priority"]).is_some_and(|it| it != value) {
        let why = format!("the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name", pod["spec"]["priority"]);
        return Err(context.forbid(pod, why));
    }
    if let Some(class) = &class {
        fill_at(pod, &["spec", "priorityClassName"], class.name());
    }
    pod.set_at(&["spec", "priority"], value);
    let policy = class.as_ref().map(|it| it.text("preemptionPolicy")).filter(|it| !it.is_empty());
    fill_at(pod, &["spec", "preemptionPolicy"], policy.unwrap_or("PreemptLowerPriority"));
    Ok(())
}

/// A pod stays for five minutes on a node that is not ready or not reached, unless it says otherwise; at every update too.
fn toleration_seconds(_: &Context<'_>, pod: &mut Value) -> Result<()> {
    const SECONDS: u32 = 300;
    let tolerations = pod.list_at(&["spec", "tolerations"]);
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |it: &Value| matches!(it.text("key"), "" ) && it.text("operator") == "Exists" || it.text("key") == key;
        let has_effect = |it: &Value| matches!(it.text("effect"), "" | "NoExecute");
        if !tolerations.iter().any(|it| covers(it) && has_effect(it)) {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}));
        }
    }
    Ok(())
}

/// A pod costs what its runtime class says, and goes where that is served.
fn runtime_class(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    let name = pod.text_at(&["spec", "runtimeClassName"]).to_owned();
    if name.is_empty() {
        return Ok(());
    }
    let class = context.find("node.k8s.io/runtimeclasses", "", &name);
    let class = class.ok_or_else(|| context.forbid(pod, format!("pod rejected: RuntimeClass {name:?} not found")))?;
    if let Some(overhead) = class.at(&["overhead", "podFixed"]) {
        if pod.at(&["spec", "overhead"]).is_some_and(|it| it != overhead) {
            return Err(context.forbid(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        pod.set_at(&["spec", "overhead"], overhead.clone());
    }
    for (key, value) in class.map_at(&["scheduling", "nodeSelector"]).into_iter().flatten() {
        if pod.at(&["spec", "nodeSelector", key]).is_some_and(|it| it != value) {
            return Err(context.forbid(pod, format!("conflict: cannot overwrite nodeSelector {key}")));
        }
        pod.set_at(&["spec", "nodeSelector", key], value.clone());
    }
    pod.list_at(&["spec", "tolerations"]).extend_from_slice(class.items_at(&["scheduling", "tolerations"]));
    Ok(())
}

/// A claim that names no class gets the default one.
fn storage_class(context: &Context<'_>, claim: &mut Value) -> Result<()> {
    const DEFAULT: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    default_class(context, claim, "storageClassName", "storage.k8s.io/storageclasses", &DEFAULT)
}

/// What stores data is removed only when nothing uses it: the controllers of `volumeprotection.rs` take the finalizers away.
fn protect(object: &mut Value, finalizer: &str) -> Result<()> {
    if object.finalizers().all(|it| it != finalizer) {
        object.list_at(&["metadata", "finalizers"]).push(finalizer.into());
    }
    Ok(())
}

/// So does an Ingress, unless it says its class in the older annotation.
fn ingress_class(context: &Context<'_>, ingress: &mut Value) -> Result<()> {
    if ingress.annotations().any(|it| it.0 == "kubernetes.io/ingress.class") {
        return Ok(());
    }
    default_class(context, ingress, "ingressClassName", "networking.k8s.io/ingressclasses", &["ingressclass.kubernetes.io/is-default-class"])
}

/// Names in `spec` of a new object the class that is the default by an annotation; of several the newest.
fn default_class(context: &Context<'_>, object: &mut Value, field: &str, classes: &str, annotations: &[&str]) -> Result<()> {
    if object.at(&["spec", field]).is_some() {
        return Ok(());
    }
    let is_default = |it: &Value| it.annotations().any(|(key, value)| annotations.contains(&key) && value == "true");
    let classes = context.snapshot.list(classes, None, None).map(|it| it.value()).filter(is_default);
    let newest = classes.min_by_key(|it| (std::cmp::Reverse(it.metadata("creationTimestamp").to_owned()), it.name().to_owned()));
    newest.into_iter().for_each(|it| object.set_at(&["spec", field], it.name()));
    Ok(())
}

/// Nobody grants what they do not hold.
fn rbac_escalation(context: &Context<'_>, object: &Value) -> Result<()> {
    if context.target.kind.group != rbac::GROUP {
        return Ok(());
    }
    let (authorizer, user, target) = (&context.server.authorizer, &context.requester.user, context.target);
    let grant = rbac::Grant {
        index: &authorizer.index(context.snapshot),
        user,
        resource: &target.kind.plural,
        namespace: &target.namespace,
        object,
        old: context.old,
        is_authorized: &|attributes| authorizer.authorize(user, attributes, context.snapshot).is_allowed,
    };
    grant.check()
}
