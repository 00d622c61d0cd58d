//! Binds claims and volumes to each other, and says in their phases what became of them. It provisions, recycles and deletes nothing itself: a provisioner
//! is told by annotations of the claim. Follows pkg/controller/volume/persistentvolume (`pv_controller.go`).

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt, api::PostParams};

use super::{BY_CLAIM, Controller, pods};
use crate::{
    base::clock,
    client::{
        EventType, ObjectKey, Result,
        volumes::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, has_annotation, volume_name},
        writes,
    },
};

/// By which classes a claim that names none gets one (`GetDefaultClass`).
const DEFAULT_CLASS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// On a claim: who is to provision a volume for it.
const PROVISIONER: [&str; 2] = ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// On a volume: who has provisioned it, or takes care of it instead.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// Names of provisioners within Kubernetes, of which there are none here.
const IN_TREE: &str = "kubernetes.io/";

pub struct PersistentVolumeController;
type Shell = super::Shell<PersistentVolumeController>;

impl Controller for PersistentVolumeController {
    /// A claim, or without a namespace a volume.
    type Key = ObjectKey;
    const NAME: &'static str = "persistent-volume-binder";
    const COMPONENT: &'static str = "persistentvolume-controller";
    /// One claim after the other, so that two do not want the same volume.
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.claims, |it, change| {
            it.queue.add(ObjectKey::of(change.object().as_ref()));
            let named = [change.object()].into_iter().chain(change.old()).map(|it| volume_name(it)).filter(|it| !it.is_empty());
            named.for_each(|name| it.queue.add(ObjectKey::new("", name)));
        });
        shell.on(&shell.informers.volumes, |it, change| {
            it.queue.add(ObjectKey::of(change.object().as_ref()));
            match reference(change.object()) {
                Some(claim) => it.queue.add(key_of(claim)),
                None => it.queue_unbound(),
            }
        });
        shell.on(&shell.informers.storage_classes, |it, _| it.queue_unbound());
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        match key.namespace.as_str() {
            "" => shell.sync_volume(&key.name).await?,
            _ => shell.sync_claim(key).await?,
        }
        Ok(None)
    }
}

fn reference(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn key_of(reference: &ObjectReference) -> ObjectKey {
    ObjectKey::new(reference.namespace.clone().unwrap_or_default(), reference.name.clone().unwrap_or_default())
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
}

/// What is done reads the object from the server, so that no decision is repeated for want of news.
impl Shell {
    fn queue_unbound(&self) {
        self.informers.claims.list().iter().filter(|it| !has_annotation(it.as_ref(), BIND_COMPLETED)).for_each(|it| self.queue.add(ObjectKey::of(it.as_ref())));
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn sync_claim(&self, key: &ObjectKey) -> Result<()> {
        let Some(claim) = self.claims(&key.namespace).get_opt(&key.name).await? else { return Ok(()) };
        let volume = match volume_name(&claim) {
            "" => None,
            name => self.volumes().get_opt(name).await?,
        };
        let owner = volume.as_ref().and_then(reference);
        if has_annotation(&claim, BIND_COMPLETED) {
            return match &volume {
                None if volume_name(&claim).is_empty() => self.lose(claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!").await,
                None => self.lose(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!").await,
                Some(volume) if owner.is_none_or(|it| it.uid == claim.metadata.uid) => self.bind(volume, claim).await,
                Some(_) => self.lose(claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly").await,
            };
        }
        match &volume {
            None if volume_name(&claim).is_empty() => self.find(claim).await,
            None => self.set_claim(claim, "Pending", None).await.map(drop),
            Some(volume) if volumes::is_bound_to(volume, &claim) => self.bind(volume, claim).await,
            Some(volume) if owner.is_none() && volumes::mismatches(volume, &claim).is_empty() => self.bind(volume, claim).await,
            Some(volume) => {
                let (name, why) = (volume.name_any(), volumes::mismatches(volume, &claim));
                match why.first().filter(|_| owner.is_none()) {
                    Some(why) => self.events.event(&claim, EventType::Warning, "VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}")),
                    None => self.events.event(&claim, EventType::Warning, "FailedBinding", format!("volume {name:?} already bound to a different claim.")),
                }
                self.set_claim(claim, "Pending", None).await.map(drop)
            }
        }
    }

    /// Looks for a volume for a claim that names none, or has one provisioned.
    async fn find(&self, mut claim: PersistentVolumeClaim) -> Result<()> {
        let class = volumes::claim_class(&claim).map(str::to_owned);
        let found = class.as_ref().and_then(|it| self.informers.storage_classes.get(&ObjectKey::new("", it)));
        let waits = volumes::is_delaying(found.as_deref());
        if let Some(volume) = volumes::best(&claim, self.informers.volumes.list().iter(), None, waits) {
            return self.bind(&volume, claim).await;
        }
        let default = if class.is_none() { self.default_class() } else { None };
        match class.as_deref() {
            None if default.is_some() => {
                claim.spec.get_or_insert_default().storage_class_name = default;
                return self.replace(&claim).await.map(drop);
            }
            _ if waits && !has_annotation(&claim, SELECTED_NODE) => self.tell_waiting(&claim),
            None | Some("") => {
                let message = "no persistent volumes available for this claim and no storage class is set";
                self.events.event(&claim, EventType::Normal, "FailedBinding", message);
            }
            Some(class) => return self.provision(claim, class, found.as_deref()).await,
        }
        self.set_claim(claim, "Pending", None).await.map(drop)
    }

    fn default_class(&self) -> Option<String> {
        let classes = self.informers.storage_classes.list();
        let defaults = classes.iter().filter(|it| DEFAULT_CLASS.iter().any(|name| it.annotations().get(*name).is_some_and(|it| it == "true")));
        defaults.min_by_key(|it| (std::cmp::Reverse(it.creation_timestamp()), it.name_any())).map(|it| it.name_any())
    }

    fn tell_waiting(&self, claim: &PersistentVolumeClaim) {
        let pods = self.informers.pods.by(BY_CLAIM, &ObjectKey::of(claim).to_string());
        let names: Vec<String> = pods.iter().filter(|it| !pods::is_terminal(it) && pods::node_name(it).is_empty()).map(|it| it.name_any()).collect();
        let (reason, message) = match names.as_slice() {
            [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
            [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
            all => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", all.join(","))),
        };
        self.events.event(claim, EventType::Normal, reason, message);
    }

    /// Tells the class's provisioner by annotations.
    async fn provision(&self, mut claim: PersistentVolumeClaim, name: &str, class: Option<&StorageClass>) -> Result<()> {
        let failed = match class.map(|it| it.provisioner.as_str()) {
            None => format!("storageclass.storage.k8s.io {name:?} not found"),
            Some(provisioner) if provisioner.starts_with(IN_TREE) => format!("no volume plugin matched name: {provisioner}"),
            Some(provisioner) => {
                if PROVISIONER.iter().any(|it| claim.annotations().get(*it).is_none_or(|it| it != provisioner)) {
                    PROVISIONER.iter().for_each(|it| _ = claim.annotations_mut().insert((*it).to_owned(), provisioner.to_owned()));
                    claim = self.replace(&claim).await?;
                }
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. \
                     If volume creation is delayed, please verify that the provisioner is running and correctly registered."
                );
                self.events.event(&claim, EventType::Normal, "ExternalProvisioning", message);
                return Ok(());
            }
        };
        self.events.event(&claim, EventType::Warning, "ProvisioningFailed", failed);
        Ok(())
    }

    /// Binds both to each other, the volume first; what is so already is not written.
    async fn bind(&self, volume: &PersistentVolume, mut claim: PersistentVolumeClaim) -> Result<()> {
        let bound = match volumes::bound_to(volume, &claim) {
            Some(bound) => self.volumes().replace(&bound.name_any(), &PostParams::default(), &bound).await?,
            None => volume.clone(),
        };
        let volume = self.set_volume(bound, "Bound").await?;
        if volume_name(&claim) != volume.name_any() {
            claim.spec.get_or_insert_default().volume_name = Some(volume.name_any());
            claim.annotations_mut().insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            claim.annotations_mut().insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
            claim = self.replace(&claim).await?;
        } else if !has_annotation(&claim, BIND_COMPLETED) {
            claim.annotations_mut().insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
            claim = self.replace(&claim).await?;
        }
        self.set_claim(claim, "Bound", Some(&volume)).await.map(drop)
    }

    async fn replace(&self, claim: &PersistentVolumeClaim) -> Result<PersistentVolumeClaim> {
        Ok(self.claims(&claim.namespace().unwrap_or_default()).replace(&claim.name_any(), &PostParams::default(), claim).await?)
    }

    async fn lose(&self, claim: PersistentVolumeClaim, reason: &str, message: &str) -> Result<()> {
        if self.set_claim(claim.clone(), "Lost", None).await? {
            self.events.event(&claim, EventType::Warning, reason, message);
        }
        Ok(())
    }

    /// Writes a claim's phase and what it got by its volume; whether that is news.
    async fn set_claim(&self, claim: PersistentVolumeClaim, phase: &str, volume: Option<&PersistentVolume>) -> Result<bool> {
        let before = claim.status.clone().unwrap_or_default();
        let is_news = before.phase.as_deref() != Some(phase);
        let spec = volume.and_then(|it| it.spec.as_ref());
        let mut status = PersistentVolumeClaimStatus { phase: Some(phase.to_owned()), access_modes: spec.and_then(|it| it.access_modes.clone()), ..before.clone() };
        if spec.is_none() || is_news {
            status.capacity = spec.and_then(|it| it.capacity.clone());
        }
        if spec.is_none() || before.phase.as_deref() == Some("Pending") {
            status.current_volume_attributes_class_name = spec.and_then(|it| it.volume_attributes_class_name.clone());
        }
        if status != before {
            let claim = PersistentVolumeClaim { status: Some(status), ..claim };
            writes::replace_part(&self.client, "status", &claim).await?;
        }
        Ok(is_news)
    }

    async fn set_volume(&self, volume: PersistentVolume, to: &str) -> Result<PersistentVolume> {
        self.set_volume_because(volume, to, None).await
    }

    async fn set_volume_because(&self, mut volume: PersistentVolume, to: &str, why: Option<String>) -> Result<PersistentVolume> {
        if phase(&volume) == to {
            return Ok(volume);
        }
        let status = volume.status.get_or_insert_default();
        (status.phase, status.message, status.last_phase_transition_time) = (Some(to.to_owned()), why, Some(Time(clock::now())));
        Ok(self.volumes().replace_status(&volume.name_any(), &PostParams::default(), &volume).await?)
    }

    async fn sync_volume(&self, name: &str) -> Result<()> {
        let Some(volume) = self.volumes().get_opt(name).await? else { return Ok(()) };
        let Some(owner) = reference(&volume).filter(|it| it.uid.as_ref().is_some_and(|it| !it.is_empty())) else {
            return self.set_volume(volume, "Available").await.map(drop);
        };
        let key = key_of(owner);
        let claim = self.claims(&key.namespace).get_opt(&key.name).await?.filter(|it| it.metadata.uid == owner.uid);
        let is_provisioned = has_annotation(&volume, PROVISIONED_BY) && policy(&volume) == "Delete";
        match claim {
            Some(claim) if volume_name(&claim) == name => self.set_volume(volume, "Bound").await.map(drop),
            Some(claim) if volume_name(&claim).is_empty() && volumes::is_other_mode(&volume, &claim) => {
                let (to_claim, to_volume) = (format!("PersistentVolumeClaim {:?}", claim.name_any()), format!("PersistentVolume {name:?}"));
                self.events.event(&volume, EventType::Warning, "VolumeMismatch", format!("Cannot bind PersistentVolume to requested {to_claim} due to incompatible volumeMode."));
                self.events.event(&claim, EventType::Warning, "VolumeMismatch", format!("Cannot bind {to_volume} to requested PersistentVolumeClaim due to incompatible volumeMode."));
                Ok(())
            }
            // The claim's turn will end what began.
            Some(claim) if volume_name(&claim).is_empty() => Ok(self.queue.add(ObjectKey::of(&claim))),
            // The claim is bound elsewhere.
            Some(_) if !is_provisioned => self.unbind(volume).await,
            _ => self.release(volume).await,
        }
    }

    /// Gives a volume back: to all, or to the claims of the name for which a user keeps it.
    async fn unbind(&self, mut volume: PersistentVolume) -> Result<()> {
        let is_chosen = volume.annotations_mut().remove(BOUND_BY_CONTROLLER).is_some();
        if let Some(spec) = &mut volume.spec {
            spec.claim_ref = spec.claim_ref.take().filter(|_| !is_chosen).map(|it| ObjectReference { uid: None, ..it });
        }
        let freed = self.volumes().replace(&volume.name_any(), &PostParams::default(), &volume).await?;
        self.set_volume(freed, "Available").await.map(drop)
    }

    /// The claim is gone: what becomes of the volume its policy says, and whoever provisioned it does it.
    async fn release(&self, volume: PersistentVolume) -> Result<()> {
        let volume = if phase(&volume) == "Failed" { volume } else { self.set_volume(volume, "Released").await? };
        let external = volume.annotations().get(PROVISIONED_BY).is_some_and(|it| !it.is_empty() && !it.starts_with(IN_TREE));
        let is_csi = volume.spec.as_ref().is_some_and(|it| it.csi.is_some());
        let (reason, message) = match policy(&volume) {
            _ if has_annotation(&volume, MIGRATED_TO) => return Ok(()),
            "Recycle" => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
            "Delete" if !external && !is_csi => {
                ("VolumeFailedDelete", format!("error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched", volume.name_any()))
            }
            _ => return Ok(()),
        };
        if phase(&volume) != "Failed" {
            let failed = self.set_volume_because(volume, "Failed", Some(message.clone())).await?;
            self.events.event(&failed, EventType::Warning, reason, message);
        }
        Ok(())
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|it| it.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}
