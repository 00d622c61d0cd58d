//! The scheduler: finds a node for every pod that has none. One task owns the picture of the cluster and the queue; informers feed it,
//! bindings run beside it. Follows pkg/scheduler/schedule_one.go.

pub mod cluster;
pub mod framework;
mod nominations;
pub mod plugins;
pub mod queue;

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Binding, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::Status,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use self::{
    cluster::{Cluster, PodInfo},
    framework::{ClusterEvent, Diagnosis},
    nominations::Nominations,
    plugins::{
        default_preemption, filters,
        volume_binding::{Actual, Bindings},
    },
    queue::Queue,
};
use crate::{
    api::identity::User,
    base::{Tasks, clock},
    client::{
        Cached, Change, Clients, Error, EventRecorder, EventType, Informer, ObjectKey, Result, Watch, leader,
        pods::{self, disruption_target, node_name},
        writes,
    },
};

const IDENTITY: &str = "system:kube-scheduler";
/// `DefaultSchedulerName`: pods of other schedulers are left alone.
const NAME: &str = "default-scheduler";
/// As many pods are scheduled at a stretch before other tasks of the thread get their turn.
const STRETCH: usize = 32;
/// `maxMessage`: the longest text of an event.
const MESSAGE_MOST: usize = 1024;

/// How the scheduler of this process runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// With several processes: this one's name in the election of the one that schedules.
    pub leader_identity: Option<String>,
}

/// Starts the scheduler under `tasks`; with a leader identity, whenever this process leads.
pub fn start(clients: &Clients, tasks: &Tasks, options: Options) {
    let client = clients.of(&User::system(IDENTITY, &[]));
    let Some(identity) = options.leader_identity else {
        return start_one(client, tasks);
    };
    leader::lead(client.clone(), "kube-scheduler", &identity, tasks, move |term| start_one(client.clone(), term));
}

/// What the scheduling task learns.
enum News {
    Node(Change<Node>),
    Pod(Change<Pod>),
    Namespace(Change<Namespace>),
    Claim(Change<PersistentVolumeClaim>),
    Volume(Change<PersistentVolume>),
    Class(Change<StorageClass>),
    /// A binding failed: the pod is not on that node after all, and its volumes are as they were.
    Unbound {
        pod: Arc<PodInfo>,
        node: String,
        error: Error,
        actual: Actual,
    },
}

fn start_one(client: kube::Client, tasks: &Tasks) {
    let pods: Informer<Pod> = Informer::start("scheduler-pods", Api::all(client.clone()), Watch::default().trim(trim), tasks);
    let nodes: Informer<Node> = Informer::start("scheduler-nodes", Api::all(client.clone()), Watch::default(), tasks);
    let namespaces: Informer<Namespace> = Informer::start("scheduler-namespaces", Api::all(client.clone()), Watch::default(), tasks);
    let claims: Informer<PersistentVolumeClaim> = Informer::start("scheduler-claims", Api::all(client.clone()), Watch::default(), tasks);
    let volumes: Informer<PersistentVolume> = Informer::start("scheduler-volumes", Api::all(client.clone()), Watch::default(), tasks);
    let classes: Informer<StorageClass> = Informer::start("scheduler-classes", Api::all(client.clone()), Watch::default(), tasks);
    let (sender, news) = mpsc::unbounded_channel();
    let scheduler = Scheduler {
        events: EventRecorder::start(client.clone(), NAME, "", tasks),
        client,
        tasks: tasks.clone(),
        cluster: Cluster::default(),
        queue: Queue::default(),
        nominations: Nominations::default(),
        sender: sender.clone(),
        turn: 0,
    };
    tasks.spawn_vital("scheduler", async move {
        tokio::join!(nodes.synced(), namespaces.synced(), claims.synced(), volumes.synced(), classes.synced(), pods.synced());
        tell(&namespaces, &sender, News::Namespace);
        tell(&nodes, &sender, News::Node);
        tell(&classes, &sender, News::Class);
        tell(&volumes, &sender, News::Volume);
        tell(&claims, &sender, News::Claim);
        tell(&pods, &sender, News::Pod);
        scheduler.run(news).await;
    });
}

fn tell<K: Cached>(cache: &Informer<K>, sender: &mpsc::UnboundedSender<News>, news: fn(Change<K>) -> News) {
    let sender = sender.clone();
    cache.subscribe(move |change| drop(sender.send(news(change.clone()))));
}

/// Keeps a copy up to date.
fn keep<K: Cached>(copy: &mut HashMap<ObjectKey, Arc<K>>, change: &Change<K>) {
    let key = ObjectKey::of(change.object().as_ref());
    match change.is_deleted() {
        true => _ = copy.remove(&key),
        false => _ = copy.insert(key, change.object().clone()),
    }
}

struct Scheduler {
    client: kube::Client,
    events: EventRecorder,
    tasks: Tasks,
    cluster: Cluster,
    queue: Queue,
    nominations: Nominations,
    sender: mpsc::UnboundedSender<News>,
    turn: usize,
}

impl Scheduler {
    async fn run(mut self, mut news: mpsc::UnboundedReceiver<News>) {
        loop {
            while let Ok(one) = news.try_recv() {
                self.learn(one);
            }
            let next_due = self.queue.release_due(Instant::now());
            if self.schedule_some() {
                tokio::task::yield_now().await;
                continue;
            }
            let due = async {
                match next_due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                one = news.recv() => match one {
                    Some(one) => self.learn(one),
                    None => return,
                },
                () = due => (),
            }
        }
    }

    fn learn(&mut self, news: News) {
        let is_of_storage = matches!(news, News::Claim(_) | News::Volume(_) | News::Class(_));
        match news {
            News::Node(change) => self.node_changed(&change),
            News::Pod(change) => self.pod_changed(&change),
            News::Namespace(change) => self.namespace_changed(&change),
            News::Claim(change) => keep(&mut self.cluster.storage.claims, &change),
            News::Volume(change) => keep(&mut self.cluster.storage.volumes, &change),
            News::Class(change) => keep(&mut self.cluster.storage.classes, &change),
            News::Unbound { pod, node, error, actual } => {
                tracing::debug!(pod = %pod.key, node, %error, "binding failed");
                actual.volumes.into_iter().for_each(|it| keep(&mut self.cluster.storage.volumes, &Change::Added(Arc::new(it))));
                actual.claims.into_iter().for_each(|it| keep(&mut self.cluster.storage.claims, &Change::Added(Arc::new(it))));
                self.unbound(pod, &node, &error);
            }
        }
        if is_of_storage {
            self.happened(ClusterEvent::StorageChanged);
        }
    }

    /// A pod that is gone, or bound after all, is not tried again.
    fn unbound(&mut self, pod: Arc<PodInfo>, node: &str, error: &Error) {
        let is_assumed = self.cluster.nodes.get(node).and_then(|it| it.pods.get(&pod.uid)).is_some_and(|it| it.node_name().is_empty());
        if !is_assumed {
            return;
        }
        self.cluster.remove_pod(&pod.uid, node);
        self.happened(ClusterEvent::PodGone);
        if !error.is_not_found() {
            self.tell_unscheduled(&pod, "SchedulerError", &error.message(), None);
            self.queue.put_back(pod, Instant::now());
        }
    }

    fn happened(&mut self, event: ClusterEvent) {
        self.queue.happened(event, Instant::now());
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        match change {
            Change::Deleted(node) => self.cluster.remove_node(&node.name_any()),
            Change::Added(node) => {
                self.cluster.set_node(node.clone());
                self.happened(ClusterEvent::NodeAdded);
            }
            Change::Updated { old, new } => {
                let matters = |it: &Node| {
                    (it.spec.clone(), it.metadata.labels.clone(), it.status.as_ref().map(|it| (it.allocatable.clone(), it.images.clone())))
                };
                if matters(old) != matters(new) {
                    self.cluster.set_node(new.clone());
                    self.happened(ClusterEvent::NodeChanged);
                }
            }
        }
    }

    fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let namespace = change.object();
        match change.is_deleted() {
            true => self.cluster.namespaces.remove(&namespace.name_any()),
            false => self.cluster.namespaces.insert(namespace.name_any(), namespace.labels().clone()),
        };
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let uid = pod.uid().unwrap_or_default();
        if let Some(old) = change.old().filter(|it| it.metadata.uid != pod.metadata.uid) {
            self.forget(&old.uid().unwrap_or_default(), old);
        }
        if change.is_deleted() || pods::is_terminal(pod) {
            return self.forget(&uid, pod);
        }
        let node = node_name(pod).to_owned();
        if !node.is_empty() {
            return self.assigned(pod, &uid, &node);
        }
        let is_ours = pod.spec.as_ref().and_then(|it| it.scheduler_name.as_deref()).unwrap_or(NAME) == NAME;
        let is_bound_soon = self.cluster.nodes.values().any(|it| it.pods.contains_key(&uid));
        if !is_ours || pod.metadata.deletion_timestamp.is_some() || filters::is_gated(pod) {
            self.queue.remove(&uid);
            self.nominations.remove(&uid);
        } else if !is_bound_soon {
            let info = Arc::new(PodInfo::new(Pod::clone(pod)));
            let nominated = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref()).filter(|it| !it.is_empty());
            if let (Some(node), None) = (nominated, self.nominations.node_of(&uid)) {
                self.nominations.add(info.clone(), node);
            }
            self.queue.put(info);
        }
    }

    fn forget(&mut self, uid: &str, pod: &Pod) {
        self.queue.remove(uid);
        self.nominations.remove(uid);
        if self.cluster.remove_pod(uid, node_name(pod)).is_some() {
            self.happened(ClusterEvent::PodGone);
        }
    }

    fn assigned(&mut self, pod: &Pod, uid: &str, node: &str) {
        self.queue.remove(uid);
        self.nominations.remove(uid);
        let known = self.cluster.nodes.get(node).and_then(|it| it.pods.get(uid));
        let is_same = known.is_some_and(|it| {
            let (old, new) = (&it.pod.metadata, &pod.metadata);
            old.labels == new.labels && old.deletion_timestamp == new.deletion_timestamp && it.node_name() == node
        });
        if !is_same {
            let was_known = known.is_some();
            self.cluster.add_pod(Arc::new(PodInfo::new(pod.clone())), node);
            if !was_known {
                self.happened(ClusterEvent::PodAssigned);
            }
        }
    }

    /// Whether there was anything to do.
    fn schedule_some(&mut self) -> bool {
        for done in 0..STRETCH {
            let Some(pod) = self.queue.pop() else {
                return done > 0;
            };
            self.turn = self.turn.wrapping_add(1);
            let turn = self.turn;
            match self.nominations.counted(&pod, &mut self.cluster, |cluster| framework::decide(&pod, cluster, turn)) {
                Ok(node) => self.assume(pod, node),
                Err(diagnosis) => self.fail(&pod, diagnosis),
            }
        }
        true
    }

    /// The pod counts as on the node from now on, while the server is told.
    fn assume(&mut self, pod: Arc<PodInfo>, node: String) {
        self.queue.remove(&pod.uid);
        self.nominations.remove(&pod.uid);
        let bindings = self.cluster.nodes.get(&node).map_or_else(Bindings::default, |it| self.cluster.storage.assume(&pod, it));
        self.cluster.add_pod(pod.clone(), &node);
        self.happened(ClusterEvent::PodAssigned);
        let (client, events, sender) = (self.client.clone(), self.events.clone(), self.sender.clone());
        self.tasks.spawn("bind", async move {
            let volumes = bindings.bind(&client, &pod, &node).await;
            let bound = match volumes {
                Ok(()) => bind(&client, &pod, &node).await,
                failed => failed,
            };
            match bound {
                Ok(()) => {
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    events.event(&pod.pod, EventType::Normal, "Scheduled", message);
                }
                Err(error) => {
                    let actual = bindings.actual(&client, &pod.key.namespace).await;
                    drop(sender.send(News::Unbound { pod, node, error, actual }));
                }
            }
        });
    }

    fn fail(&mut self, pod: &Arc<PodInfo>, diagnosis: Diagnosis) {
        let mut message = diagnosis.message();
        let mut nominated = None;
        if diagnosis.nodes > 0 {
            let promised = self.nominations.node_of(&pod.uid);
            match self.nominations.counted(pod, &mut self.cluster, |cluster| default_preemption::preempt(pod, promised, cluster, &diagnosis)) {
                Ok(candidate) => {
                    nominated = Some(candidate.node.clone());
                    self.nominations.add(pod.clone(), &candidate.node);
                    self.evict(pod, candidate);
                }
                Err(refusal) => {
                    message = format!("{message} preemption: {}", refusal.why);
                    if refusal.is_hopeless {
                        self.nominations.remove(&pod.uid);
                    }
                }
            }
        }
        let reason = if diagnosis.nodes == 0 { "SchedulerError" } else { "Unschedulable" };
        self.queue.reject(&pod.uid, diagnosis.plugins, Instant::now());
        self.tell_unscheduled(pod, reason, &message, nominated);
    }

    fn evict(&self, pod: &PodInfo, candidate: default_preemption::Candidate) {
        let by = pod.uid.clone();
        for victim in candidate.victims {
            let (client, events, by, node) = (self.client.clone(), self.events.clone(), by.clone(), candidate.node.clone());
            self.tasks.spawn("preempt", async move {
                match preempt(&client, &victim).await {
                    Ok(()) => events.event(&victim.pod, EventType::Normal, "Preempted", format!("Preempted by pod {by} on node {node}")),
                    Err(error) => tracing::debug!(pod = %victim.key, %error, "preempting failed"),
                }
            });
        }
    }

    fn tell_unscheduled(&self, pod: &Arc<PodInfo>, reason: &str, message: &str, nominated: Option<String>) {
        let text: String = message.chars().take(MESSAGE_MOST).collect();
        self.events.event(&pod.pod, EventType::Warning, "FailedScheduling", text);
        let Some(patch) = unscheduled(&pod.pod, reason, message, nominated) else { return };
        let (client, pod) = (self.client.clone(), pod.clone());
        self.tasks.spawn("pod-condition", async move {
            if let Err(error) = writes::patch_status(&client, &pod.pod, &Patch::Strategic(patch)).await {
                tracing::debug!(pod = %pod.key, %error, "the condition was not written");
            }
        });
    }
}

/// The patch that makes condition PodScheduled say so, unless it does already.
fn unscheduled(pod: &Pod, reason: &str, message: &str, nominated: Option<String>) -> Option<serde_json::Value> {
    let present = pods::condition(pod, "PodScheduled");
    let is_said = present.is_some_and(|it| it.status == "False" && it.reason.as_deref() == Some(reason) && it.message.as_deref() == Some(message));
    if is_said && nominated.is_none() {
        return None;
    }
    let since = present.filter(|it| it.status == "False").and_then(|it| it.last_transition_time.as_ref()).map_or_else(clock::now, |it| it.0);
    let mut patch = json!({"status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastTransitionTime": clock::rfc3339(since), "observedGeneration": pod.metadata.generation,
    }]}});
    if let Some(node) = nominated {
        patch["status"]["nominatedNodeName"] = json!(node);
    }
    Some(patch)
}

async fn bind(client: &kube::Client, pod: &PodInfo, node: &str) -> Result<()> {
    let metadata = ObjectMeta {
        name: Some(pod.key.name.clone()),
        namespace: Some(pod.key.namespace.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectMeta::default()
    };
    let target = ObjectReference { kind: Some("Node".to_owned()), name: Some(node.to_owned()), ..ObjectReference::default() };
    let binding = Binding { metadata, target };
    let _: Status = writes::api::<Pod>(client, &pod.key.namespace).create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await?;
    Ok(())
}

async fn preempt(client: &kube::Client, victim: &PodInfo) -> Result<()> {
    let condition = disruption_target("PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod");
    writes::patch_status(client, &victim.pod, &Patch::Strategic(json!({"status": {"conditions": [condition]}}))).await?;
    writes::delete(client, &victim.pod, DeleteParams::default()).await.map(drop)
}

/// Drops of a cached pod what scheduling never reads.
fn trim(pod: &mut Pod) {
    pod.metadata.annotations = None;
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
    }
    if let Some(spec) = &mut pod.spec {
        pods::trim(spec);
    }
}
