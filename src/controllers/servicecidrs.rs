//! Ranges of Service addresses: each is Ready, and stays while it is being deleted for as long as an address in it would be in no range.
//! Follows pkg/controller/servicecidrs.

use std::time::Duration;

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
        Informer, ObjectKey, Result, WorkQueue,
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

pub struct ServiceCidrsController;

impl Controller for ServiceCidrsController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start(&self, context: &Context) {
        let (client, tasks, queue) = (context.client(NAME), context.tasks.clone(), WorkQueue::new());
        let ranges: Informer<ServiceCIDR> = Informer::start("servicecidrs", Api::all(client.clone()), Watch::default(), &tasks);
        let managed = Watch { config: Watch::<IPAddress>::default().config.labels("ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io"), ..Watch::default() };
        let addresses: Informer<IPAddress> = Informer::start("ipaddresses", Api::all(client.clone()), managed, &tasks);
        let name = self.name();
        let group = tasks.clone();
        tasks.spawn(name, async move {
            ranges.synced().await;
            addresses.synced().await;
            // There are few ranges: each is looked at again when another one or an address in use goes.
            let (all, listener) = (ranges.clone(), queue.clone());
            ranges.subscribe(move |change| {
                listener.add(change.object().name_any());
                all.list().iter().filter(|it| it.metadata.deletion_timestamp.is_some()).for_each(|it| listener.add(it.name_any()));
            });
            let (all, listener) = (ranges.clone(), queue.clone());
            addresses.subscribe(move |change| {
                if change.is_deleted() {
                    all.list().iter().filter(|it| it.metadata.deletion_timestamp.is_some()).for_each(|it| listener.add(it.name_any()));
                }
            });
            queue.run(&group, name, 1, move |name: String| {
                let (client, ranges, addresses) = (client.clone(), ranges.clone(), addresses.clone());
                async move { sync(&client, &ranges, &addresses, &name).await }
            });
        });
    }
}

fn cidrs(range: &ServiceCIDR) -> Vec<Cidr> {
    range.spec.iter().flat_map(|it| it.cidrs.iter().flatten()).filter_map(|it| it.parse().ok()).collect()
}

async fn sync(client: &kube::Client, ranges: &Informer<ServiceCIDR>, addresses: &Informer<IPAddress>, name: &str) -> Result<Option<Duration>> {
    let Some(range) = ranges.get(&ObjectKey::new("", name)) else { return Ok(None) };
    let api: Api<ServiceCIDR> = Api::all(client.clone());
    let Some(deleted) = range.metadata.deletion_timestamp.as_ref() else {
        if !range.finalizers().iter().any(|it| it == FINALIZER) {
            let all: Vec<&str> = range.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
            set_finalizers(&api, &range, &all).await?;
        }
        return tell(&api, &range, "True", "", READY).await;
    };
    let own = cidrs(&range);
    let others: Vec<Cidr> = ranges.list().iter().filter(|it| it.name_any() != name && it.metadata.deletion_timestamp.is_none()).flat_map(|it| cidrs(it)).collect();
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
