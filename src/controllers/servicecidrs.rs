//! Ranges of Service addresses: each is Ready, and stays while it is being deleted for as long as an address in it would be in no range.
//! Follows pkg/controller/servicecidrs.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Context, Controller};
use crate::{
    base::clock,
    client::{
        Informer, ObjectKey, Result,
        informer::Options as Watch,
        writes::{self, CONTROLLER_MANAGER},
    },
    meta::Cidr,
};

const NAME: &str = "service-cidrs-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// `deletionGracePeriod`: in this time every API server learns that the range is no longer to be used.
const GRACE: SignedDuration = SignedDuration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const HELD: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

pub struct ServiceCidrsController {
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}
type Shell = super::Shell<ServiceCidrsController>;

impl ServiceCidrsController {
    pub fn new(context: &Context) -> Self {
        let (client, tasks) = (context.client(NAME), &context.tasks);
        let managed = Watch { config: Watch::<IPAddress>::default().config.labels("ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io"), ..Watch::default() };
        Self {
            ranges: Informer::start("servicecidrs", Api::all(client.clone()), Watch::default(), tasks),
            addresses: Informer::start("ipaddresses", Api::all(client), managed, tasks),
        }
    }
}

impl Controller for ServiceCidrsController {
    type Key = String;
    const NAME: &'static str = NAME;
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        shell.own.ranges.synced().await;
        shell.own.addresses.synced().await;
        // There are few ranges: each is looked at again when another one or an address in use goes.
        shell.on(&shell.own.ranges, |it, change| {
            it.queue.add(change.object().name_any());
            it.queue_going();
        });
        shell.on(&shell.own.addresses, |it, change| {
            if change.is_deleted() {
                it.queue_going();
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, name: &String) -> Result<Option<Duration>> {
        let Self { ranges, addresses } = &shell.own;
        let Some(range) = ranges.get(&ObjectKey::new("", name)) else { return Ok(None) };
        let api: Api<ServiceCIDR> = Api::all(shell.client.clone());
        let Some(deleted) = range.metadata.deletion_timestamp.as_ref() else {
            if !range.finalizers().iter().any(|it| it == FINALIZER) {
                let all: Vec<&str> = range.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
                set_finalizers(&api, &range, &all).await?;
            }
            return tell(&api, &range, "True", "", READY).await;
        };
        let own = cidrs(&range);
        let others: Vec<Cidr> = ranges.list().iter().filter(|it| it.name_any() != *name && it.metadata.deletion_timestamp.is_none()).flat_map(|it| cidrs(it)).collect();
        if addresses.list().iter().any(|it| is_held(&it.name_any(), &own, &others)) {
            return tell(&api, &range, "False", "Terminating", HELD).await;
        }
        let left = GRACE - clock::now().duration_since(deleted.0);
        if left > SignedDuration::ZERO {
            return Ok(Some(left.unsigned_abs()));
        }
        let rest: Vec<&str> = range.finalizers().iter().map(String::as_str).filter(|it| *it != FINALIZER).collect();
        set_finalizers(&api, &range, &rest).await?;
        Ok(None)
    }
}

impl Shell {
    fn queue_going(&self) {
        self.own.ranges.list().iter().filter(|it| it.metadata.deletion_timestamp.is_some()).for_each(|it| self.queue.add(it.name_any()));
    }
}

fn cidrs(range: &ServiceCIDR) -> Vec<Cidr> {
    range.spec.iter().flat_map(|it| it.cidrs.iter().flatten()).filter_map(|it| it.parse().ok()).collect()
}

/// Whether an address in use is in this range and in no other.
fn is_held(address: &str, own: &[Cidr], others: &[Cidr]) -> bool {
    let Ok(ip) = address.parse() else { return false };
    own.iter().any(|it| it.contains(ip)) && !others.iter().any(|it| it.contains(ip))
}

async fn set_finalizers(api: &Api<ServiceCIDR>, range: &ServiceCIDR, finalizers: &[&str]) -> Result<()> {
    let patch = json!({"metadata": {"resourceVersion": range.metadata.resource_version, "finalizers": finalizers}});
    writes::unless_not_found(api.patch(&range.name_any(), &writes::patching(CONTROLLER_MANAGER), &Patch::Merge(patch)).await)?;
    Ok(())
}

async fn tell(api: &Api<ServiceCIDR>, range: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Result<Option<Duration>> {
    let told = range.status.iter().flat_map(|it| it.conditions.iter().flatten()).find(|it| it.type_ == "Ready");
    if told.is_some_and(|it| it.status == status && it.reason == reason && it.message == message) {
        return Ok(None);
    }
    let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": clock::now_rfc3339()});
    let patch = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "status": {"conditions": [condition]}});
    writes::unless_not_found(api.patch_status(&range.name_any(), &PatchParams::apply(NAME).force(), &Patch::Apply(patch)).await)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_its_only_range() {
        let ranges = |all: &[&str]| all.iter().map(|it| it.parse().unwrap()).collect::<Vec<Cidr>>();
        let cases = [("10.0.0.5", "10.0.0.0/24", vec![], true), ("10.0.0.5", "10.0.0.0/24", vec!["10.0.0.0/16"], false), ("10.1.0.5", "10.0.0.0/24", vec![], false)];
        for (address, own, others, expected) in cases {
            assert_eq!(is_held(address, &ranges(&[own]), &ranges(&others)), expected, "{address} {own} {others:?}");
        }
    }
}
