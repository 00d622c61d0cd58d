//! ReplicationControllers: ReplicaSets by an older name. Follows pkg/controller/replication/conversion.go.

use std::borrow::Cow;

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{Informers, replicaset::Replicated};
use crate::client::Informer;

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn informer(informers: &Informers) -> &Informer<Self> {
        &informers.replication_controllers
    }

    fn set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().map(|it| ReplicaSetSpec {
            min_ready_seconds: it.min_ready_seconds,
            replicas: it.replicas,
            selector: LabelSelector { match_labels: it.selector, match_expressions: None },
            template: it.template,
        });
        let status = self.status.clone().map(|it| ReplicaSetStatus {
            available_replicas: it.available_replicas,
            conditions: it.conditions.map(|it| it.into_iter().map(set_condition).collect()),
            fully_labeled_replicas: it.fully_labeled_replicas,
            observed_generation: it.observed_generation,
            ready_replicas: it.ready_replicas,
            replicas: it.replicas,
            terminating_replicas: None,
        });
        Cow::Owned(ReplicaSet { metadata: self.metadata.clone(), spec, status })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|it| it.into_iter().map(own_condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        Self { status: Some(status), ..self.clone() }
    }
}

fn set_condition(it: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition { last_transition_time: it.last_transition_time, message: it.message, reason: it.reason, status: it.status, type_: it.type_ }
}

fn own_condition(it: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition { last_transition_time: it.last_transition_time, message: it.message, reason: it.reason, status: it.status, type_: it.type_ }
}
