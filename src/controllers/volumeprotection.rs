//! Volumes, claims and attribute classes that are to be deleted stay while something uses them; then their finalizer goes.
//! Follows pkg/controller/volume/{pvcprotection,pvprotection,vacprotection}.

use std::{future::Future, marker::PhantomData, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::VolumeAttributesClass,
};
use kube::{
    Api, ResourceExt,
    api::ListParams,
};

use super::{BY_CLAIM, Controller, Informers, pods};
use crate::client::{Change, Informer, ObjectKey, Result, informer::Cached, volumes, writes};

/// A kind whose objects are protected.
pub trait Protected: Cached {
    const CONTROLLER: &'static str;
    const FINALIZER: &'static str;

    fn cache(informers: &Informers) -> &Informer<Self>;

    /// Subscribes to what may have used it and no longer does.
    fn listen(shell: &Arc<Shell<Self>>);

    fn is_used(&self, shell: &Shell<Self>) -> impl Future<Output = Result<bool>> + Send;
}

pub struct ProtectionController<K>(pub PhantomData<K>);
type Shell<K> = super::Shell<ProtectionController<K>>;

impl<K: Protected> Controller for ProtectionController<K> {
    type Key = ObjectKey;
    const NAME: &'static str = K::CONTROLLER;

    async fn listen(shell: &Arc<Shell<K>>) {
        shell.queue_each(K::cache(&shell.informers));
        K::listen(shell);
    }

    async fn reconcile(shell: &Arc<Shell<K>>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(mut object) = K::cache(&shell.informers).get(key).map(|it| K::clone(&it)) else { return Ok(None) };
        let (is_going, is_protected) = (object.meta().deletion_timestamp.is_some(), object.finalizers().iter().any(|it| it == K::FINALIZER));
        match (is_going, is_protected) {
            (true, true) if !object.is_used(shell).await? => object.finalizers_mut().retain(|it| it != K::FINALIZER),
            // One from a time without the admission that adds it.
            (false, false) => object.finalizers_mut().push(K::FINALIZER.to_owned()),
            _ => return Ok(None),
        }
        match writes::replace(&shell.client, &object).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}

impl Protected for PersistentVolumeClaim {
    const CONTROLLER: &'static str = "pvc-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pvc-protection";

    fn cache(informers: &Informers) -> &Informer<Self> {
        &informers.claims
    }

    fn listen(shell: &Arc<Shell<Self>>) {
        shell.on(&shell.informers.pods, |it, change| {
            let no_longer = |pod: &Pod| volumes::claim_names(pod).for_each(|(name, _)| it.queue.add(ObjectKey::new(pod.namespace().unwrap_or_default(), name)));
            let pod = change.object();
            if change.is_deleted() || pods::is_terminal(pod) || pods::node_name(pod).is_empty() || is_shut_down(pod) {
                no_longer(pod);
            }
            change.old().filter(|old| old.metadata.uid != pod.metadata.uid).into_iter().for_each(|it| no_longer(it));
        });
    }

    /// The cache may lack a pod that is new: only the server's word that there is none counts.
    async fn is_used(&self, shell: &Shell<Self>) -> Result<bool> {
        let key = ObjectKey::of(self);
        if shell.informers.pods.by(BY_CLAIM, &key.to_string()).iter().any(|it| uses(it, self)) {
            return Ok(true);
        }
        let pods: Api<Pod> = writes::api(&shell.client, &key.namespace);
        Ok(pods.list(&ListParams::default()).await?.iter().any(|it| uses(it, self)))
    }
}

/// A pod that no node has yet uses nothing: no node would start it with a claim that is to go.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let is_meant = |(name, is_made): (String, bool)| name == claim.name_any() && (!is_made || !is_shut_down(pod) && volumes::is_made_for(claim, pod).is_ok());
    !pods::node_name(pod).is_empty() && volumes::claim_names(pod).any(is_meant)
}

/// Its node is done with it.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0)
}

impl Protected for PersistentVolume {
    const CONTROLLER: &'static str = "pv-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pv-protection";

    fn cache(informers: &Informers) -> &Informer<Self> {
        &informers.volumes
    }

    fn listen(_: &Arc<Shell<Self>>) {}

    async fn is_used(&self, _: &Shell<Self>) -> Result<bool> {
        Ok(self.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Bound"))
    }
}

impl Protected for VolumeAttributesClass {
    const CONTROLLER: &'static str = "volumeattributesclass-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/vac-protection";

    fn cache(informers: &Informers) -> &Informer<Self> {
        &informers.attributes_classes
    }

    fn listen(shell: &Arc<Shell<Self>>) {
        fn named<K>(shell: &Shell<VolumeAttributesClass>, change: &Change<K>, names: fn(&K) -> Vec<&str>) {
            let all = [change.object()].into_iter().chain(change.old()).flat_map(|it| names(it));
            all.for_each(|it| shell.queue.add(ObjectKey::new("", it)));
        }
        shell.on(&shell.informers.claims, |it, change| named(it, change, of_claim));
        shell.on(&shell.informers.volumes, |it, change| named(it, change, of_volume));
    }

    async fn is_used(&self, shell: &Shell<Self>) -> Result<bool> {
        let name = self.name_any();
        let (claims, volumes) = (shell.informers.claims.list(), shell.informers.volumes.list());
        Ok(claims.iter().any(|it| of_claim(it).contains(&name.as_str())) || volumes.iter().any(|it| of_volume(it).contains(&name.as_str())))
    }
}

fn of_volume(volume: &PersistentVolume) -> Vec<&str> {
    volume.spec.iter().filter_map(|it| it.volume_attributes_class_name.as_deref()).collect()
}

/// The classes that a claim asks for, has, and is being given.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
    let names = [
        spec.and_then(|it| it.volume_attributes_class_name.as_deref()),
        status.and_then(|it| it.current_volume_attributes_class_name.as_deref()),
        status.and_then(|it| it.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref()),
    ];
    names.into_iter().flatten().filter(|it| !it.is_empty()).collect()
}
