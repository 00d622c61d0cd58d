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

/// In upstream's order. Each looks at what it is for and lets the rest pass.
const MUTATING: &[Mutate] = &[namespace_lifecycle, certificates::requester, limits::default, service_account, node_taint, priority, toleration_seconds, runtime_class, storage_class, storage_protection, ingress_class];
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

/// Connections are for webhooks alone.
fn plugins(context: &Context<'_>, object: &mut Value) -> Result<()> {
    let is_write = matches!(context.operation, Operation::Create | Operation::Update);
    MUTATING.iter().filter(|_| is_write).try_for_each(|plugin| plugin(context, object))
}

/// Refuses an object that may not be stored so.
pub async fn validate(context: &Context<'_>, object: &Value) -> Result<()> {
    let is_write = matches!(context.operation, Operation::Create | Operation::Update);
    VALIDATING.iter().filter(|_| is_write).try_for_each(|plugin| plugin(context, object))?;
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

    fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        Some(self.snapshot.get(&Key::new(resource, namespace, name))?.value())
    }
}

/// Nothing is made in a namespace that is not there, or that ends.
fn namespace_lifecycle(context: &Context<'_>, object: &mut Value) -> Result<()> {
    let namespace = &context.target.namespace;
    if !context.is_create() || namespace.is_empty() || context.is("authorization.k8s.io", "localsubjectaccessreviews") {
        return Ok(());
    }
    let found = context.find("namespaces", "", namespace).ok_or_else(|| Status::not_found(&GroupResource::new("", "namespaces"), namespace))?;
    if found.deletion_timestamp().is_none() && found.text_at(&["status", "phase"]) != "Terminating" {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = format!("namespace {namespace} is being terminated");
    Err(Status::forbidden(&context.target.resource(), object.name(), why).with_cause("NamespaceTerminating", cause, "metadata.namespace"))
}

const TOKEN_VOLUME: &str = "kube-api-access-";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour and seven seconds: the seconds tell this token's requests apart from others (`WarnOnlyBoundTokenExpirationSeconds`).
const TOKEN_SECONDS: u32 = 3607;

/// Gives a pod its service account, and the account's token as a volume.
fn service_account(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    if !context.is("", "pods") || !context.is_create() || pod.annotations().any(|(key, _)| key == "kubernetes.io/config.mirror") {
        return Ok(());
    }
    if pod.text_at(&["spec", "serviceAccountName"]).is_empty() {
        pod.set_at(&["spec", "serviceAccountName"], "default");
    }
    let name = pod.text_at(&["spec", "serviceAccountName"]).to_owned();
    let Some(account) = context.find("serviceaccounts", &context.target.namespace, &name) else {
        let why = format!("error looking up service account {}/{name}: serviceaccount \"{name}\" not found", context.target.namespace);
        return Err(Status::forbidden(&context.target.resource(), pod.name(), why));
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
        for container in crate::kinds::check::each(pod, &["spec", list]) {
            let mut mounts = container.items_at(&["volumeMounts"]).to_vec();
            if mounts.iter().all(|it| it.text("mountPath") != TOKEN_PATH) {
                mounts.push(json!({"name": volume, "mountPath": TOKEN_PATH, "readOnly": true}));
                container["volumeMounts"] = mounts.into();
                is_used = true;
            }
        }
    }
    if has_volume || !is_used {
        return;
    }
    let mut volumes = pod.items_at(&["spec", "volumes"]).to_vec();
    volumes.push(json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}}));
    pod.set_at(&["spec", "volumes"], volumes);
}

/// A new node is not ready: nothing is scheduled onto it before it says so.
fn node_taint(context: &Context<'_>, node: &mut Value) -> Result<()> {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    if !context.is("", "nodes") || !context.is_create() {
        return Ok(());
    }
    let mut taints = node.items_at(&["spec", "taints"]).to_vec();
    if taints.iter().all(|it| it.text("key") != NOT_READY) {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        node.set_at(&["spec", "taints"], taints);
    }
    Ok(())
}

/// The priority of a pod from its class, or from the default class.
fn priority(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    const CLASSES: &str = "scheduling.k8s.io/priorityclasses";
    if !context.is("", "pods") || !context.is_create() {
        return Ok(());
    }
    let name = pod.text_at(&["spec", "priorityClassName"]).to_owned();
    let class = match name.as_str() {
        "" => context.snapshot.list(CLASSES, None, None).map(|it| it.value()).find(|it| it["globalDefault"] == true),
        name => {
            let class = context.find(CLASSES, "", name);
            let why = || Status::forbidden(&context.target.resource(), pod.name(), format!("no PriorityClass with name {name} was found"));
            Some(class.ok_or_else(why)?)
        }
    };
    let value = class.as_ref().and_then(|it| it.int_at(&["value"])).unwrap_or(0);
    if pod.int_at(&["spec", "priority"]).is_some_and(|it| it != value) {
        let why = format!("the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name", pod["spec"]["priority"]);
        return Err(Status::forbidden(&context.target.resource(), pod.name(), why));
    }
    let policy = class.as_ref().map(|it| it.text("preemptionPolicy").to_owned()).filter(|it| !it.is_empty());
    if let (Some(class), true) = (&class, name.is_empty()) {
        pod.set_at(&["spec", "priorityClassName"], class.name());
    }
    pod.set_at(&["spec", "priority"], value);
    if pod.text_at(&["spec", "preemptionPolicy"]).is_empty() {
        pod.set_at(&["spec", "preemptionPolicy"], policy.unwrap_or_else(|| "PreemptLowerPriority".to_owned()));
    }
    Ok(())
}

/// A pod stays for five minutes on a node that is not ready or not reached, unless it says otherwise; at every update too.
fn toleration_seconds(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    const SECONDS: u32 = 300;
    if !context.is("", "pods") || context.target.subresource.is_some() {
        return Ok(());
    }
    let mut tolerations = pod.items_at(&["spec", "tolerations"]).to_vec();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |it: &Value| matches!(it.text("key"), "" ) && it.text("operator") == "Exists" || it.text("key") == key;
        let has_effect = |it: &Value| matches!(it.text("effect"), "" | "NoExecute");
        if !tolerations.iter().any(|it| covers(it) && has_effect(it)) {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}));
        }
    }
    pod.set_at(&["spec", "tolerations"], tolerations);
    Ok(())
}

/// A pod costs what its runtime class says, and goes where that is served.
fn runtime_class(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    let name = pod.text_at(&["spec", "runtimeClassName"]).to_owned();
    if !context.is("", "pods") || !context.is_create() || name.is_empty() {
        return Ok(());
    }
    let pod_name = pod.name().to_owned();
    let refuse = |why: String| Status::forbidden(&context.target.resource(), &pod_name, why);
    let class = context.find("node.k8s.io/runtimeclasses", "", &name).ok_or_else(|| refuse(format!("pod rejected: RuntimeClass {name:?} not found")))?;
    if let Some(overhead) = class.at(&["overhead", "podFixed"]) {
        if pod.at(&["spec", "overhead"]).is_some_and(|it| it != overhead) {
            return Err(refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned()));
        }
        pod.set_at(&["spec", "overhead"], overhead.clone());
    }
    for (key, value) in class.map_at(&["scheduling", "nodeSelector"]).into_iter().flatten() {
        if pod.at(&["spec", "nodeSelector", key]).is_some_and(|it| it != value) {
            return Err(refuse(format!("conflict: cannot overwrite nodeSelector {key}")));
        }
        pod.set_at(&["spec", "nodeSelector", key], value.clone());
    }
    let more = class.items_at(&["scheduling", "tolerations"]);
    if !more.is_empty() {
        let all: Vec<Value> = pod.items_at(&["spec", "tolerations"]).iter().chain(more).cloned().collect();
        pod.set_at(&["spec", "tolerations"], all);
    }
    Ok(())
}

/// A claim that names no class gets the default one.
fn storage_class(context: &Context<'_>, claim: &mut Value) -> Result<()> {
    const DEFAULT: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if context.is("", "persistentvolumeclaims") {
        default_class(context, claim, "storageClassName", "storage.k8s.io/storageclasses", &DEFAULT);
    }
    Ok(())
}

/// What stores data is removed only when nothing uses it: the controllers of `volumeprotection.rs` take the finalizers away.
fn storage_protection(context: &Context<'_>, object: &mut Value) -> Result<()> {
    const KINDS: [(&str, &str, &str); 3] = [
        ("", "persistentvolumes", "kubernetes.io/pv-protection"),
        ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
        ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
    ];
    let finalizer = KINDS.iter().filter(|_| context.is_create()).find(|(group, plural, _)| context.is(group, plural)).map(|it| it.2);
    if let Some(finalizer) = finalizer.filter(|it| object.finalizers().all(|present| present != *it)) {
        let all: Vec<&str> = object.finalizers().chain([finalizer]).collect();
        let all = Value::from(all);
        object.set_metadata("finalizers", all);
    }
    Ok(())
}

/// So does an Ingress, unless it says its class in the older annotation.
fn ingress_class(context: &Context<'_>, ingress: &mut Value) -> Result<()> {
    let has_own = ingress.annotations().any(|it| it.0 == "kubernetes.io/ingress.class");
    if context.is("networking.k8s.io", "ingresses") && !has_own {
        default_class(context, ingress, "ingressClassName", "networking.k8s.io/ingressclasses", &["ingressclass.kubernetes.io/is-default-class"]);
    }
    Ok(())
}

/// Names in `spec` of a new object the class that is the default by an annotation; of several the newest.
fn default_class(context: &Context<'_>, object: &mut Value, field: &str, classes: &str, annotations: &[&str]) {
    if !context.is_create() || object.at(&["spec", field]).is_some() {
        return;
    }
    let is_default = |it: &Value| it.annotations().any(|(key, value)| annotations.contains(&key) && value == "true");
    let classes = context.snapshot.list(classes, None, None).map(|it| it.value()).filter(is_default);
    let newest = classes.min_by_key(|it| (std::cmp::Reverse(it.metadata("creationTimestamp").to_owned()), it.name().to_owned()));
    newest.into_iter().for_each(|it| object.set_at(&["spec", field], it.name()));
}

/// Nobody grants what they do not hold.
fn rbac_escalation(context: &Context<'_>, object: &Value) -> Result<()> {
    if context.target.kind.group != rbac::GROUP {
        return Ok(());
    }
    let authorizer = &context.server.authorizer;
    let index = authorizer.index(context.snapshot);
    let allowed = |attributes: &super::identity::Attributes| authorizer.authorize(&context.requester.user, attributes, context.snapshot).is_allowed;
    rbac::check_escalation(&index, &context.requester.user, &context.target.kind.plural, &context.target.namespace, object, context.old, allowed)
}
