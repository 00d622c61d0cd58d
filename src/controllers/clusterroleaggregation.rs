//! ClusterRoles that gather the rules of others. Follows pkg/controller/clusterroleaggregation.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};

use super::Controller;
use crate::{
    api::rbac,
    client::{Error, ObjectKey, Result, writes},
};

/// Many roles that come at once are gathered once.
const COALESCE: Duration = Duration::from_millis(50);

pub struct ClusterRoleAggregationController;
type Shell = super::Shell<ClusterRoleAggregationController>;

impl Controller for ClusterRoleAggregationController {
    type Key = ObjectKey;
    const NAME: &'static str = "clusterrole-aggregation-controller";
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.cluster_roles, |it, _| {
            let gathering = it.informers.cluster_roles.list().into_iter().filter(|it| it.aggregation_rule.is_some());
            gathering.for_each(|role| it.queue.add_after(ObjectKey::of(role.as_ref()), COALESCE));
        });
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(role) = shell.informers.cluster_roles.get(key) else { return Ok(None) };
        let Some(rules) = gathered(&role, &shell.informers.cluster_roles.list())? else { return Ok(None) };
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": role.resource_version()}, "rules": rules}));
        writes::patch(&shell.client, role.as_ref(), &patch).await?;
        Ok(None)
    }
}

/// The rules that the role is to have, if they are not those that it has.
fn gathered(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>> {
    let Some(rule) = &role.aggregation_rule else { return Ok(None) };
    let wrong = |error: serde_json::Error| Error::Invalid(error.to_string());
    let mut all: Vec<&Arc<ClusterRole>> = all.iter().collect();
    all.sort_by_key(|it| it.name_any());
    let all = all.into_iter().map(|it| serde_json::to_value(it.as_ref())).collect::<std::result::Result<Vec<Value>, _>>().map_err(wrong)?;
    let rules = Value::Array(rbac::aggregate(&role.name_any(), &serde_json::to_value(rule).map_err(wrong)?, &all));
    let rules: Vec<PolicyRule> = serde_json::from_value(rules).map_err(wrong)?;
    Ok(Some(rules).filter(|it| *it != role.rules.clone().unwrap_or_default()))
}
