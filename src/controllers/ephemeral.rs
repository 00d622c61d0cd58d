//! Makes the claims of generic ephemeral volumes, each owned by its pod. Follows pkg/controller/volume/ephemeral.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::api::ObjectMeta;

use super::{Controller, claims::controller_ref};
use crate::client::{Error, EventType, ObjectKey, Result, volumes, writes};

pub struct EphemeralVolumeController;
type Shell = super::Shell<EphemeralVolumeController>;

impl Controller for EphemeralVolumeController {
    type Key = ObjectKey;
    const NAME: &'static str = "ephemeral-volume-controller";
    const COMPONENT: &'static str = "ephemeral_volume";

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.pods, |it, change| {
            let pod = change.object();
            if !change.is_deleted() && volumes::claim_names(pod).any(|it| it.1) {
                it.queue.add(ObjectKey::of(pod.as_ref()));
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(pod) = shell.informers.pods.get(key).filter(|it| it.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
        for volume in pod.spec.iter().flat_map(|it| it.volumes.iter().flatten()).filter(|it| it.ephemeral.is_some()) {
            if let Err(error) = shell.ensure(&pod, volume).await {
                shell.events.event(&*pod, EventType::Warning, "FailedBinding", format!("ephemeral volume {}: {}", volume.name, error.message()));
                return Err(error);
            }
        }
        Ok(None)
    }
}

impl Shell {
    async fn ensure(&self, pod: &Pod, volume: &Volume) -> Result<()> {
        let Some((name, _)) = volumes::claim_name(pod, volume) else { return Ok(()) };
        if let Some(claim) = writes::api(&self.client, pod.metadata.namespace.as_deref().unwrap_or_default()).get_opt(&name).await? {
            return volumes::is_made_for(&claim, pod).map_err(Error::Invalid);
        }
        let template = volume.ephemeral.as_ref().and_then(|it| it.volume_claim_template.clone());
        let (meta, spec) = template.map(|it| (it.metadata.unwrap_or_default(), it.spec)).unwrap_or_default();
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: pod.metadata.namespace.clone(),
            annotations: meta.annotations,
            labels: meta.labels,
            owner_references: Some(vec![controller_ref(pod)]),
            ..ObjectMeta::default()
        };
        let claim = PersistentVolumeClaim { metadata, spec: Some(spec), status: None };
        writes::create(&self.client, &claim).await.map(drop)
    }
}
