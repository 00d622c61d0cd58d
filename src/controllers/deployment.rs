//! Deployments: a ReplicaSet a template, rolled from one to the next. Follows pkg/controller/deployment.

pub mod rollout;
pub mod template;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentCondition, ReplicaSet},
    core::v1::Pod,
};
use kube::{ResourceExt, api::DeleteParams};

use self::rollout::{Action, Plan};
use super::{
    Controller,
    claims::{self, controller_of},
    pods,
};
use crate::{
    base::clock,
    client::{BY_OWNER, Change, Error, EventType, ObjectKey, Result, writes},
    meta::LabelSelector,
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
        let owned = claims::claim(&shell.client, deployment.as_ref(), &selector(&deployment)?, &shell.informers.replica_sets, |_| true, &[]).await?;
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
        let sets = [change.old(), Some(change.object())].into_iter().flatten();
        self.queue.add_all(sets.filter_map(|it| claims::owner_key::<Deployment>(&it.metadata)));
        self.queue.add_all(claims::adopters(&self.informers.deployments, change, selector));
    }

    /// A Recreate deployment waits for the last of its old pods.
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if !change.is_deleted() && !pods::is_terminal(pod) {
            return;
        }
        let set = claims::owner_key::<ReplicaSet>(&pod.metadata).and_then(|it| self.informers.replica_sets.get(&it));
        let Some(key) = set.and_then(|it| claims::owner_key::<Deployment>(&it.metadata)) else { return };
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
        writes::status(&self.client, deployment, &next).await?;
        Ok(None)
    }

    /// Carries out the actions in order, then writes the status they lead to, once.
    async fn act(&self, deployment: &Deployment, plan: Plan) -> Result<Option<Duration>> {
        for action in plan.actions {
            self.perform(&plan.deployment, action).await?;
        }
        writes::status(&self.client, deployment, &plan.deployment).await?;
        Ok(plan.again)
    }

    async fn perform(&self, deployment: &Deployment, action: Action) -> Result<()> {
        match action {
            Action::Create(set) => self.create(deployment, set).await,
            Action::Update(set) => writes::replace(&self.client, &set).await,
            Action::Delete(set) => writes::delete(&self.client, &set, DeleteParams::default()).await.map(drop),
            Action::Scale { set, from, to } => {
                writes::replace(&self.client, &set).await?;
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

    async fn create(&self, deployment: &Deployment, set: ReplicaSet) -> Result<()> {
        let name = set.name_any();
        let count = set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(0);
        match writes::create(&self.client, &set).await {
            Ok(_) if count > 0 => self.tell_scaled(deployment, &name, 0, count),
            Ok(_) => (),
            Err(error) if error.is_already_exists() => return self.check_collision(deployment, &set, error).await,
            Err(error) if error.is_namespace_terminating() => return Err(error),
            Err(error) => return Err(self.tell_failed(deployment, &name, error).await),
        }
        Ok(())
    }

    /// A ReplicaSet of that name is either ours, not yet seen, or of another template with the same hash.
    async fn check_collision(&self, deployment: &Deployment, set: &ReplicaSet, error: Error) -> Result<()> {
        let present = writes::fresh(&self.client, set).await?;
        let is_ours = controller_of(&present.metadata).is_some_and(|it| Some(&it.uid) == deployment.metadata.uid.as_ref());
        if is_ours && template::is_of(deployment, &present) {
            return Ok(());
        }
        let mut next = writes::fresh(&self.client, deployment).await?;
        let count = &mut next.status.get_or_insert_default().collision_count;
        *count = Some(count.unwrap_or(0) + 1);
        writes::replace_part(&self.client, "status", &next).await?;
        Err(error)
    }

    async fn tell_failed(&self, deployment: &Deployment, name: &str, error: Error) -> Error {
        let message = format!("Failed to create new replica set \"{name}\": {}", error.message());
        self.events.event(deployment, EventType::Warning, "ReplicaSetCreateError", message.clone());
        if rollout::deadline(deployment).is_some()
            && let Ok(mut next) = writes::fresh(&self.client, deployment).await
        {
            let condition = rollout::new_condition("Progressing", "False", "ReplicaSetCreateError", &message, clock::now());
            rollout::set_condition(next.status.get_or_insert_default(), condition);
            if let Err(error) = writes::replace_part(&self.client, "status", &next).await {
                tracing::debug!(%error, "the failure was not written into the status");
            }
        }
        error
    }
}

fn selector(deployment: &Deployment) -> Result<LabelSelector> {
    claims::selector_of(&deployment.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default())
}

/// The condition `kind` of a status.
fn find<'a>(conditions: &'a Option<Vec<DeploymentCondition>>, kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().flatten().find(|it| it.type_ == kind)
}
