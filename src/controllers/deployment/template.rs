//! The pod template: its hash, the ReplicaSet made of it, and whether a ReplicaSet is of it.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
    core::v1::PodTemplateSpec,
};
use kube::{ResourceExt, api::ObjectMeta};

use crate::{controllers::claims::controller_ref, meta::names::SUBDOMAIN_MAX};

pub const HASH_LABEL: &str = "pod-template-hash";

/// `SafeEncodeString`'s alphabet: no vowels and none of 0, 1, 3, so that no words arise.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `EqualIgnoreHash`: whether the set runs the deployment's present template.
pub fn is_of(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment.spec.as_ref().map(|it| without_hash(&it.template));
    let present = set.spec.as_ref().and_then(|it| it.template.as_ref()).map(without_hash);
    wanted == present
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.take().filter(|it| !it.is_empty());
    meta.annotations = meta.annotations.take().filter(|it| !it.is_empty());
    meta.creation_timestamp = None;
    template
}

/// The same for the same template and collision count, for ever: FNV-1 of its JSON, written safely.
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(template).unwrap_or_default();
    let salt = collisions.map(|it| it.to_le_bytes()).unwrap_or_default();
    let sum = json
        .iter()
        .chain(salt.iter().filter(|_| collisions.is_some()))
        .fold(2_166_136_261_u32, |sum, byte| sum.wrapping_mul(16_777_619) ^ u32::from(*byte));
    sum.to_string().bytes().map(|it| char::from(SAFE[usize::from(it) % SAFE.len()])).collect()
}

/// A ReplicaSet of the deployment's template, without pods as yet.
pub fn replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = hash(&spec.template, deployment.status.as_ref().and_then(|it| it.collision_count));
    let mut template = spec.template;
    let labels = with_hash(template.metadata.get_or_insert_default().labels.take(), &hash);
    template.metadata.get_or_insert_default().labels = Some(labels.clone());
    let mut selector = spec.selector;
    selector.match_labels = Some(with_hash(selector.match_labels, &hash));
    let metadata = ObjectMeta {
        name: Some(name(&deployment.name_any(), &hash)),
        namespace: deployment.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![controller_ref(deployment)]),
        ..ObjectMeta::default()
    };
    let spec = ReplicaSetSpec { replicas: Some(0), min_ready_seconds: spec.min_ready_seconds, selector, template: Some(template) };
    ReplicaSet { metadata, spec: Some(spec), status: None }
}

fn with_hash(labels: Option<BTreeMap<String, String>>, hash: &str) -> BTreeMap<String, String> {
    let mut labels = labels.unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    labels
}

fn name(deployment: &str, hash: &str) -> String {
    let most = SUBDOMAIN_MAX - 1 - hash.len();
    format!("{}-{hash}", &deployment[..deployment.len().min(most)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_stable_safe_and_moved_by_a_collision() {
        let template = PodTemplateSpec::default();
        let (plain, again, moved) = (hash(&template, None), hash(&template, None), hash(&template, Some(1)));
        assert_eq!(plain, again);
        assert_ne!(plain, moved);
        assert!(plain.bytes().all(|it| SAFE.contains(&it)), "{plain}");
    }

    #[test]
    fn a_long_name_leaves_room_for_the_hash() {
        assert_eq!(name("web", "abc"), "web-abc");
        assert_eq!(name(&"x".repeat(253), "abc").len(), SUBDOMAIN_MAX);
    }
}
