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
pub mod ephemeral;
pub mod flowschema;
pub mod garbagecollector;
pub mod history;
pub mod job;
pub mod namespace;
pub mod nodeipam;
pub mod nodelifecycle;
pub mod persistentvolume;
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
pub mod volumeprotection;

use std::{fmt::Debug, hash::Hash, marker::PhantomData, ops::Deref, sync::Arc, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicy,
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    networking::v1::{IPAddress, ServiceCIDR},
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRole,
    storage::v1::{StorageClass, VolumeAttributesClass},
};
use kube::Api;

use self::pods::Control;
use crate::{
    api::{bootstrap_tokens, identity::User},
    base::Tasks,
    client::{
        BY_NAMESPACE, BY_OWNER, BY_SERVICE, Cached, Change, Clients, EventRecorder, Informer, ObjectKey, Result, Watch, WorkQueue,
        informer::{namespace_of, owner_uid, service_of},
        leader, pods as read, volumes,
    },
};

/// A control loop over keys: what puts them into the queue, and what is done for each. The type holds what the loop has of its own.
pub trait Controller: Sized + Send + Sync + 'static {
    type Key: Clone + Eq + Hash + Debug + Send + Sync + 'static;

    /// Its name, and that of the service account in kube-system under which it writes.
    const NAME: &'static str;
    /// What its events come from.
    const COMPONENT: &'static str = Self::NAME;
    /// How many keys are worked on at the same time.
    const WORKERS: usize = 5;

    /// Subscribes to caches. The shared ones are filled.
    fn listen(shell: &Arc<Shell<Self>>) -> impl Future<Output = ()> + Send;

    /// Brings about what the object of that key asks for; says when it is to be looked at again by itself.
    fn reconcile(shell: &Arc<Shell<Self>>, key: &Self::Key) -> impl Future<Output = Result<Option<Duration>>> + Send;
}

/// A controller that runs.
pub struct Shell<C: Controller> {
    control: Control,
    informers: Informers,
    queue: WorkQueue<C::Key>,
    own: C,
}

impl<C: Controller> Deref for Shell<C> {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl<C: Controller> Shell<C> {
    /// Starts the controller; it works once the shared caches are filled.
    fn start(context: &Context, own: C) {
        let client = context.clients.of(&User::service_account("kube-system", C::NAME));
        let (tasks, informers) = (context.tasks.clone(), context.informers.clone());
        let events = EventRecorder::start(client.clone(), C::COMPONENT, "", &tasks);
        let shell = Arc::new(Self { control: Control { client, events, tasks, expectations: Arc::default() }, informers, queue: WorkQueue::new(), own });
        context.tasks.spawn(C::NAME, async move {
            shell.informers.synced().await;
            C::listen(&shell).await;
            shell.queue.clone().run(&shell.control.tasks.clone(), C::NAME, C::WORKERS, move |key| {
                let shell = shell.clone();
                async move { C::reconcile(&shell, &key).await }
            });
        });
    }

    /// Calls `listener` for everything in a cache and for every later change.
    fn on<K: Cached>(self: &Arc<Self>, cache: &Informer<K>, listener: impl Fn(&Self, &Change<K>) + Send + Sync + 'static) {
        let shell = self.clone();
        cache.subscribe(move |change| listener(&shell, change));
    }
}

impl<C: Controller<Key = ObjectKey>> Shell<C> {
    /// Every change of an object is looked at.
    fn queue_each<K: Cached>(self: &Arc<Self>, cache: &Informer<K>) {
        self.on(cache, |it, change| it.queue.add(ObjectKey::of(change.object().as_ref())));
    }
}

/// How the controllers of this process run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The PEM bundle that every namespace gets as ConfigMap `kube-root-ca.crt`.
    pub root_ca: String,
    /// With several processes: this one's name in the election of the one whose controllers run.
    pub leader_identity: Option<String>,
}

/// What controllers are started with.
struct Context {
    clients: Clients,
    tasks: Tasks,
    informers: Informers,
    options: Options,
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
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub storage_classes: Informer<StorageClass>,
    pub attributes_classes: Informer<VolumeAttributesClass>,
    pub disruption_budgets: Informer<PodDisruptionBudget>,
    pub quotas: Informer<ResourceQuota>,
    pub certificate_requests: Informer<CertificateSigningRequest>,
    pub service_ranges: Informer<ServiceCIDR>,
    /// Only those that are given to Services.
    pub service_addresses: Informer<IPAddress>,
    /// Only bootstrap tokens.
    pub bootstrap_tokens: Informer<Secret>,
    /// Only `kube-public/cluster-info`.
    pub cluster_info: Informer<ConfigMap>,
}

/// The index of pods by the name of their node.
pub const BY_NODE: &str = "node";
/// The index of pods by the claims of their volumes, `namespace/name`.
pub const BY_CLAIM: &str = "claim";

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
    start_each(&context);
}

fn start_each(it: &Context) {
    Shell::start(it, clusterroleaggregation::ClusterRoleAggregationController);
    Shell::start(it, validatingadmissionpolicystatus::ValidatingAdmissionPolicyStatusController);
    Shell::start(it, cronjob::CronJobController);
    Shell::start(it, deployment::DeploymentController);
    Shell::start(it, disruption::DisruptionController);
    Shell::start(it, endpoints::EndpointsController);
    Shell::start(it, ephemeral::EphemeralVolumeController);
    Shell::start(it, endpointslice::EndpointSliceController);
    Shell::start(it, endpointslicemirroring::EndpointSliceMirroringController);
    Shell::start(it, garbagecollector::GarbageCollector::default());
    Shell::start(it, job::JobController::default());
    Shell::start(it, persistentvolume::PersistentVolumeController);
    Shell::start(it, volumeprotection::ProtectionController::<PersistentVolumeClaim>(PhantomData));
    Shell::start(it, volumeprotection::ProtectionController::<PersistentVolume>(PhantomData));
    Shell::start(it, volumeprotection::ProtectionController::<VolumeAttributesClass>(PhantomData));
    Shell::start(it, namespace::NamespaceController);
    Shell::start(it, certificates::CertificateController);
    Shell::start(it, nodeipam::NodeIpamController::default());
    Shell::start(it, nodelifecycle::NodeLifecycleController);
    Shell::start(it, podgc::PodGarbageCollector::default());
    Shell::start(it, resourcequota::ResourceQuotaController::default());
    Shell::start(it, replicaset::ReplicaSetController::<ReplicaSet>(PhantomData));
    Shell::start(it, replicaset::ReplicaSetController::<ReplicationController>(PhantomData));
    Shell::start(it, statefulset::StatefulSetController);
    Shell::start(it, daemonset::DaemonSetController::default());
    Shell::start(it, ttlafterfinished::TtlAfterFinishedController);
    Shell::start(it, servicecidrs::ServiceCidrsController);
    Shell::start(it, serviceaccount::ServiceAccountController);
    Shell::start(it, serviceaccount::RootCaPublisher { bundle: it.options.root_ca.clone() });
    Shell::start(it, bootstrap::BootstrapSigner);
    Shell::start(it, bootstrap::TokenCleaner);
}

impl Informers {
    fn start(client: &kube::Client, tasks: &Tasks) -> Self {
        fn all<K: Cached>(name: &'static str, watch: Watch<K>, client: &kube::Client, tasks: &Tasks) -> Informer<K> {
            Informer::start(name, Api::all(client.clone()), watch, tasks)
        }
        fn by_namespace<K: Cached>() -> Watch<K> {
            Watch::default().index(BY_NAMESPACE, namespace_of)
        }
        fn by_owner<K: Cached>() -> Watch<K> {
            by_namespace().index(BY_OWNER, owner_uid)
        }
        Self {
            pods: all("pods", by_owner().index(BY_NODE, node_of).index(BY_CLAIM, claims_of).trim(|it: &mut Pod| it.spec.iter_mut().for_each(read::trim)), client, tasks),
            replica_sets: all("replicasets", by_owner(), client, tasks),
            replication_controllers: all("replicationcontrollers", by_namespace(), client, tasks),
            deployments: all("deployments", by_namespace(), client, tasks),
            stateful_sets: all("statefulsets", by_namespace(), client, tasks),
            daemon_sets: all("daemonsets", by_namespace(), client, tasks),
            controller_revisions: all("controllerrevisions", by_owner(), client, tasks),
            jobs: all("jobs", by_owner(), client, tasks),
            cron_jobs: all("cronjobs", Watch::default(), client, tasks),
            namespaces: all("namespaces", Watch::default(), client, tasks),
            service_accounts: all("serviceaccounts", Watch::default(), client, tasks),
            root_ca_config_maps: all("configmaps", Watch::default().fields("metadata.name=kube-root-ca.crt"), client, tasks),
            services: all("services", by_namespace(), client, tasks),
            endpoints: all("endpoints", Watch::default(), client, tasks),
            endpoint_slices: all("endpointslices", Watch::default().index(BY_SERVICE, service_of), client, tasks),
            nodes: all("nodes", Watch::default(), client, tasks),
            node_leases: Informer::start("leases", Api::namespaced(client.clone(), "kube-node-lease"), Watch::default(), tasks),
            cluster_roles: all("clusterroles", Watch::default(), client, tasks),
            validating_policies: all("validatingadmissionpolicies", Watch::default(), client, tasks),
            claims: all("persistentvolumeclaims", Watch::default(), client, tasks),
            volumes: all("persistentvolumes", Watch::default(), client, tasks),
            storage_classes: all("storageclasses", Watch::default(), client, tasks),
            attributes_classes: all("volumeattributesclasses", Watch::default(), client, tasks),
            disruption_budgets: all("poddisruptionbudgets", by_namespace(), client, tasks),
            quotas: all("resourcequotas", by_namespace(), client, tasks),
            certificate_requests: all("certificatesigningrequests", Watch::default(), client, tasks),
            service_ranges: all("servicecidrs", Watch::default(), client, tasks),
            service_addresses: all("ipaddresses", Watch::default().labels("ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io"), client, tasks),
            bootstrap_tokens: Informer::start(
                "bootstrap-tokens",
                Api::namespaced(client.clone(), bootstrap_tokens::NAMESPACE),
                Watch::default().fields(&format!("type={}", bootstrap_tokens::SECRET_TYPE)),
                tasks,
            ),
            cluster_info: Informer::start(
                "cluster-info",
                Api::namespaced(client.clone(), bootstrap::PUBLIC),
                Watch::default().fields(&format!("metadata.name={}", bootstrap::CLUSTER_INFO)),
                tasks,
            ),
        }
    }

    async fn synced(&self) {
        tokio::join!(self.pods.synced(), self.replica_sets.synced(), self.replication_controllers.synced(), self.deployments.synced(), self.jobs.synced(), self.namespaces.synced());
        tokio::join!(self.stateful_sets.synced(), self.daemon_sets.synced(), self.controller_revisions.synced(), self.cron_jobs.synced());
        tokio::join!(self.service_accounts.synced(), self.root_ca_config_maps.synced(), self.services.synced(), self.endpoints.synced());
        tokio::join!(self.endpoint_slices.synced(), self.nodes.synced(), self.node_leases.synced(), self.cluster_roles.synced(), self.validating_policies.synced());
        tokio::join!(self.claims.synced(), self.volumes.synced(), self.storage_classes.synced(), self.attributes_classes.synced());
        tokio::join!(self.disruption_budgets.synced(), self.quotas.synced(), self.certificate_requests.synced(), self.service_ranges.synced());
        tokio::join!(self.service_addresses.synced(), self.bootstrap_tokens.synced(), self.cluster_info.synced());
    }
}

fn node_of(pod: &Pod) -> Vec<String> {
    Some(pods::node_name(pod)).filter(|it| !it.is_empty()).map(str::to_owned).into_iter().collect()
}

fn claims_of(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    volumes::claim_names(pod).map(|it| format!("{namespace}/{}", it.0)).collect()
}
