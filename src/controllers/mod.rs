//! The controllers: each watches some kinds and makes the cluster what their objects ask for. One file each, with upstream's name.

pub mod apiserver_endpoints;
pub mod bootstrap;
pub mod certificates;
pub mod claims;
pub mod clusterroleaggregation;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslicemirroring;
pub mod garbagecollector;
pub mod history;
pub mod job;
pub mod namespace;
pub mod nodeipam;
pub mod nodelifecycle;
pub mod podgc;
pub mod pods;
pub mod replicaset;
pub mod replication;
pub mod resourcequota;
pub mod serviceaccount;
pub mod servicecidrs;
pub mod statefulset;
pub mod ttlafterfinished;
pub mod validatingadmissionpolicystatus;

use std::{marker::PhantomData, sync::Arc};

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicy,
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    rbac::v1::ClusterRole,
};
use kube::Api;

use self::pods::PodControl;
use crate::{
    api::identity::User,
    base::Tasks,
    client::{
        Clients, EventRecorder, Informer,
        informer::{BY_NAMESPACE, BY_OWNER, Options as Watch, namespace_of, owner_uid},
        leader,
    },
};

/// One control loop.
pub trait Controller: Send + Sync {
    /// Its name, and that of the service account in kube-system under which it writes.
    fn name(&self) -> &'static str;

    /// Starts its tasks. They end with the context's.
    fn start(&self, context: &Context);
}

/// How the controllers of this process run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The PEM bundle that every namespace gets as ConfigMap `kube-root-ca.crt`.
    pub root_ca: String,
    /// With several processes: this one's name in the election of the one whose controllers run.
    pub leader_identity: Option<String>,
}

/// What a controller works with.
#[derive(Clone)]
pub struct Context {
    pub clients: Clients,
    pub tasks: Tasks,
    pub informers: Informers,
    pub options: Options,
}

/// The caches that the controllers of a process share.
#[derive(Clone)]
pub struct Informers {
    pub pods: Informer<Pod>,
    pub replica_sets: Informer<ReplicaSet>,
    pub replication_controllers: Informer<ReplicationController>,
    pub deployments: Informer<Deployment>,
    pub stateful_sets: Informer<StatefulSet>,
    pub daemon_sets: Informer<DaemonSet>,
    pub controller_revisions: Informer<ControllerRevision>,
    pub jobs: Informer<Job>,
    pub cron_jobs: Informer<CronJob>,
    pub namespaces: Informer<Namespace>,
    pub service_accounts: Informer<ServiceAccount>,
    /// Only those named `kube-root-ca.crt`.
    pub root_ca_config_maps: Informer<ConfigMap>,
    pub services: Informer<Service>,
    pub endpoints: Informer<Endpoints>,
    pub endpoint_slices: Informer<EndpointSlice>,
    pub nodes: Informer<Node>,
    /// Only the nodes' heartbeats.
    pub node_leases: Informer<Lease>,
    pub cluster_roles: Informer<ClusterRole>,
    pub validating_policies: Informer<ValidatingAdmissionPolicy>,
}

/// The index of pods by the name of their node.
pub const BY_NODE: &str = "node";
/// The index of EndpointSlices by `namespace/service`.
pub const BY_SERVICE: &str = "service";

/// The user under which the shared caches read, as kube-controller-manager's do.
const READER: &str = "system:kube-controller-manager";
const LEASE_NAME: &str = "kube-controller-manager";

/// Starts every controller under `tasks`; with a leader identity, whenever this process leads.
pub fn start(clients: &Clients, tasks: &Tasks, options: Options) {
    let Some(identity) = options.leader_identity.clone() else {
        return start_all(clients, tasks, options);
    };
    let (client, clients) = (clients.of(&User::system(READER, &[])), clients.clone());
    leader::lead(client, LEASE_NAME, &identity, tasks, move |term| start_all(&clients, term, options.clone()));
}

fn start_all(clients: &Clients, tasks: &Tasks, options: Options) {
    let informers = Informers::start(&clients.of(&User::system(READER, &[])), tasks);
    let context = Context { clients: clients.clone(), tasks: tasks.clone(), informers, options };
    all().iter().for_each(|it| it.start(&context));
}

fn all() -> Vec<Box<dyn Controller>> {
    vec![
        Box::new(clusterroleaggregation::ClusterRoleAggregationController),
        Box::new(validatingadmissionpolicystatus::ValidatingAdmissionPolicyStatusController),
        Box::new(cronjob::CronJobController),
        Box::new(deployment::DeploymentController),
        Box::new(disruption::DisruptionController),
        Box::new(endpoints::EndpointsController),
        Box::new(endpointslice::EndpointSliceController),
        Box::new(endpointslicemirroring::EndpointSliceMirroringController),
        Box::new(garbagecollector::GarbageCollector),
        Box::new(job::JobController),
        Box::new(namespace::NamespaceController),
        Box::new(bootstrap::BootstrapSigner),
        Box::new(bootstrap::TokenCleaner),
        Box::new(certificates::CertificateController),
        Box::new(nodeipam::NodeIpamController),
        Box::new(nodelifecycle::NodeLifecycleController),
        Box::new(podgc::PodGarbageCollector),
        Box::new(resourcequota::ResourceQuotaController),
        Box::new(replicaset::ReplicaSetController::<ReplicaSet>(PhantomData)),
        Box::new(replicaset::ReplicaSetController::<ReplicationController>(PhantomData)),
        Box::new(statefulset::StatefulSetController),
        Box::new(daemonset::DaemonSetController),
        Box::new(ttlafterfinished::TtlAfterFinishedController),
        Box::new(servicecidrs::ServiceCidrsController),
        Box::new(serviceaccount::ServiceAccountController),
        Box::new(serviceaccount::RootCaPublisher),
    ]
}

impl Context {
    /// A client under the identity of the controller `name`.
    pub fn client(&self, name: &str) -> kube::Client {
        self.clients.of(&User::service_account("kube-system", name))
    }

    pub fn recorder(&self, name: &str) -> EventRecorder {
        EventRecorder::start(self.client(name), name, "", &self.tasks)
    }

    /// How the controller `name` makes and deletes pods.
    pub fn pod_control(&self, name: &str) -> PodControl {
        PodControl { client: self.client(name), events: self.recorder(name), tasks: self.tasks.clone(), expectations: Arc::default() }
    }

    /// Calls `run` once every cache is filled.
    pub fn spawn_synced(&self, name: &'static str, run: impl FnOnce() + Send + 'static) {
        let informers = self.informers.clone();
        self.tasks.spawn(name, async move {
            informers.synced().await;
            run();
        });
    }
}

impl Informers {
    fn start(client: &kube::Client, tasks: &Tasks) -> Self {
        let all = |client: &kube::Client| client.clone();
        let pods = Watch::default().index(BY_OWNER, owner_uid).index(BY_NAMESPACE, namespace_of).index(BY_NODE, node_of).trim(pods::trim);
        Self {
            pods: Informer::start("pods", Api::all(all(client)), pods, tasks),
            replica_sets: Informer::start("replicasets", Api::all(all(client)), Watch::default().index(BY_OWNER, owner_uid).index(BY_NAMESPACE, namespace_of), tasks),
            replication_controllers: Informer::start("replicationcontrollers", Api::all(all(client)), Watch::default().index(BY_NAMESPACE, namespace_of), tasks),
            deployments: Informer::start("deployments", Api::all(all(client)), Watch::default().index(BY_NAMESPACE, namespace_of), tasks),
            stateful_sets: Informer::start("statefulsets", Api::all(all(client)), Watch::default().index(BY_NAMESPACE, namespace_of), tasks),
            daemon_sets: Informer::start("daemonsets", Api::all(all(client)), Watch::default().index(BY_NAMESPACE, namespace_of), tasks),
            controller_revisions: Informer::start("controllerrevisions", Api::all(all(client)), Watch::default().index(BY_OWNER, owner_uid).index(BY_NAMESPACE, namespace_of), tasks),
            jobs: Informer::start("jobs", Api::all(all(client)), Watch::default().index(BY_OWNER, owner_uid).index(BY_NAMESPACE, namespace_of), tasks),
            cron_jobs: Informer::start("cronjobs", Api::all(all(client)), Watch::default(), tasks),
            namespaces: Informer::start("namespaces", Api::all(all(client)), Watch::default(), tasks),
            service_accounts: Informer::start("serviceaccounts", Api::all(all(client)), Watch::default(), tasks),
            root_ca_config_maps: Informer::start(
                "configmaps",
                Api::all(all(client)),
                Watch::default().fields("metadata.name=kube-root-ca.crt"),
                tasks,
            ),
            services: Informer::start("services", Api::all(all(client)), Watch::default().index(BY_NAMESPACE, namespace_of), tasks),
            endpoints: Informer::start("endpoints", Api::all(all(client)), Watch::default(), tasks),
            endpoint_slices: Informer::start("endpointslices", Api::all(all(client)), Watch::default().index(BY_SERVICE, service_of), tasks),
            nodes: Informer::start("nodes", Api::all(all(client)), Watch::default(), tasks),
            node_leases: Informer::start("leases", Api::namespaced(all(client), "kube-node-lease"), Watch::default(), tasks),
            cluster_roles: Informer::start("clusterroles", Api::all(all(client)), Watch::default(), tasks),
            validating_policies: Informer::start("validatingadmissionpolicies", Api::all(all(client)), Watch::default(), tasks),
        }
    }

    async fn synced(&self) {
        tokio::join!(self.pods.synced(), self.replica_sets.synced(), self.replication_controllers.synced(), self.deployments.synced(), self.jobs.synced(), self.namespaces.synced());
        tokio::join!(self.stateful_sets.synced(), self.daemon_sets.synced(), self.controller_revisions.synced(), self.cron_jobs.synced());
        tokio::join!(self.service_accounts.synced(), self.root_ca_config_maps.synced(), self.services.synced(), self.endpoints.synced());
        tokio::join!(self.endpoint_slices.synced(), self.nodes.synced(), self.node_leases.synced(), self.cluster_roles.synced(), self.validating_policies.synced());
    }
}

fn node_of(pod: &Pod) -> Vec<String> {
    Some(pods::node_name(pod)).filter(|it| !it.is_empty()).map(str::to_owned).into_iter().collect()
}

fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.metadata.labels.as_ref().and_then(|it| it.get("kubernetes.io/service-name"));
    name.map(|it| format!("{}/{it}", slice.metadata.namespace.as_deref().unwrap_or_default())).into_iter().collect()
}
