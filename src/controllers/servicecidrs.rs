//! Ranges of Service addresses: each is Ready, and stays while it is being deleted for as long as an address in it would be in no range.
//! Follows pkg/controller/servicecidrs.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::Controller;
use crate::{
    base::clock,
    client::{ObjectKey, Result, writes},
    meta::Cidr,
};

const NAME: &str = "service-cidrs-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// `deletionGracePeriod`: in this time every API server learns that the range is no longer to be used.
const GRACE: SignedDuration = SignedDuration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const HELD: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

pub struct ServiceCidrsController;
type Shell = super::Shell<ServiceCidrsController>;

impl Controller for ServiceCidrsController {
    type Key = String;
    const NAME: &'static str = NAME;
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        // There are few ranges: each is looked at again when another one or an address in use goes.
        shell.on(&shell.informers.service_ranges, |it, change| {
            it.queue.add(change.object().name_any());
            it.queue_going();
        });
        shell.on(&shell.informers.service_addresses, |it, change| {
            if change.is_deleted() {
                it.queue_going();
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, name: &String) -> Result<Option<Duration>> {
        let (ranges, addresses) = (&shell.informers.service_ranges, &shell.informers.service_addresses);
        let Some(range) = ranges.get(&ObjectKey::new("", name)) else { return Ok(None) };
        let Some(deleted) = range.metadata.deletion_timestamp.as_ref() else {
            if !range.finalizers().iter().any(|it| it == FINALIZER) {
                let all: Vec<&str> = range.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
                shell.set_finalizers(&range, &all).await?;
            }
            return shell.tell(&range, "True", "", READY).await;
        };
        let own = cidrs(&range);
        let others: Vec<Cidr> = ranges.list().iter().filter(|it| it.name_any() != *name && it.metadata.deletion_timestamp.is_none()).flat_map(|it| cidrs(it)).collect();
        if addresses.list().iter().any(|it| is_held(&it.name_any(), &own, &others)) {
            return shell.tell(&range, "False", "Terminating", HELD).await;
        }
        let left = GRACE - clock::now().duration_since(deleted.0);
        if left > SignedDuration::ZERO {
            return Ok(Some(left.unsigned_abs()));
        }
        let rest: Vec<&str> = range.finalizers().iter().map(String::as_str).filter(|it| *it != FINALIZER).collect();
        shell.set_finalizers(&range, &rest).await?;
        Ok(None)
    }
}

impl Shell {
    fn queue_going(&self) {
        let all = self.informers.service_ranges.list();
        self.queue.add_all(all.iter().filter(|it| it.metadata.deletion_timestamp.is_some()).map(|it| it.name_any()));
    }

    async fn set_finalizers(&self, range: &ServiceCIDR, finalizers: &[&str]) -> Result<bool> {
        let patch = json!({"metadata": {"resourceVersion": range.metadata.resource_version, "finalizers": finalizers}});
        writes::patch(&self.client, range, &Patch::Merge(patch)).await
    }

    async fn tell(&self, range: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Result<Option<Duration>> {
        let told = range.status.iter().flat_map(|it| it.conditions.iter().flatten()).find(|it| it.type_ == "Ready");
        if told.is_some_and(|it| it.status == status && it.reason == reason && it.message == message) {
            return Ok(None);
        }
        let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": clock::now_rfc3339()});
        let patch = Patch::Apply(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "status": {"conditions": [condition]}}));
        let told = writes::api::<ServiceCIDR>(&self.client, "").patch_status(&range.name_any(), &PatchParams::apply(NAME).force(), &patch).await;
        writes::unless_not_found(told)?;
        Ok(None)
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
