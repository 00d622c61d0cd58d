//! Endpoints: the older form of EndpointSlices, one object a Service. Follows pkg/controller/endpoint.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use kube::{
    ResourceExt,
    api::{DeleteParams, ObjectMeta},
};

use super::{
    Controller,
    endpointslice::{
        endpoint::{self, Source},
        selected, services_of,
    },
    pods,
};
use crate::client::{ObjectKey, Result, writes};

/// `maxCapacity`: the rest is left out and the object marked as truncated.
const ADDRESSES_MOST: usize = 1000;
/// Changes of pods within so short a time become one update.
const COALESCE: Duration = Duration::from_millis(50);
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

pub struct EndpointsController;
type Shell = super::Shell<EndpointsController>;

impl Controller for EndpointsController {
    type Key = ObjectKey;
    const NAME: &'static str = MANAGER;

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.services);
        shell.on(&shell.informers.pods, |it, change| services_of(change, &it.informers).into_iter().for_each(|key| it.queue.add_after(key, COALESCE)));
        shell.on(&shell.informers.endpoints, |it, change| it.queue.add_after(ObjectKey::of(change.object().as_ref()), COALESCE));
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let present = shell.informers.endpoints.get(key);
        let Some(service) = shell.informers.services.get(key) else {
            if let Some(present) = present {
                writes::delete(&shell.client, present.as_ref(), DeleteParams::default()).await?;
            }
            return Ok(None);
        };
        if !endpoint::has_selector(&service) {
            return Ok(None);
        }
        let Some(next) = plan(&service, &selected(&service, &shell.informers), present.as_deref()) else { return Ok(None) };
        let written = match present {
            Some(_) => writes::replace(&shell.client, &next).await,
            None => writes::create(&shell.client, &next).await.map(drop),
        };
        match written {
            Err(error) if !error.is_namespace_terminating() => Err(error),
            _ => Ok(None),
        }
    }
}

/// The Endpoints of a service as they should be, unless they are so.
fn plan(service: &Service, pods: &[Arc<Pod>], present: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, is_truncated) = truncated(subsets(service, pods));
    let mut metadata = present.map(|it| it.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: Some(service.name_any()),
        namespace: service.namespace(),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(endpoint::labels(service, [(MANAGED_BY, MANAGER)]));
    let subsets = Some(subsets).filter(|it| !it.is_empty());
    let is_same = present.is_some_and(|it| it.subsets == subsets && it.metadata.labels == metadata.labels);
    if is_same {
        return None;
    }
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.remove(OVER_CAPACITY);
    if is_truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    if let Some(at) = endpoint::trigger_time(service, pods) {
        annotations.insert(TRIGGER_TIME.to_owned(), at);
    }
    Some(Endpoints { metadata, subsets })
}

/// Addresses with the same ports stand together, sorted, the ready apart from the others.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let family = endpoint::address_types(service)[0];
    let publishes = endpoint::publishes_not_ready(service);
    let mut groups: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for pod in pods {
        let is_going = pod.metadata.deletion_timestamp.is_some() && !publishes;
        let source = Source { service, pod };
        let Some(ip) = source.address(family).filter(|_| !is_going && !pods::is_terminal(pod)) else { continue };
        let ports = ports(&source);
        if ports.is_empty() && service.spec.as_ref().is_some_and(|it| it.ports.as_ref().is_some_and(|it| !it.is_empty())) {
            continue;
        }
        let key = serde_json::to_string(&ports).unwrap_or_default();
        let subset =
            groups.entry(key).or_insert_with(|| EndpointSubset { ports: Some(ports).filter(|it| !it.is_empty()), ..EndpointSubset::default() });
        let node = Some(pods::node_name(pod)).filter(|it| !it.is_empty()).map(str::to_owned);
        let address = EndpointAddress { ip, node_name: node, target_ref: Some(source.target()), hostname: source.hostname() };
        let list = if publishes || pods::is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<EndpointSubset> = groups.into_values().collect();
    for list in subsets.iter_mut().flat_map(|it| [&mut it.addresses, &mut it.not_ready_addresses]).flatten() {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
    }
    subsets
}

fn ports(source: &Source<'_>) -> Vec<EndpointPort> {
    let of = |it: k8s_openapi::api::discovery::v1::EndpointPort| EndpointPort {
        name: it.name.filter(|it| !it.is_empty()),
        port: it.port.unwrap_or(0),
        protocol: it.protocol,
        app_protocol: it.app_protocol,
    };
    source.ports().into_iter().map(of).collect()
}

/// Drops the addresses beyond the capacity, the unready first.
fn truncated(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut left = ADDRESSES_MOST;
    let mut is_truncated = false;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        let count = list.as_ref().map_or(0, Vec::len);
        is_truncated |= count > left;
        if let Some(list) = list {
            list.truncate(left);
        }
        left -= count.min(left);
    };
    subsets.iter_mut().for_each(|it| cut(&mut it.addresses));
    subsets.iter_mut().for_each(|it| cut(&mut it.not_ready_addresses));
    (subsets, is_truncated)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_stand_by_readiness_and_nothing_is_written_twice() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}}))
        .unwrap();
        let pod = |name: &str, ip: &str, ready: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
                "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap(),
            )
        };
        let pods = [pod("b", "10.1.0.2", "True"), pod("a", "10.1.0.1", "True"), pod("c", "10.1.0.3", "False")];
        let made = plan(&service, &pods, None).unwrap();
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| list.iter().flatten().map(|it| it.ip.clone()).collect::<Vec<_>>();
        assert_eq!(
            (ips(&subset.addresses), ips(&subset.not_ready_addresses)),
            (vec!["10.1.0.1".into(), "10.1.0.2".into()], vec!["10.1.0.3".to_owned()])
        );
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        assert_eq!(plan(&service, &pods, Some(&made)), None);
        assert_eq!(plan(&service, &[], Some(&made)).unwrap().subsets, None);
    }
}
