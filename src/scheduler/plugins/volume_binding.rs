//! The volumes of a pod's claims: bound ones must be reachable from the node; for those that wait for their first consumer the node must have volumes to
//! bind, or somebody who provisions them. Follows pkg/scheduler/framework/plugins/volumebinding.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    runtime::{conditions, wait::await_condition},
};

use crate::{
    client::{
        Error, ObjectKey, Result,
        volumes::{self, SELECTED_NODE, volume_name},
        writes,
    },
    scheduler::{
        cluster::{Cluster, NodeInfo, PodInfo},
        framework::{Judge, Rejection},
    },
};

/// `--volume-binding` `BindTimeoutSeconds`: how long the volumes of a pod may take to be bound.
const BIND_WITHIN: Duration = Duration::from_secs(600);
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// `ErrReasonBindConflict`, `ErrReasonNodeConflict`, `ErrReasonPVNotExist`.
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const UNREACHABLE: &str = "node(s) didn't match PersistentVolume's node affinity";
const GONE: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// What the scheduler knows of volumes, with what it has decided and not yet seen done.
#[derive(Default)]
pub struct Storage {
    pub claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    pub volumes: HashMap<ObjectKey, Arc<PersistentVolume>>,
    pub classes: HashMap<ObjectKey, Arc<StorageClass>>,
}

/// What must happen to volumes before a pod is bound to a node.
#[derive(Clone, Default)]
pub struct Bindings {
    /// Volumes as they are to be, with their claims.
    volumes: Vec<(PersistentVolume, Arc<PersistentVolumeClaim>)>,
    /// Claims for which a volume is to be provisioned.
    provisions: Vec<PersistentVolumeClaim>,
}

pub fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Judge<'a>> {
    volumes::claim_names(&pod.pod).next()?;
    let storage = &cluster.storage;
    Some(match storage.claims_of(pod) {
        Ok(claims) => Judge::filter(move |node| storage.plan(&claims, node).err().map(Rejection::unresolvable)),
        Err(why) => Judge::refusal(why),
    })
}

impl Storage {
    /// The claims of a pod, each once; or why it cannot have one.
    fn claims_of(&self, pod: &PodInfo) -> std::result::Result<Vec<Arc<PersistentVolumeClaim>>, String> {
        let names: BTreeMap<String, bool> = volumes::claim_names(&pod.pod).collect();
        names.into_iter().map(|(name, is_made)| self.claim(pod, &name, is_made)).collect()
    }

    fn claim(&self, pod: &PodInfo, name: &str, is_made: bool) -> std::result::Result<Arc<PersistentVolumeClaim>, String> {
        let key = ObjectKey::new(&pod.key.namespace, name);
        let Some(claim) = self.claims.get(&key) else {
            return Err(if is_made { format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}") } else { format!("persistentvolumeclaim {name:?} not found") });
        };
        if claim.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Lost") {
            return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}", volume_name(claim)));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if is_made {
            volumes::is_made_for(claim, &pod.pod)?;
        }
        let is_waiting = volumes::is_delaying(self.class(claim)) && volume_name(claim).is_empty();
        match volumes::is_fully_bound(claim) || is_waiting {
            true => Ok(claim.clone()),
            false => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
    }

    fn class(&self, claim: &PersistentVolumeClaim) -> Option<&StorageClass> {
        self.classes.get(&ObjectKey::new("", volumes::claim_class(claim)?)).map(Arc::as_ref)
    }

    /// What is to be done for these claims on a node, the smallest first; or why it cannot be (`FindPodVolumes`).
    fn plan(&self, claims: &[Arc<PersistentVolumeClaim>], node: &NodeInfo) -> std::result::Result<Bindings, &'static str> {
        let (bound, mut unbound): (Vec<_>, Vec<_>) = claims.iter().partition(|it| volumes::is_fully_bound(it));
        for claim in bound {
            let volume = self.volumes.get(&ObjectKey::new("", volume_name(claim))).ok_or(GONE)?;
            if !volumes::is_reachable(volume, node.place()) {
                return Err(UNREACHABLE);
            }
        }
        let mut plan = Bindings::default();
        unbound.sort_by_key(|it| volumes::asked(it));
        for claim in unbound {
            let selected = claim.annotations().get(SELECTED_NODE);
            let free = self.volumes.values().filter(|it| plan.volumes.iter().all(|(taken, _)| taken.metadata.name != it.metadata.name));
            match volumes::best(claim, free, Some(node.place()), true).filter(|_| selected.is_none()) {
                Some(volume) => plan.volumes.push((volumes::bound_to(&volume, claim).unwrap_or_else(|| volume.as_ref().clone()), claim.clone())),
                None if self.is_provisioned(claim, node) && selected.is_none_or(|it| *it == node.name) => {
                    let mut wanted = claim.as_ref().clone();
                    wanted.annotations_mut().insert(SELECTED_NODE.to_owned(), node.name.clone());
                    plan.provisions.push(wanted);
                }
                None => return Err(NO_VOLUME),
            }
        }
        Ok(plan)
    }

    /// Whether the class of a claim has a provisioner that reaches the node.
    fn is_provisioned(&self, claim: &PersistentVolumeClaim, node: &NodeInfo) -> bool {
        let Some(class) = self.class(claim) else { return false };
        let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
        let is_in = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
            term.match_label_expressions.iter().flatten().all(|it| node.labels().get(&it.key).is_some_and(|label| it.values.contains(label)))
        };
        !matches!(class.provisioner.as_str(), "" | NO_PROVISIONER) && (topologies.is_empty() || topologies.iter().any(is_in))
    }

    /// Takes what `pod` needs on the node, as if it were done already.
    pub fn assume(&mut self, pod: &PodInfo, node: &NodeInfo) -> Bindings {
        let plan = self.claims_of(pod).ok().and_then(|it| self.plan(&it, node).ok()).unwrap_or_default();
        for (volume, _) in &plan.volumes {
            self.volumes.insert(ObjectKey::of(volume), Arc::new(volume.clone()));
        }
        for claim in &plan.provisions {
            self.claims.insert(ObjectKey::of(claim), Arc::new(claim.clone()));
        }
        plan
    }
}

/// How it is with the objects that were assumed to be changed, by the server's word.
#[derive(Default)]
pub struct Actual {
    pub claims: Vec<PersistentVolumeClaim>,
    pub volumes: Vec<PersistentVolume>,
}

impl Bindings {
    /// Has the volumes bound, and waits until they are, as long as the pod is there (`BindPodVolumes`).
    pub async fn bind(&self, client: &kube::Client, pod: &PodInfo, node: &str) -> Result<()> {
        if self.volumes.is_empty() && self.provisions.is_empty() {
            return Ok(());
        }
        for (volume, _) in &self.volumes {
            writes::replace(client, volume).await?;
        }
        for claim in &self.provisions {
            writes::replace(client, claim).await?;
        }
        let (pods, claims): (Api<Pod>, Api<PersistentVolumeClaim>) = (writes::api(client, &pod.key.namespace), writes::api(client, &pod.key.namespace));
        tokio::select! {
            bound = tokio::time::timeout(BIND_WITHIN, self.await_claims(&claims, node)) => bound.unwrap_or_else(|_| Err(failed("timed out waiting for the condition"))),
            _ = await_condition(pods, &pod.key.name, conditions::is_deleted(&pod.uid)) => Err(failed("pod does not exist any more")),
        }
    }

    async fn await_claims(&self, claims: &Api<PersistentVolumeClaim>, node: &str) -> Result<()> {
        for name in self.volumes.iter().map(|(_, it)| it.name_any()) {
            await_condition(claims.clone(), &name, |it: Option<&PersistentVolumeClaim>| it.is_none_or(volumes::is_fully_bound)).await.map_err(failed)?;
        }
        // A provisioner that fails takes the annotation away, so that another node is tried.
        let is_selected = |it: &PersistentVolumeClaim| it.annotations().get(SELECTED_NODE).is_some_and(|it| it == node);
        for name in self.provisions.iter().map(|it| it.name_any()) {
            let is_over = |it: Option<&PersistentVolumeClaim>| it.is_none_or(|it| volumes::is_fully_bound(it) || !is_selected(it));
            let last = await_condition(claims.clone(), &name, is_over).await.map_err(failed)?;
            if !last.is_some_and(|it| is_selected(&it)) {
                return Err(failed(format!("provisioning failed for PVC {name:?}")));
            }
        }
        Ok(())
    }

    /// What has become of the objects, after a failure.
    pub async fn actual(&self, client: &kube::Client, namespace: &str) -> Actual {
        let (all, claims): (Api<PersistentVolume>, Api<PersistentVolumeClaim>) = (Api::all(client.clone()), Api::namespaced(client.clone(), namespace));
        let mut actual = Actual::default();
        for (volume, _) in &self.volumes {
            actual.volumes.extend(all.get_opt(&volume.name_any()).await.ok().flatten());
        }
        for claim in &self.provisions {
            actual.claims.extend(claims.get_opt(&claim.name_any()).await.ok().flatten());
        }
        actual
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("binding volumes: {why}"))
}
