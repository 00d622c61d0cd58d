//! The table: every built-in kind, one row each. What a row does not say is a default of [`Row`].

use super::{
    ALL_VERBS, Action, Body, CREATE_ONLY, Cell, Column, Convert, FieldValue, Kind, Registry, Scope, Selectable, Strategy, Subresource, Verb, Version,
    admission, cells::*, columns::*, crd, event, namespace, networking, node, pod, policy, rbac, secret, service, storage, webhooks, workloads,
};
use crate::{
    meta::{Meta, names},
    schema,
};

/// The kinds of Kubernetes v1.36 that this server serves.
pub fn registry() -> Registry {
    let rows = [core(), running(), infrastructure(), machinery()];
    rows.into_iter().flatten().fold(Registry::default(), |registry, row| registry.with(row.0))
}

const NO_UPDATE: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
const PATHY: Strategy = Strategy { name: names::path_segment, ..Strategy::PLAIN };
const COUNTED: Strategy = Strategy { has_generation: true, ..Strategy::PLAIN };
const STATUS: Strategy = Strategy { resets_status: true, ..Strategy::PLAIN };
const ANY_UPDATE: Strategy = Strategy { creates_on_update: true, ..Strategy::PLAIN };

/// The legacy group.
#[rustfmt::skip]
fn core() -> Vec<Row> {
    vec![
    ns("", "v1", "configmaps", "ConfigMap").short("cm").does(&secret::CONFIG_MAP).cols(&[fun("Data", "string", data_count)]).age(),
    ns("", "v1", "secrets", "Secret").does(&secret::SECRET).cols(&[path("Type", &["type"]), fun("Data", "string", data_count)]).age().field("type", &["type"]),
    ns("", "v1", "pods", "Pod").returned().short("po").all().does(&pod::POD).status().cols(&[
            fun("Ready", "string", pod_ready), fun("Status", "string", pod_status), fun("Restarts", "string", pod_restarts), AGE,
            wide_or("IP", &["status", "podIP"], "<none>"), wide_or("Node", &["spec", "nodeName"], "<none>"), wide_or("Nominated Node", &["status", "nominatedNodeName"], "<none>"), wide("Readiness Gates", pod_gates)])
        .field("spec.nodeName", &["spec", "nodeName"]).field("spec.restartPolicy", &["spec", "restartPolicy"]).field("spec.schedulerName", &["spec", "schedulerName"])
        .field("spec.serviceAccountName", &["spec", "serviceAccountName"]).field_fn("spec.hostNetwork", pod::host_network).field("status.phase", &["status", "phase"])
        .field("status.podIP", &["status", "podIP"]).field("status.nominatedNodeName", &["status", "nominatedNodeName"])
        .sub("attach", Action::Attach, "PodAttachOptions", &["create", "get"]).sub("binding", Action::Binding, "Binding", &["create"])
        .sub("ephemeralcontainers", Action::Part, "Pod", PART).sub_of("eviction", Action::Eviction, ("policy", "v1", "Eviction"), &["create"])
        .sub("exec", Action::Exec, "PodExecOptions", &["create", "get"]).sub("log", Action::Log, "Pod", &["get"])
        .sub("portforward", Action::PortForward, "PodPortForwardOptions", &["create", "get"]).sub("proxy", Action::Proxy, "PodProxyOptions", PROXY)
        .sub("resize", Action::Part, "Pod", PART),
    ns("", "v1", "services", "Service").returned().short("svc").all().does(&service::SERVICE).status()
        .cols(&[path("Type", &["spec", "type"]), or("Cluster-IP", &["spec", "clusterIP"], "<none>"), fun("External-IP", "string", service_external), fun("Port(s)", "string", service_ports), AGE, wide("Selector", |it, _| or_none(&pairs(it.map_at(&["spec", "selector"]))))])
        .field("spec.clusterIP", &["spec", "clusterIP"]).field("spec.type", &["spec", "type"]).sub("proxy", Action::Proxy, "ServiceProxyOptions", PROXY),
    ns("", "v1", "endpoints", "Endpoints").short("ep").does(&networking::ENDPOINTS).cols(&[fun("Endpoints", "string", endpoints)]).age().deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    ns("", "v1", "events", "Event").short("ev").does(&event::LEGACY).unnamed().cols(EVENT).fields(event::FIELDS).field_fn("source", event::source),
    ns("events.k8s.io", "v1", "events", "Event").short("ev").stored_as("events").does(&event::EVENT).converted(event::FROM_CORE, event::TO_CORE).unnamed().cols(EVENT).fields(event::NEW_FIELDS),
    ns("", "v1", "serviceaccounts", "ServiceAccount").returned().short("sa").does(&secret::SERVICE_ACCOUNT).age().sub_of("token", Action::Token, ("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
    ns("", "v1", "replicationcontrollers", "ReplicationController").short("rc").all().does(&workloads::REPLICATION_CONTROLLER).status().scale(None)
        .cols(&[int("Desired", &["spec", "replicas"]), int("Current", &["status", "replicas"]), int("Ready", &["status", "readyReplicas"]), AGE, CONTAINERS, IMAGES, wide("Selector", |it, _| pairs(it.map_at(&["spec", "selector"])).into())])
        .field("status.replicas", &["status", "replicas"]),
    ns("", "v1", "podtemplates", "PodTemplate").returned().does(&workloads::POD_TEMPLATE).age(),
    ns("", "v1", "limitranges", "LimitRange").short("limits").does(&policy::LIMIT_RANGE).cols(&[CREATED]),
    ns("", "v1", "resourcequotas", "ResourceQuota").returned().short("quota").does(&policy::QUOTA).status().cols(&[fun("Request", "string", |it, _| quota(it, false)), fun("Limit", "string", |it, _| quota(it, true))]).age(),
    cl("", "v1", "persistentvolumes", "PersistentVolume").returned().short("pv").does(&storage::VOLUME).status().cols(&[
            path("Capacity", &["spec", "capacity", "storage"]), fun("Access Modes", "string", |it, _| access_modes(it, "spec").into()), path("Reclaim Policy", &["spec", "persistentVolumeReclaimPolicy"]),
            fun("Status", "string", phase), fun("Claim", "string", volume_claim), fun("StorageClass", "string", storage_class),
            or("VolumeAttributesClass", &["spec", "volumeAttributesClassName"], "<unset>"), path("Reason", &["status", "reason"]), AGE,
            wide_or("VolumeMode", &["spec", "volumeMode"], "<unset>")]),
    ns("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim").returned().short("pvc").does(&storage::CLAIM).status().cols(&[
            fun("Status", "string", phase), path("Volume", &["spec", "volumeName"]), fun("Capacity", "string", claim_capacity), fun("Access Modes", "string", claim_modes),
            fun("StorageClass", "string", storage_class), or("VolumeAttributesClass", &["spec", "volumeAttributesClassName"], "<unset>"), AGE,
            wide_or("VolumeMode", &["spec", "volumeMode"], "<unset>")]),
    cl("", "v1", "namespaces", "Namespace").short("ns").does(&namespace::NAMESPACE).status().verbs(NO_UPDATE).cols(&[path("Status", &["status", "phase"])]).age()
        .field("status.phase", &["status", "phase"]).sub("finalize", Action::Part, "Namespace", &["update"]),
    cl("", "v1", "nodes", "Node").short("no").does(&node::NODE).status().cols(&[
            fun("Status", "string", node_status), fun("Roles", "string", node_roles), AGE, path("Version", &["status", "nodeInfo", "kubeletVersion"]),
            wide("Internal-IP", |it, _| node_address(it, "InternalIP")), wide("External-IP", |it, _| node_address(it, "ExternalIP")), wide_or("OS-Image", &["status", "nodeInfo", "osImage"], "<unknown>"), wide_or("Kernel-Version", &["status", "nodeInfo", "kernelVersion"], "<unknown>"), wide_or("Container-Runtime", &["status", "nodeInfo", "containerRuntimeVersion"], "<unknown>")])
        .field_fn("spec.unschedulable", node::unschedulable).sub("proxy", Action::Proxy, "NodeProxyOptions", PROXY),
    ns("", "v1", "bindings", "Binding").verbs(CREATE_ONLY),
    ]
}

/// What runs pods, and what scales and protects them.
#[rustfmt::skip]
fn running() -> Vec<Row> {
    vec![
    ns("apps", "v1", "deployments", "Deployment").short("deploy").all().does(&workloads::DEPLOYMENT).status().scale(Some(&["spec", "selector"])).cols(&[
            fun("Ready", "string", ready_replicas), int("Up-to-date", &["status", "updatedReplicas"]), int("Available", &["status", "availableReplicas"]), AGE,
            CONTAINERS, IMAGES, SELECTOR]),
    ns("apps", "v1", "replicasets", "ReplicaSet").short("rs").all().does(&workloads::REPLICA_SET).status().scale(Some(&["spec", "selector"])).cols(&[
            int("Desired", &["spec", "replicas"]), int("Current", &["status", "replicas"]), int("Ready", &["status", "readyReplicas"]), AGE,
            CONTAINERS, IMAGES, SELECTOR]).field("status.replicas", &["status", "replicas"]),
    ns("apps", "v1", "controllerrevisions", "ControllerRevision").cols(&[fun("Controller", "string", controller), int("Revision", &["revision"])]).age(),
    ns("apps", "v1", "daemonsets", "DaemonSet").short("ds").all().does(&workloads::DAEMON_SET).status().cols(&[
            int("Desired", &["status", "desiredNumberScheduled"]), int("Current", &["status", "currentNumberScheduled"]), int("Ready", &["status", "numberReady"]),
            int("Up-to-date", &["status", "updatedNumberScheduled"]), int("Available", &["status", "numberAvailable"]), fun("Node Selector", "string", |it, _| or_none(&pairs(it.map_at(&["spec", "template", "spec", "nodeSelector"])))), AGE,
            CONTAINERS, IMAGES, SELECTOR]),
    ns("apps", "v1", "statefulsets", "StatefulSet").short("sts").all().does(&workloads::STATEFUL_SET).status().scale(Some(&["spec", "selector"])).cols(&[
            fun("Ready", "string", ready_replicas), AGE, CONTAINERS, IMAGES]),
    ns("batch", "v1", "cronjobs", "CronJob").short("cj").all().does(&workloads::CRON_JOB).status().cols(&[
            path("Schedule", &["spec", "schedule"]), or("Timezone", &["spec", "timeZone"], "<none>"), fun("Suspend", "boolean", suspended), count("Active", &["status", "active"]),
            fun("Last Schedule", "string", last_schedule), AGE, wide("Containers", |it, _| containers(it, CRON_TEMPLATE, "name")),
            wide("Images", |it, _| containers(it, CRON_TEMPLATE, "image")), wide("Selector", |it, _| selector_text(it.at(&["spec", "jobTemplate", "spec", "selector"])))]),
    ns("batch", "v1", "jobs", "Job").all().does(&workloads::JOB).status().cols(&[
            fun("Status", "string", job_status), fun("Completions", "string", job_completions), fun("Duration", "string", job_duration), AGE,
            CONTAINERS, IMAGES, SELECTOR]).field("status.successful", &["status", "succeeded"]),
    ns("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler").short("hpa").all().does(&policy::AUTOSCALER).status().cols(&[
            fun("Reference", "string", scale_target), fun("Targets", "string", scale_metrics), fun("MinPods", "string", |it, _| int_or_text(it.at(&["spec", "minReplicas"]), "<unset>")),
            int("MaxPods", &["spec", "maxReplicas"]), int("Replicas", &["status", "currentReplicas"]), AGE])
        .also("v1", policy::AUTOSCALER_TO_V1, policy::AUTOSCALER_FROM_V1),
    ns("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget").short("pdb").does(&policy::DISRUPTION_BUDGET).status().cols(&[
            fun("Min Available", "string", |it, _| int_or_text(it.at(&["spec", "minAvailable"]), "N/A")), fun("Max Unavailable", "string", |it, _| int_or_text(it.at(&["spec", "maxUnavailable"]), "N/A")), int("Allowed Disruptions", &["status", "disruptionsAllowed"]), AGE]),
    ]
}

/// What workloads stand on: networks, volumes, nodes, devices.
#[rustfmt::skip]
fn infrastructure() -> Vec<Row> {
    vec![
    ns("networking.k8s.io", "v1", "ingresses", "Ingress").short("ing").does(&networking::INGRESS).status().cols(&[
            or("Class", &["spec", "ingressClassName"], "<none>"), fun("Hosts", "string", ingress_hosts), fun("Address", "string", ingress_address), fun("Ports", "string", ingress_ports), AGE]),
    cl("networking.k8s.io", "v1", "ingressclasses", "IngressClass").does(&networking::INGRESS_CLASS).cols(&[path("Controller", &["spec", "controller"]), fun("Parameters", "string", class_parameters), AGE]),
    ns("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy").short("netpol").does(&networking::NETWORK_POLICY).cols(&[fun("Pod-Selector", "string", |it, _| selector_text(it.at(&["spec", "podSelector"]))), AGE]),
    cl("networking.k8s.io", "v1", "ipaddresses", "IPAddress").short("ip").does(&networking::IP_ADDRESS).cols(&[fun("ParentRef", "string", parent_ref)]).field_fn("spec.parentRef", |_| String::new()),
    cl("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR").does(&STATUS).status().cols(&[fun("CIDRs", "string", cidrs)]).age(),
    ns("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice").does(&networking::ENDPOINT_SLICE).cols(&[path("AddressType", &["addressType"]), fun("Ports", "string", slice_ports), fun("Endpoints", "string", slice_endpoints)]).age(),
    cl("storage.k8s.io", "v1", "storageclasses", "StorageClass").returned().short("sc").does(&storage::CLASS).unnamed().cols(&[
            fun("Name", "string", class_name), path("Provisioner", &["provisioner"]), or("ReclaimPolicy", &["reclaimPolicy"], "Delete"), or("VolumeBindingMode", &["volumeBindingMode"], "Immediate"),
            bool("AllowVolumeExpansion", &["allowVolumeExpansion"]), AGE]),
    cl("storage.k8s.io", "v1", "csidrivers", "CSIDriver").returned().does(&storage::CSI_DRIVER).cols(&[bool("AttachRequired", &["spec", "attachRequired"]), bool("PodInfoOnMount", &["spec", "podInfoOnMount"]),
            bool("StorageCapacity", &["spec", "storageCapacity"])]).age(),
    cl("storage.k8s.io", "v1", "csinodes", "CSINode").returned().cols(&[count("Drivers", &["spec", "drivers"]), AGE]),
    ns("storage.k8s.io", "v1", "csistoragecapacities", "CSIStorageCapacity").cols(&[path("StorageClassName", &["storageClassName"]), path("Capacity", &["capacity"])]),
    cl("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment").returned().does(&storage::ATTACHMENT).status().cols(&[path("Attacher", &["spec", "attacher"]),
            path("PV", &["spec", "source", "persistentVolumeName"]), path("Node", &["spec", "nodeName"]), bool("Attached", &["status", "attached"]), AGE]),
    cl("storage.k8s.io", "v1", "volumeattributesclasses", "VolumeAttributesClass").returned().short("vac").cols(&[path("DriverName", &["driverName"]), AGE]),
    cl("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass").cols(&[path("Handler", &["handler"])]).age(),
    cl("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass").does(&COUNTED).short("pc").cols(&[int("Value", &["value"]), fun("Global-Default", "boolean", global_default)]).age().cols(&[path("PreemptionPolicy", &["preemptionPolicy"])]),
    ns("coordination.k8s.io", "v1", "leases", "Lease").does(&ANY_UPDATE).cols(&[path("Holder", &["spec", "holderIdentity"])]).age(),
    cl("resource.k8s.io", "v1", "deviceclasses", "DeviceClass").returned().does(&COUNTED).cols(&[AGE]),
    ns("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim").returned().does(&policy::RESOURCE_CLAIM).status().cols(&[fun("State", "string", claim_state), AGE]),
    ns("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate").returned().does(&policy::RESOURCE_CLAIM_TEMPLATE).cols(&[AGE]),
    cl("resource.k8s.io", "v1", "resourceslices", "ResourceSlice").returned().does(&policy::RESOURCE_SLICE).cols(&[path("Node", &["spec", "nodeName"]), path("Driver", &["spec", "driver"]), path("Pool", &["spec", "pool", "name"]), AGE])
        .field("spec.nodeName", &["spec", "nodeName"]).field("spec.driver", &["spec", "driver"]),
    ]
}

/// What governs the API itself.
#[rustfmt::skip]
fn machinery() -> Vec<Row> {
    vec![
    cl("certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest").short("csr").does(&policy::SIGNING_REQUEST).status()
        .sub("approval", Action::Part, "CertificateSigningRequest", PART).field("spec.signerName", &["spec", "signerName"]).cols(&[
            AGE, or("SignerName", &["spec", "signerName"], "<none>"), path("Requestor", &["spec", "username"]), fun("RequestedDuration", "string", request_duration), fun("Condition", "string", request_condition)]),
    cl("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration").category("api-extensions").does(&webhooks::CONFIGURATION).cols(&[count("Webhooks", &["webhooks"]), AGE]),
    cl("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration").category("api-extensions").does(&webhooks::CONFIGURATION).cols(&[count("Webhooks", &["webhooks"]), AGE]),
    cl("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy").category("api-extensions").does(&admission::VALIDATING_POLICY).status()
        .cols(&[count("Validations", &["spec", "validations"]), fun("ParamKind", "string", param_kind), AGE]),
    cl("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding").category("api-extensions").does(&admission::VALIDATING_BINDING)
        .cols(&[path("PolicyName", &["spec", "policyName"]), fun("ParamRef", "string", param_ref), AGE]),
    cl("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicies", "MutatingAdmissionPolicy").category("api-extensions").does(&admission::MUTATING_POLICY)
        .cols(&[count("Mutations", &["spec", "mutations"]), fun("ParamKind", "string", param_kind), AGE]),
    cl("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding").category("api-extensions").does(&admission::MUTATING_BINDING)
        .cols(&[path("PolicyName", &["spec", "policyName"]), fun("ParamRef", "string", param_ref), AGE]),
    cl("flowcontrol.apiserver.k8s.io", "v1", "flowschemas", "FlowSchema").does(&policy::FLOW_SCHEMA).status().cols(&[path("PriorityLevel", &["spec", "priorityLevelConfiguration", "name"]),
            int("MatchingPrecedence", &["spec", "matchingPrecedence"]), or("DistinguisherMethod", &["spec", "distinguisherMethod", "type"], "<none>"), AGE, fun("MissingPL", "string", missing_level)]),
    cl("flowcontrol.apiserver.k8s.io", "v1", "prioritylevelconfigurations", "PriorityLevelConfiguration").does(&policy::PRIORITY_LEVEL).status().cols(&[path("Type", &["spec", "type"]),
            or("NominalConcurrencyShares", &["spec", "limited", "nominalConcurrencyShares"], "<none>"), or("Queues", &["spec", "limited", "limitResponse", "queuing", "queues"], "<none>"),
            or("HandSize", &["spec", "limited", "limitResponse", "queuing", "handSize"], "<none>"), or("QueueLengthLimit", &["spec", "limited", "limitResponse", "queuing", "queueLengthLimit"], "<none>"), AGE]),
    ns("rbac.authorization.k8s.io", "v1", "roles", "Role").does(&PATHY).cols(&[CREATED]),
    cl("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole").does(&PATHY).cols(&[CREATED]),
    ns("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding").does(&rbac::BINDING).cols(BINDING),
    cl("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding").does(&rbac::BINDING).cols(BINDING),
    cl("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition").short("crd").short("crds").category("api-extensions").does(&crd::CRD).status().cols(&[CREATED]),
    cl("apiregistration.k8s.io", "v1", "apiservices", "APIService").category("api-extensions").does(&policy::API_SERVICE).status().cols(&[
            fun("Service", "string", api_service), fun("Available", "string", api_available), AGE]),
    cl("authentication.k8s.io", "v1", "tokenreviews", "TokenReview").verbs(CREATE_ONLY),
    cl("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview").verbs(CREATE_ONLY),
    cl("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview").verbs(CREATE_ONLY),
    cl("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview").verbs(CREATE_ONLY),
    cl("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview").verbs(CREATE_ONLY),
    ns("authorization.k8s.io", "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview").verbs(CREATE_ONLY),
    ]
}

const PART: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const AGE: Col = Col { name: "Age", data_type: "string", priority: 0, cell: Cell::Age(&["metadata", "creationTimestamp"]) };
const CREATED: Col = Col { name: "Created At", data_type: "date", priority: 0, cell: Cell::Path(&["metadata", "creationTimestamp"]) };
const TEMPLATE: &[&str] = &["spec", "template", "spec", "containers"];
const CRON_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template", "spec", "containers"];
const CONTAINERS: Col = wide("Containers", |it, _| containers(it, TEMPLATE, "name"));
const IMAGES: Col = wide("Images", |it, _| containers(it, TEMPLATE, "image"));
const SELECTOR: Col = wide("Selector", |it, _| selector_text(it.at(&["spec", "selector"])));
const EVENT: &[Col] = &[
    fun("Last Seen", "string", event_last_seen),
    path("Type", &["type"]),
    path("Reason", &["reason"]),
    fun("Object", "string", event_object),
    wide("Subobject", |it, _| event_target(it).text("fieldPath").into()),
    wide("Source", event_source),
    fun("Message", "string", event_message),
    wide("First Seen", event_first_seen),
    wide("Count", event_count),
    Col { name: "Name", data_type: "string", priority: 1, cell: Cell::Name },
];
const BINDING: &[Col] = &[
    fun("Role", "string", binding_role),
    AGE,
    wide("Users", |it, _| subjects(it, "User")),
    wide("Groups", |it, _| subjects(it, "Group")),
    wide("ServiceAccounts", |it, _| subjects(it, "ServiceAccount")),
];

/// A column in the making.
#[derive(Clone)]
struct Col {
    name: &'static str,
    data_type: &'static str,
    priority: i32,
    cell: Cell,
}

const fn path(name: &'static str, path: &'static [&'static str]) -> Col {
    Col { name, data_type: "string", priority: 0, cell: Cell::Path(path) }
}

/// An integer; 0 where it is absent.
const fn int(name: &'static str, path: &'static [&'static str]) -> Col {
    Col { name, data_type: "integer", priority: 0, cell: Cell::Path(path) }
}

const fn fun(name: &'static str, data_type: &'static str, cell: CellFn) -> Col {
    Col { name, data_type, priority: 0, cell: Cell::Fn(cell) }
}

/// A text, or a word for what is absent.
const fn or(name: &'static str, path: &'static [&'static str], default: &'static str) -> Col {
    Col { name, data_type: "string", priority: 0, cell: Cell::PathOr(path, default) }
}

const fn wide_or(name: &'static str, path: &'static [&'static str], default: &'static str) -> Col {
    Col { name, data_type: "string", priority: 1, cell: Cell::PathOr(path, default) }
}

/// How many.
const fn count(name: &'static str, path: &'static [&'static str]) -> Col {
    Col { name, data_type: "integer", priority: 0, cell: Cell::Count(path) }
}

/// False where it is absent.
const fn bool(name: &'static str, path: &'static [&'static str]) -> Col {
    Col { name, data_type: "boolean", priority: 0, cell: Cell::Path(path) }
}

const fn wide(name: &'static str, cell: CellFn) -> Col {
    Col { name, data_type: "string", priority: 1, cell: Cell::Fn(cell) }
}

/// A row in the making.
struct Row(Kind);

fn ns(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Row {
    row(Scope::Namespaced, group, version, plural, kind)
}

fn cl(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Row {
    row(Scope::Cluster, group, version, plural, kind)
}

/// The OpenAPI name of a built-in type.
fn type_name(group: &str, version: &str, kind: &str) -> String {
    match group.split('.').next().unwrap_or_default() {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions" => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}"),
        "apiregistration" => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}"),
        package => format!("io.k8s.api.{package}.{version}.{kind}"),
    }
}

fn row(scope: Scope, group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Row {
    let is_plain = matches!(kind, "Endpoints");
    let name = Column {
        name: "Name".into(),
        data_type: "string".into(),
        format: "name".into(),
        description: NAME_DESCRIPTION.into(),
        priority: 0,
        cell: Cell::Name,
    };
    let version = Version {
        name: version.into(),
        schema: schema::builtin(&type_name(group, version, kind)).unwrap_or_default(),
        is_served: true,
        columns: vec![name],
        selectable: Vec::new(),
        convert: Convert::Same,
        deprecation: None,
        generation: 0,
    };
    Row(Kind {
        group: group.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        plural: plural.into(),
        singular: if is_plain { plural.into() } else { kind.to_ascii_lowercase().into() },
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        verbs: ALL_VERBS,
        versions: vec![version],
        stored: 0,
        subresources: Vec::new(),
        strategy: &Strategy::PLAIN,
        returns_deleted: false,
        storage: None,
        custom: None,
    })
}

const NAME_DESCRIPTION: &str = "The name, unique within its namespace and resource.";

impl Row {
    fn short(mut self, name: &'static str) -> Self {
        self.0.short_names.push(name.into());
        self
    }

    fn category(mut self, name: &'static str) -> Self {
        self.0.categories.push(name.into());
        self
    }

    fn all(self) -> Self {
        self.category("all")
    }

    fn does(mut self, strategy: &'static Strategy) -> Self {
        self.0.strategy = strategy;
        self
    }

    fn verbs(mut self, verbs: &'static [Verb]) -> Self {
        self.0.verbs = verbs;
        self
    }

    fn stored_as(mut self, resource: &'static str) -> Self {
        self.0.storage = Some(resource);
        self
    }

    fn converted(mut self, from_stored: fn(&mut crate::meta::Value), to_stored: fn(&mut crate::meta::Value)) -> Self {
        self.0.versions[0].convert = Convert::Fn { from_stored, to_stored };
        self
    }

    /// The same objects in another version, with the same columns.
    fn also(mut self, version: &'static str, from_stored: fn(&mut crate::meta::Value), to_stored: fn(&mut crate::meta::Value)) -> Self {
        let schema = schema::builtin(&type_name(&self.0.group, version, &self.0.kind)).unwrap_or_default();
        let other = Version { name: version.into(), schema, convert: Convert::Fn { from_stored, to_stored }, ..self.0.versions[0].clone() };
        self.0.versions.push(other);
        self
    }

    fn deprecated(mut self, warning: &'static str) -> Self {
        self.0.versions[0].deprecation = Some(warning.into());
        self
    }

    fn cols(mut self, columns: &[Col]) -> Self {
        let columns = columns.iter().map(|it| Column {
            name: it.name.into(),
            data_type: it.data_type.into(),
            format: "".into(),
            description: "".into(),
            priority: it.priority,
            cell: it.cell.clone(),
        });
        self.0.versions[0].columns.extend(columns);
        self
    }

    /// The name is not the first column: it says nothing.
    fn unnamed(mut self) -> Self {
        self.0.versions[0].columns.clear();
        self
    }

    fn age(self) -> Self {
        self.cols(&[AGE])
    }

    fn field(mut self, name: &'static str, path: &'static [&'static str]) -> Self {
        let path = path.iter().map(|it| (*it).into()).collect();
        self.0.versions[0].selectable.push(Selectable { name: name.into(), value: FieldValue::Path(path) });
        self
    }

    fn fields(self, fields: &[(&'static str, &'static [&'static str])]) -> Self {
        fields.iter().fold(self, |row, (name, path)| row.field(name, path))
    }

    fn field_fn(mut self, name: &'static str, read: fn(&crate::meta::Value) -> String) -> Self {
        self.0.versions[0].selectable.push(Selectable { name: name.into(), value: FieldValue::Fn(read) });
        self
    }

    fn sub(self, name: &'static str, action: Action, kind: &'static str, verbs: &'static [&'static str]) -> Self {
        self.sub_of(name, action, ("", "", kind), verbs)
    }

    fn sub_of(
        mut self,
        name: &'static str,
        action: Action,
        (group, version, kind): (&'static str, &'static str, &'static str),
        verbs: &'static [&'static str],
    ) -> Self {
        self.0.subresources.push(Subresource { name, action, body: Body { group, version, kind }, verbs });
        self
    }

    /// A deletion answers with the object (`ReturnDeletedObject`).
    fn returned(mut self) -> Self {
        self.0.returns_deleted = true;
        self
    }

    fn status(self) -> Self {
        let kind = match &self.0.kind {
            std::borrow::Cow::Borrowed(kind) => *kind,
            std::borrow::Cow::Owned(_) => "",
        };
        self.sub("status", Action::Status, kind, PART)
    }

    /// `selector` is the path of a LabelSelector; without one `spec.selector` is a plain map.
    fn scale(self, selector: Option<&'static [&'static str]>) -> Self {
        let texts = |path: &[&'static str]| path.iter().map(|it| (*it).into()).collect();
        let action = Action::Scale {
            spec: texts(&["spec", "replicas"]),
            status: texts(&["status", "replicas"]),
            selector: texts(selector.unwrap_or(&["spec", "selector"])),
        };
        self.sub_of("scale", action, ("autoscaling", "v1", "Scale"), PART)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn rows_are_whole_and_their_names_do_not_clash() {
        let registry = registry();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for kind in registry.iter() {
            assert_eq!(kind.plural, kind.plural.to_lowercase());
            for version in &kind.versions {
                assert!(!version.schema.name.is_empty(), "{} has no schema", kind.kind);
                assert!(version.schema.field("metadata").is_some(), "{} has no metadata", kind.kind);
            }
            for name in kind.short_names.iter().chain([&kind.singular]) {
                let owner = format!("{}.{}", kind.plural, kind.group);
                if let Some(other) = taken.insert(format!("{}/{name}", kind.group), owner.clone()) {
                    assert_eq!(owner, other, "both are {name}");
                }
            }
        }
        assert!(registry.resource("apps", "v1", "deployments").is_some());
    }
}
