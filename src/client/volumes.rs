//! Volumes and the claims on them, as the scheduler, the controllers and the node read them.
//! Follows component-helpers `storage/volume/pv_helpers.go` and `storage/ephemeral`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, Volume},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::{Resource, ResourceExt};

use super::{
    ObjectKey,
    placement::{self, Place},
};
use crate::meta::{LabelSelector, Quantity};

/// On a claim: its binding has been completed. Without its volume it is lost from then on.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On either: the binding is a controller's choice, no user's.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node for which the scheduler wants a volume provisioned.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The claim that a volume of a pod stands for, and whether it is made for this pod alone.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    let named = volume.persistent_volume_claim.as_ref().map(|it| (it.claim_name.clone(), false));
    named.or_else(|| volume.ephemeral.as_ref().map(|_| (format!("{}-{}", pod.name_any(), volume.name), true)))
}

/// The claims of all volumes of a pod.
pub fn claim_names(pod: &Pod) -> impl Iterator<Item = (String, bool)> + '_ {
    pod.spec.iter().flat_map(|it| it.volumes.iter().flatten()).filter_map(|it| claim_name(pod, it))
}

/// Drops the volumes that are no claims.
pub fn keep_claims(spec: &mut PodSpec) {
    let claims = spec.volumes.take().into_iter().flatten().filter(|it| it.persistent_volume_claim.is_some() || it.ephemeral.is_some());
    spec.volumes = Some(claims.collect::<Vec<_>>()).filter(|it| !it.is_empty());
}

/// `VolumeIsForPod`: whether an ephemeral volume's claim was made for this pod.
pub fn is_made_for(claim: &PersistentVolumeClaim, pod: &Pod) -> Result<(), String> {
    let owner = claim.owner_references().iter().find(|it| it.controller == Some(true));
    match owner.is_some_and(|it| Some(&it.uid) == pod.metadata.uid.as_ref()) {
        true => Ok(()),
        false => Err(format!("PVC {} was not created for pod {} (pod is not owner)", ObjectKey::of(claim), ObjectKey::of(pod))),
    }
}

pub fn has_annotation<K: Resource>(object: &K, name: &str) -> bool {
    object.annotations().contains_key(name)
}

fn text(value: Option<&String>) -> &str {
    value.map(String::as_str).unwrap_or_default()
}

/// The class that a claim asks for; `None` where it says nothing, "" where it wants a volume of no class.
pub fn claim_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.annotations().get(BETA_CLASS).or_else(|| claim.spec.as_ref()?.storage_class_name.as_ref()).map(String::as_str)
}

pub fn volume_class(volume: &PersistentVolume) -> &str {
    text(volume.annotations().get(BETA_CLASS).or_else(|| volume.spec.as_ref()?.storage_class_name.as_ref()))
}

pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    text(claim.spec.as_ref().and_then(|it| it.volume_name.as_ref()))
}

/// Whether claims of a class are bound when a pod that wants them is scheduled.
pub fn is_delaying(class: Option<&StorageClass>) -> bool {
    class.and_then(|it| it.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && has_annotation(claim, BIND_COMPLETED)
}

/// Whether a volume is bound to this claim, or kept for one of its name.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|it| it.claim_ref.as_ref());
    reference.is_some_and(|it| {
        let is_named = it.name == claim.metadata.name && it.namespace == claim.metadata.namespace;
        is_named && (text(it.uid.as_ref()).is_empty() || it.uid == claim.metadata.uid)
    })
}

/// The volume as it is bound to the claim; `None` where it is so already (`GetBindVolumeToClaim`).
pub fn bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let is_bound = is_bound_to(volume, claim);
    let is_whole = volume.spec.as_ref().and_then(|it| it.claim_ref.as_ref()).is_some_and(|it| it.uid == claim.metadata.uid);
    if is_bound && is_whole {
        return None;
    }
    let mut bound = volume.clone();
    if !is_bound {
        bound.annotations_mut().insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    let mut reference = claim.object_ref(&());
    reference.resource_version = claim.resource_version();
    bound.spec.get_or_insert_default().claim_ref = Some(reference);
    Some(bound)
}

fn storage(list: Option<&BTreeMap<String, ApiQuantity>>) -> Quantity {
    list.and_then(|it| it.get("storage")).and_then(|it| it.0.parse().ok()).unwrap_or_default()
}

const OTHER_CLASS: &str = "storageClassName does not match";

/// Why a volume is not what a claim asks for (`checkVolumeSatisfyClaim`).
pub fn mismatches(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Vec<String> {
    let (offered, asked) = (volume.spec.clone().unwrap_or_default(), claim.spec.clone().unwrap_or_default());
    let modes = offered.access_modes.as_deref().unwrap_or_default();
    let requests = asked.resources.as_ref().and_then(|it| it.requests.as_ref());
    let checks = [
        (volume.metadata.deletion_timestamp.is_some(), format!("the volume is marked for deletion {:?}", volume.name_any())),
        (storage(offered.capacity.as_ref()) < storage(requests), "requested PV is too small".to_owned()),
        (volume_class(volume) != claim_class(claim).unwrap_or_default(), OTHER_CLASS.to_owned()),
        (text(offered.volume_attributes_class_name.as_ref()) != text(asked.volume_attributes_class_name.as_ref()), "volumeAttributesClassName does not match".to_owned()),
        (is_other_mode(volume, claim), "incompatible volumeMode".to_owned()),
        (!asked.access_modes.iter().flatten().all(|it| modes.contains(it)), "incompatible accessMode".to_owned()),
    ];
    checks.into_iter().filter(|it| it.0).map(|it| it.1).collect()
}

pub fn is_other_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let mode = |it: Option<&String>| it.map_or("Filesystem", String::as_str).to_owned();
    mode(volume.spec.as_ref().and_then(|it| it.volume_mode.as_ref())) != mode(claim.spec.as_ref().and_then(|it| it.volume_mode.as_ref()))
}

/// Whether a volume can be reached from a node (`CheckNodeAffinity`).
pub fn is_reachable(volume: &PersistentVolume, place: Place<'_>) -> bool {
    let required = volume.spec.as_ref().and_then(|it| it.node_affinity.as_ref()?.required.as_ref());
    required.is_none_or(|it| it.node_selector_terms.iter().any(|term| placement::term_matches(term, place)))
}

/// The volume that is best for a claim: one that is kept for it, or of those that are free and fit the smallest (`FindMatchingVolume`). The binder asks
/// without a place, and for a claim that is to wait only for volumes that are kept for it.
pub fn best<'a>(claim: &PersistentVolumeClaim, volumes: impl Iterator<Item = &'a Arc<PersistentVolume>>, place: Option<Place<'_>>, waits: bool) -> Option<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|it| it.selector.as_ref());
    let selector = selector.map(|it| serde_json::to_value(it).ok().and_then(|it| LabelSelector::from_value(Some(&it)).ok()).unwrap_or_else(LabelSelector::nothing));
    let is_near = |volume: &PersistentVolume| place.is_none_or(|it| is_reachable(volume, it));
    let mut free = Vec::new();
    for volume in volumes {
        let Some(spec) = &volume.spec else { continue };
        if is_bound_to(volume, claim) {
            // It may be of another class.
            match mismatches(volume, claim).iter().all(|it| it == OTHER_CLASS) {
                true => return is_near(volume).then(|| volume.clone()),
                false => continue,
            }
        }
        let is_available = spec.claim_ref.is_none() && volume.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Available");
        let is_selected = selector.as_ref().is_none_or(|it| it.matches(volume.labels()));
        if is_available && is_selected && (place.is_some() || !waits) && mismatches(volume, claim).is_empty() && is_near(volume) {
            free.push(volume);
        }
    }
    let modes = |it: &PersistentVolume| if place.is_some() { 0 } else { it.spec.as_ref().and_then(|it| it.access_modes.as_ref()).map_or(0, Vec::len) };
    let size = |it: &PersistentVolume| storage(it.spec.as_ref().and_then(|it| it.capacity.as_ref()));
    free.into_iter().min_by_key(|it| (modes(it), size(it), it.name_any())).cloned()
}

/// How much a claim asks for.
pub fn asked(claim: &PersistentVolumeClaim) -> Quantity {
    storage(claim.spec.as_ref().and_then(|it| it.resources.as_ref()?.requests.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(name: &str, size: &str, more: serde_json::Value) -> Arc<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "fast"});
        spec.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Available"}})).expect("a volume"))
    }

    #[test]
    fn the_smallest_that_fits_or_what_is_kept_for_the_claim() {
        let on = |node: &str| json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}});
        let volumes = [
            volume("big", "9Gi", json!({})),
            volume("small", "1Gi", json!({})),
            volume("many", "2Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]})),
            volume("right", "3Gi", json!({})),
            volume("slow", "3Gi", json!({"storageClassName": "slow"})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
            volume("kept", "9Gi", json!({"claimRef": {"name": "kept", "namespace": "d"}})),
            volume("near", "4Gi", on("n1")),
        ];
        let labels = BTreeMap::new();
        // (claim, more of its spec, on which node, waits for one) -> volume
        let cases = [
            ("a", json!({}), None, false, Some("right")),
            ("a", json!({"accessModes": ["ReadWriteMany"]}), None, false, Some("many")),
            ("a", json!({"storageClassName": "slow"}), None, false, Some("slow")),
            ("a", json!({"storageClassName": "none"}), None, false, None),
            ("a", json!({"resources": {"requests": {"storage": "10Gi"}}}), None, false, None),
            ("a", json!({"selector": {"matchLabels": {"a": "b"}}}), None, false, None),
            ("a", json!({}), None, true, None),
            ("kept", json!({}), None, true, Some("kept")),
            ("kept", json!({"storageClassName": "none"}), None, false, Some("kept")),
            ("a", json!({}), Some("n1"), true, Some("many")),
            ("a", json!({"resources": {"requests": {"storage": "4Gi"}}}), Some("n1"), true, Some("near")),
            ("a", json!({"resources": {"requests": {"storage": "4Gi"}}}), Some("n2"), true, Some("big")),
        ];
        for (name, more, node, waits, expected) in cases {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}});
            spec.as_object_mut().expect("a map").extend(more.as_object().cloned().expect("a map"));
            let claim = serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec})).expect("a claim");
            let found = best(&claim, volumes.iter(), node.map(|name| Place { name, labels: &labels }), waits);
            assert_eq!(found.map(|it| it.name_any()).as_deref(), expected, "{name} {more} {node:?}");
        }
    }
}
