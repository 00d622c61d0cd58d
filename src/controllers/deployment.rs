//! Deployments: a ReplicaSet a template, rolled from one to the next. Follows pkg/controller/deployment.

pub mod rollout;
pub mod template;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentCondition, ReplicaSet},
    core::v1::Pod,
};
use kube::{Api, ResourceExt};

use self::rollout::{Action, Plan};
use super::{
    Controller,
    claims::{self, controller_of},
    pods,
};
use crate::{
    base::clock,
    client::{
        Change, Error, EventType, ObjectKey, Result,
        informer::{BY_NAMESPACE, BY_OWNER, orphan_of},
        writes::{self, CONTROLLER_MANAGER},
    },
};

pub struct DeploymentController;
type Shell = super::Shell<DeploymentController>;

impl Controller for DeploymentController {
    type Key = ObjectKey;
    const NAME: &'static str = "deployment-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.deployments);
        shell.on(&shell.informers.replica_sets, Shell::set_changed);
        shell.on(&shell.informers.pods, Shell::pod_changed);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(deployment) = shell.informers.deployments.get(key) else {
            return Ok(None);
        };
        let spec = deployment.spec.clone().unwrap_or_default();
        if spec.selector == Default::default() {
            return shell.refuse_to_select_all(&deployment).await;
        }
        let selector = claims::selector_of(&spec.selector)?;
        let mut candidates = shell.informers.replica_sets.by(BY_OWNER, &deployment.uid().unwrap_or_default());
        candidates.extend(shell.informers.replica_sets.by(BY_OWNER, &orphan_of(&key.namespace)));
        let claims = claims::claims(&deployment.metadata, &selector, candidates);
        let owned = claims::settle(&shell.client, deployment.as_ref(), claims, &[]).await?;
        let runs_pods = |set: &ReplicaSet| {
            let pods = shell.informers.pods.by(BY_OWNER, &set.uid().unwrap_or_default());
            pods.iter().any(|it| !pods::is_terminal(it))
        };
        let plan = rollout::plan(&deployment, &owned, runs_pods, clock::now())?;
        shell.act(&deployment, plan).await
    }
}

impl Shell {
    fn set_changed(&self, change: &Change<ReplicaSet>) {
        let set = change.object();
        let owner = |set: &ReplicaSet| -> Option<ObjectKey> {
            let owner = controller_of(&set.metadata).filter(|it| it.kind == "Deployment")?;
            Some(ObjectKey::new(set.namespace().unwrap_or_default(), owner.name.clone()))
        };
        change.old().and_then(|it| owner(it)).into_iter().for_each(|key| self.queue.add(key));
        match owner(set) {
            Some(key) => self.queue.add(key),
            None if !change.is_deleted() => self.orphan_changed(set),
            None => (),
        }
    }

    fn orphan_changed(&self, set: &ReplicaSet) {
        for deployment in self.informers.deployments.by(BY_NAMESPACE, &set.namespace().unwrap_or_default()) {
            let selector = deployment.spec.as_ref().map(|it| claims::selector_of(&it.selector));
            if selector.and_then(Result::ok).is_some_and(|it| it.matches(set.labels())) {
                self.queue.add(ObjectKey::of(deployment.as_ref()));
            }
        }
    }

    /// A Recreate deployment waits for the last of its old pods.
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if !change.is_deleted() && !pods::is_terminal(pod) {
            return;
        }
        let Some(set) = controller_of(&pod.metadata).filter(|it| it.kind == "ReplicaSet") else { return };
        let set = self.informers.replica_sets.get(&ObjectKey::new(pod.namespace().unwrap_or_default(), set.name.clone()));
        let Some(set) = set else { return };
        let Some(owner) = controller_of(&set.metadata) else { return };
        let key = ObjectKey::new(pod.namespace().unwrap_or_default(), owner.name.clone());
        let is_recreate =
            |it: &Deployment| it.spec.as_ref().and_then(|it| it.strategy.as_ref()).and_then(|it| it.type_.as_deref()) == Some("Recreate");
        if self.informers.deployments.get(&key).is_some_and(|it| is_recreate(&it)) {
            self.queue.add(key);
        }
    }

    async fn refuse_to_select_all(&self, deployment: &Deployment) -> Result<Option<Duration>> {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        self.events.event(deployment, EventType::Warning, "SelectingAll", message);
        let mut next = deployment.clone();
        next.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
        if next != *deployment {
            self.write_status(&next).await?;
        }
        Ok(None)
    }

    /// Carries out the actions in order, then writes the status they lead to, once.
    async fn act(&self, deployment: &Deployment, plan: Plan) -> Result<Option<Duration>> {
        for action in plan.actions {
            self.perform(&plan.deployment, action).await?;
        }
        if plan.deployment != *deployment {
            self.write_status(&plan.deployment).await?;
        }
        Ok(plan.again)
    }

    async fn perform(&self, deployment: &Deployment, action: Action) -> Result<()> {
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let posting = writes::posting(CONTROLLER_MANAGER);
        match action {
            Action::Create(set) => self.create(deployment, &sets, set).await,
            Action::Update(set) => sets.replace(&set.name_any(), &posting, &set).await.map(|_| ()).map_err(Error::from),
            Action::Delete(set) => writes::unless_not_found(sets.delete(&set.name_any(), &writes::deleting(None)).await).map(|_| ()),
            Action::Scale { set, from, to } => {
                sets.replace(&set.name_any(), &posting, &set).await?;
                if from != to {
                    self.tell_scaled(deployment, &set.name_any(), from, to);
                }
                Ok(())
            }
        }
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if from < to { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.events.event(deployment, EventType::Normal, "ScalingReplicaSet", message);
    }

    async fn create(&self, deployment: &Deployment, sets: &Api<ReplicaSet>, set: ReplicaSet) -> Result<()> {
        let name = set.name_any();
        let count = set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(0);
        match sets.create(&writes::posting(CONTROLLER_MANAGER), &set).await.map_err(Error::from) {
            Ok(_) if count > 0 => self.tell_scaled(deployment, &name, 0, count),
            Ok(_) => (),
            Err(error) if error.is_already_exists() => return self.check_collision(deployment, sets, &name, error).await,
            Err(error) if error.is_namespace_terminating() => return Err(error),
            Err(error) => return Err(self.tell_failed(deployment, &name, error).await),
        }
        Ok(())
    }

    /// A ReplicaSet of that name is either ours, not yet seen, or of another template with the same hash.
    async fn check_collision(&self, deployment: &Deployment, sets: &Api<ReplicaSet>, name: &str, error: Error) -> Result<()> {
        let present = sets.get(name).await?;
        let is_ours = controller_of(&present.metadata).is_some_and(|it| Some(&it.uid) == deployment.metadata.uid.as_ref());
        if is_ours && template::is_of(deployment, &present) {
            return Ok(());
        }
        let mut next = self.fresh(deployment).await?;
        let count = &mut next.status.get_or_insert_default().collision_count;
        *count = Some(count.unwrap_or(0) + 1);
        self.write_status(&next).await?;
        Err(error)
    }

    async fn tell_failed(&self, deployment: &Deployment, name: &str, error: Error) -> Error {
        let message = format!("Failed to create new replica set \"{name}\": {}", error.message());
        self.events.event(deployment, EventType::Warning, "ReplicaSetCreateError", message.clone());
        if rollout::deadline(deployment).is_some()
            && let Ok(mut next) = self.fresh(deployment).await
        {
            let condition = rollout::new_condition("Progressing", "False", "ReplicaSetCreateError", &message, clock::now());
            rollout::set_condition(next.status.get_or_insert_default(), condition);
            if let Err(error) = self.write_status(&next).await {
                tracing::debug!(%error, "the failure was not written into the status");
            }
        }
        error
    }

    async fn fresh(&self, deployment: &Deployment) -> Result<Deployment> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        Ok(deployments.get(&deployment.name_any()).await?)
    }

    async fn write_status(&self, deployment: &Deployment) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        deployments.replace_status(&deployment.name_any(), &writes::posting(CONTROLLER_MANAGER), deployment).await?;
        Ok(())
    }
}

/// The condition `kind` of a status.
fn find<'a>(conditions: &'a Option<Vec<DeploymentCondition>>, kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().flatten().find(|it| it.type_ == kind)
}
