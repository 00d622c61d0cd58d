//! EndpointSlices for Endpoints that people write by hand: for Services without a selector. Follows pkg/controller/endpointslicemirroring.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{EndpointAddress, Endpoints, ObjectReference, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::{ResourceExt, api::ObjectMeta};

use super::{
    Controller,
    claims::controller_ref,
    endpointslice::{self, Action, Group, Groups, MANAGED_BY, Slices, TRIGGER_TIME, endpoint, group_key, is_of},
};
use crate::client::{BY_SERVICE, EventType, ObjectKey, Result, SERVICE_NAME, informer::service_key};

/// `--mirroring-max-endpoints-per-subset`.
const ENDPOINTS_MOST: usize = 1000;
/// Changes within so short a time become one update.
const COALESCE: Duration = Duration::from_millis(20);
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are not the slices' business.
const OWN_ANNOTATIONS: [&str; 2] = [TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];

pub struct EndpointSliceMirroringController;
type Shell = super::Shell<EndpointSliceMirroringController>;

impl Controller for EndpointSliceMirroringController {
    type Key = ObjectKey;
    const NAME: &'static str = "endpointslicemirroring-controller";
    const COMPONENT: &'static str = "endpoint-slice-mirroring-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.services);
        shell.queue_each(&shell.informers.endpoints);
        shell.on(&shell.informers.endpoint_slices, |it, change| {
            let slices = [Some(change.object()), change.old()].into_iter().flatten();
            for key in slices.filter(|it| is_of(it, MANAGER)).filter_map(|it| service_key(it)) {
                if change.old().is_none() {
                    it.expectations.creation_observed(&key);
                }
                it.queue.add_after(key, COALESCE);
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let mut slices = shell.informers.endpoint_slices.by(BY_SERVICE, &key.to_string());
        slices.retain(|it| is_of(it, MANAGER));
        let service = shell.informers.services.get(key);
        let Some(endpoints) = shell.informers.endpoints.get(key).filter(|it| is_wanted(it, service.as_deref())) else {
            shell.expectations.forget(key);
            return endpointslice::perform(shell, key, slices.into_iter().map(Action::Delete).collect()).await.map(|()| None);
        };
        if endpoints.metadata.deletion_timestamp.is_some() || !shell.expectations.are_satisfied(key) {
            return Ok(None);
        }
        let plan = plan(&endpoints, &slices);
        let warn = |reason: &str, message: String| shell.events.event(endpoints.as_ref(), EventType::Warning, reason, message);
        if plan.invalid > 0 {
            warn("InvalidIPAddress", format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", plan.invalid));
        }
        if plan.beyond > 0 {
            let message = format!("A max of {ENDPOINTS_MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped", plan.beyond);
            warn("TooManyAddressesToMirror", message);
        }
        endpointslice::perform(shell, key, plan.actions).await.map(|()| None)
    }
}

/// What mirrors `endpoints`, and what could not be.
#[derive(Debug, PartialEq)]
struct Plan {
    actions: Vec<Action>,
    invalid: usize,
    beyond: usize,
}

/// `slices` are those of this controller and service. Each group of ports and family has one slice.
fn plan(endpoints: &Endpoints, slices: &[Arc<EndpointSlice>]) -> Plan {
    let (groups, invalid, beyond) = groups(endpoints);
    let mut labels = endpoints.labels().clone();
    labels.extend([(SERVICE_NAME.to_owned(), endpoints.name_any()), (MANAGED_BY.to_owned(), MANAGER.to_owned())]);
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", endpoints.name_any())),
        namespace: endpoints.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![controller_ref(endpoints)]),
        ..ObjectMeta::default()
    };
    let id = |it: &Endpoint| id(it.addresses.first().map_or("", String::as_str), it.target_ref.as_ref());
    Plan { actions: Slices { metadata, annotations: Some(annotations), most: usize::MAX, id }.plan(groups, slices), invalid, beyond }
}

/// By what endpoints of one group are told apart: the address, with what it refers to.
fn id(address: &str, target: Option<&ObjectReference>) -> String {
    format!("{address}/{}", target.and_then(|it| it.uid.as_deref()).unwrap_or_default())
}

/// The groups; how many addresses are none, and how many are too many for their subset.
fn groups(endpoints: &Endpoints) -> (Groups, usize, usize) {
    let mut groups = Groups::new();
    let (mut invalid, mut beyond) = (0, 0);
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
        let ready = subset.addresses.iter().flatten().map(|it| (it, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|it| (it, false));
        let mut count = 0;
        for (address, is_ready) in ready.chain(unready) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                invalid += 1;
                continue;
            };
            count += 1;
            if count > ENDPOINTS_MOST {
                beyond += 1;
                continue;
            }
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let group = groups.entry(group_key(family, &ports)).or_insert_with(|| Group { ports: ports.clone(), ..Group::default() });
            let endpoint = endpoint_of(address, ip, is_ready);
            // The same address may stand in several subsets; ready in one of them is ready.
            let known = group.endpoints.entry(id(&ip.to_string(), address.target_ref.as_ref())).or_insert_with(|| endpoint.clone());
            if is_ready {
                *known = endpoint;
            }
        }
    }
    (groups, invalid, beyond)
}

fn port(it: &k8s_openapi::api::core::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        name: Some(it.name.clone().unwrap_or_default()),
        port: Some(it.port),
        protocol: Some(it.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: it.app_protocol.clone(),
    }
}

fn endpoint_of(address: &EndpointAddress, ip: IpAddr, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|it| !it.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn is_wanted(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let is_skipped = endpoints.labels().get(SKIP_MIRROR).is_some_and(|it| it == "true") || endpoints.annotations().contains_key(LEADER);
    !is_skipped && service.is_some_and(|it| !endpoint::has_selector(it))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value, labels: Value) -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "ns", "uid": "e", "labels": labels}, "subsets": subsets})).expect("Endpoints")
    }

    fn told(plan: &Plan) -> Vec<String> {
        let show = |slice: &EndpointSlice| {
            let one = |it: &Endpoint| format!("{}{}", it.addresses[0], if it.conditions.as_ref().and_then(|it| it.ready) == Some(true) { "" } else { "!" });
            let all: Vec<String> = slice.endpoints.iter().flatten().map(one).collect();
            format!("{} {} {}", slice.address_type, slice.ports.iter().flatten().filter_map(|it| it.port).map(|it| it.to_string()).collect::<Vec<_>>().join(","), all.join(" "))
        };
        let mut lines: Vec<String> = plan.actions.iter().map(|it| match it {
            Action::Create(slice) => format!("create {}", show(slice)),
            Action::Update(slice) => format!("update {} {}", slice.name_any(), show(slice)),
            Action::Delete(slice) => format!("delete {}", slice.name_any()),
        }).collect();
        lines.sort();
        lines
    }

    fn written(plan: Plan) -> Vec<Arc<EndpointSlice>> {
        let name = |(at, action)| match action {
            Action::Create(mut slice) | Action::Update(mut slice) => {
                slice.metadata.name = Some(format!("s{at}"));
                Some(Arc::new(slice))
            }
            Action::Delete(_) => None,
        };
        plan.actions.into_iter().enumerate().filter_map(name).collect()
    }

    #[test]
    fn subsets_become_slices_by_ports_and_family() {
        let two = json!([
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "nonsense"}], "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]},
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 90, "name": "x"}]},
        ]);
        let first = plan(&endpoints(two.clone(), json!({"a": "b"})), &[]);
        assert_eq!(told(&first), ["create IPv4 80 10.0.0.1 10.0.0.2!", "create IPv4 90 10.0.0.1", "create IPv6 80 fd00::1"]);
        assert_eq!((first.invalid, first.beyond), (1, 0));
        let slices = written(first);
        let again = |subsets: Value, labels: Value| told(&plan(&endpoints(subsets, labels), &slices));
        assert_eq!(again(two, json!({"a": "b"})), Vec::<String>::new());
        let one = json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]}]);
        assert_eq!(again(one.clone(), json!({"a": "b"})), ["delete s1"]);
        assert_eq!(again(one, json!({})).len(), 3, "labels are mirrored too");
        assert_eq!(again(json!([{"addresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 70}]}]), json!({})), ["delete s1", "delete s2", "update s0 IPv4 70 10.0.0.9"]);
        assert_eq!(again(json!([]), json!({})).len(), 3, "all are deleted");
    }

    #[test]
    fn a_subset_has_its_most() {
        let many: Vec<Value> = (0..1200).map(|it| json!({"ip": format!("10.0.{}.{}", it / 250, it % 250)})).collect();
        let plan = plan(&endpoints(json!([{"addresses": many, "ports": [{"port": 80}]}]), json!({})), &[]);
        assert_eq!(plan.beyond, 200);
        let Action::Create(slice) = &plan.actions[0] else { panic!("one slice") };
        assert_eq!(slice.endpoints.as_ref().map(Vec::len), Some(ENDPOINTS_MOST));
    }

    #[test]
    fn only_hand_written_endpoints_are_mirrored() {
        let service = |spec: Value| serde_json::from_value::<Service>(json!({"spec": spec})).expect("a Service");
        let (own, selecting) = (service(json!({})), service(json!({"selector": {"a": "b"}})));
        let plain = endpoints(json!([]), json!({}));
        let skipped = endpoints(json!([]), json!({SKIP_MIRROR: "true"}));
        let mut leader = plain.clone();
        leader.annotations_mut().insert(LEADER.to_owned(), String::new());
        let cases = [(&plain, Some(&own), true), (&plain, Some(&selecting), false), (&plain, None, false), (&skipped, Some(&own), false), (&leader, Some(&own), false)];
        for (endpoints, service, expected) in cases {
            assert_eq!(is_wanted(endpoints, service), expected);
        }
    }
}
