//! EndpointSlices for Endpoints that people write by hand: for Services without a selector. Follows pkg/controller/endpointslicemirroring.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{EndpointAddress, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::{ResourceExt, api::ObjectMeta};

use super::{
    BY_SERVICE, Controller,
    claims::controller_ref,
    endpointslice::{self, Action, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, endpoint},
};
use crate::client::{EventType, ObjectKey, Result};

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
            for key in slices.filter(|it| is_ours(it)).filter_map(|it| Some(ObjectKey::new(it.namespace().unwrap_or_default(), it.labels().get(SERVICE_NAME)?))) {
                if change.old().is_none() {
                    it.expectations.creation_observed(&key);
                }
                it.queue.add_after(key, COALESCE);
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let mut slices = shell.informers.endpoint_slices.by(BY_SERVICE, &key.to_string());
        slices.retain(|it| is_ours(it));
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

/// The endpoints of one address family behind the same ports: by address, with what it refers to.
type Group = (String, Vec<EndpointPort>, BTreeMap<String, Endpoint>);

/// `slices` are those of this controller and service. Each group of ports and family has one slice.
fn plan(endpoints: &Endpoints, slices: &[Arc<EndpointSlice>]) -> Plan {
    let (mut groups, invalid, beyond) = groups(endpoints);
    let mut actions = Vec::new();
    let mut free: Vec<&Arc<EndpointSlice>> = Vec::new();
    for slice in slices {
        match groups.remove(&key(&slice.address_type, slice.ports.as_deref().unwrap_or_default())) {
            Some(group) if is_mirrored(endpoints, slice, &group) => (),
            Some(group) => actions.push(Action::Update(filled(endpoints, group, slice.metadata.name.clone()))),
            None => free.push(slice),
        }
    }
    for (_, group) in groups {
        // A slice that would be deleted is written anew instead.
        match free.iter().position(|it| it.address_type == group.0) {
            Some(at) => actions.push(Action::Update(filled(endpoints, group, free.remove(at).metadata.name.clone()))),
            None => actions.push(Action::Create(filled(endpoints, group, None))),
        }
    }
    actions.extend(free.into_iter().cloned().map(Action::Delete));
    Plan { actions, invalid, beyond }
}

fn key(family: &str, ports: &[EndpointPort]) -> String {
    let mut ports: Vec<String> = ports.iter().map(|it| serde_json::to_string(it).unwrap_or_default()).collect();
    ports.sort();
    format!("{family}-{}", ports.join(","))
}

/// The groups by their keys; how many addresses are none, and how many are too many for their subset.
fn groups(endpoints: &Endpoints) -> (BTreeMap<String, Group>, usize, usize) {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
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
            let group = groups.entry(key(family, &ports)).or_insert_with(|| (family.to_owned(), ports.clone(), BTreeMap::new()));
            let target = address.target_ref.as_ref().and_then(|it| it.uid.clone()).unwrap_or_default();
            let endpoint = endpoint_of(address, ip, is_ready);
            // The same address may stand in several subsets; ready in one of them is ready.
            let known = group.2.entry(format!("{ip}/{target}")).or_insert_with(|| endpoint.clone());
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

fn is_mirrored(endpoints: &Endpoints, slice: &EndpointSlice, (_, _, wanted): &Group) -> bool {
    let owner = slice.owner_references().iter().find(|it| it.kind == "Endpoints");
    let has = |it: &Endpoint| wanted.values().any(|wanted| wanted == it);
    let listed = slice.endpoints.as_deref().unwrap_or_default();
    listed.len() == wanted.len()
        && listed.iter().all(has)
        && owner.map(|it| it.uid.as_str()) == endpoints.metadata.uid.as_deref()
        && *slice.labels() == labels(endpoints)
        && *slice.annotations() == annotations(endpoints)
}

fn filled(endpoints: &Endpoints, (family, ports, wanted): Group, name: Option<String>) -> EndpointSlice {
    let generated = Some(format!("{}-", endpoints.name_any())).filter(|_| name.is_none());
    let metadata = ObjectMeta {
        name,
        generate_name: generated,
        namespace: endpoints.namespace(),
        labels: Some(labels(endpoints)),
        annotations: Some(annotations(endpoints)),
        owner_references: Some(vec![controller_ref(endpoints)]),
        ..ObjectMeta::default()
    };
    EndpointSlice { metadata, address_type: family, endpoints: Some(wanted.into_values().collect()), ports: Some(ports) }
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    annotations
}

fn is_wanted(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let is_skipped = endpoints.labels().get(SKIP_MIRROR).is_some_and(|it| it == "true") || endpoints.annotations().contains_key(LEADER);
    !is_skipped && service.is_some_and(|it| !endpoint::has_selector(it))
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|it| it == MANAGER)
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
