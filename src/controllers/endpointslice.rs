//! EndpointSlices: who stands behind a Service, in slices of at most a hundred. Follows staging endpointslice and pkg/controller/endpointslice.

pub mod endpoint;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ObjectMeta},
};

use self::endpoint::Source;
use super::{
    Controller, Informers,
    claims::controller_ref,
    pods::{self, Control},
};
use crate::client::{BY_NAMESPACE, BY_SERVICE, Change, EventType, ObjectKey, Result, SERVICE_NAME, informer::service_key, writes};

/// `defaultMaxEndpointsPerSlice`.
const ENDPOINTS_MOST: usize = 100;
/// Changes of pods within so short a time become one update.
const COALESCE: Duration = Duration::from_millis(20);
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

pub struct EndpointSliceController;
type Shell = super::Shell<EndpointSliceController>;

impl Controller for EndpointSliceController {
    type Key = ObjectKey;
    const NAME: &'static str = "endpointslice-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.services);
        shell.on(&shell.informers.pods, |it, change| services_of(change, &it.informers).into_iter().for_each(|key| it.queue.add_after(key, COALESCE)));
        shell.on(&shell.informers.endpoint_slices, Shell::slice_changed);
        shell.on(&shell.informers.nodes, Shell::node_changed);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(service) = shell.informers.services.get(key) else {
            shell.expectations.forget(key);
            return Ok(None);
        };
        if service.metadata.deletion_timestamp.is_some() || !endpoint::has_selector(&service) || !shell.expectations.are_satisfied(key) {
            return Ok(None);
        }
        let pods = selected(&service, &shell.informers);
        let mut slices = shell.informers.endpoint_slices.by(BY_SERVICE, &key.to_string());
        slices.retain(|it| is_of(it, MANAGER) && it.metadata.deletion_timestamp.is_none());
        let zone = |node: &str| shell.informers.nodes.get(&ObjectKey::new("", node)).and_then(|it| it.labels().get(endpoint::ZONE).cloned());
        let actions = plan(&service, &pods, &slices, zone);
        let performed = perform(shell, key, stamped(actions, endpoint::trigger_time(&service, &pods))).await;
        if let Some(error) = performed.as_ref().err().filter(|it| !it.is_conflict()) {
            let message = format!("Error updating Endpoint Slices for Service {key}: {}", error.message());
            shell.events.event(service.as_ref(), EventType::Warning, "FailedToUpdateEndpointSlices", message);
        }
        performed.map(|()| None)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(Arc<EndpointSlice>),
}

/// Endpoints that are wanted behind equal ports, by an id of each.
#[derive(Default)]
pub struct Group {
    pub ports: Vec<EndpointPort>,
    pub endpoints: BTreeMap<String, Endpoint>,
}

/// Groups by family and ports.
pub type Groups = BTreeMap<(String, String), Group>;

/// Under what a group stands; the order of ports tells nothing.
pub fn group_key(family: &str, ports: &[EndpointPort]) -> (String, String) {
    let mut ports: Vec<String> = ports.iter().map(|it| serde_json::to_string(it).unwrap_or_default()).collect();
    ports.sort();
    (family.to_owned(), ports.join(","))
}

/// What makes `slices` (this controller's, of this service) show `pods`.
pub fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>], zone: impl Fn(&str) -> Option<String>) -> Vec<Action> {
    let mut groups = Groups::new();
    for family in endpoint::address_types(service) {
        let mut own = Groups::new();
        for source in pods.iter().map(|pod| Source { service, pod }) {
            if let Some(endpoint) = source.endpoint(family, &zone) {
                let ports = source.ports();
                let group = own.entry(group_key(family, &ports)).or_insert_with(|| Group { ports, ..Group::default() });
                group.endpoints.insert(source.pod.uid().unwrap_or_default(), endpoint);
            }
        }
        if own.is_empty() {
            own.insert(group_key(family, &[]), Group::default());
        }
        groups.extend(own);
    }
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", service.name_any())),
        namespace: service.namespace(),
        labels: Some(endpoint::labels(service, [(SERVICE_NAME, &service.name_any()), (MANAGED_BY, MANAGER)])),
        owner_references: Some(vec![controller_ref(service)]),
        ..ObjectMeta::default()
    };
    let id = |it: &Endpoint| it.target_ref.as_ref().and_then(|it| it.uid.clone()).unwrap_or_default();
    Slices { metadata, annotations: None, most: ENDPOINTS_MOST, id }.plan(groups, slices)
}

/// What the slices of one owner have in common (`reconciler` of staging endpointslice).
pub struct Slices {
    /// Of a new slice.
    pub metadata: ObjectMeta,
    /// The annotations of all; without, each keeps its own.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The endpoints in one slice.
    pub most: usize,
    pub id: fn(&Endpoint) -> String,
}

impl Slices {
    /// What makes `present` have the endpoints of `groups`. A slice that would be deleted is rather written anew.
    pub fn plan(&self, groups: Groups, present: &[Arc<EndpointSlice>]) -> Vec<Action> {
        let key = |it: &EndpointSlice| group_key(&it.address_type, it.ports.as_deref().unwrap_or_default());
        let mut free: Vec<Arc<EndpointSlice>> = present.iter().filter(|it| !groups.contains_key(&key(it))).cloned().collect();
        let mut actions = Vec::new();
        for (of, group) in groups {
            let own = present.iter().filter(|it| key(it) == of).cloned().collect();
            self.fill(&of.0, group, own, &mut actions, &mut free);
        }
        for action in &mut actions {
            if let Action::Create(slice) = action
                && let Some(at) = free.iter().position(|it| it.address_type == slice.address_type)
            {
                (slice.metadata.name, slice.metadata.generate_name) = (free.remove(at).metadata.name.clone(), None);
                *action = Action::Update(slice.clone());
            }
        }
        actions.extend(free.into_iter().map(Action::Delete));
        actions
    }

    /// Keeps endpoints in the slices where they are, fills free places with new ones, and makes slices and sets others free as needed.
    fn fill(&self, family: &str, group: Group, present: Vec<Arc<EndpointSlice>>, actions: &mut Vec<Action>, free: &mut Vec<Arc<EndpointSlice>>) {
        let Group { ports, endpoints: mut wanted } = group;
        let is_empty = wanted.is_empty();
        let mut next: Vec<EndpointSlice> = present.iter().map(|it| self.kept(it, &mut wanted)).collect();
        let mut new: Vec<Endpoint> = wanted.into_values().collect();
        for endpoints in next.iter_mut().filter_map(|it| it.endpoints.as_mut()).filter(|it| !it.is_empty()) {
            let room = self.most.saturating_sub(endpoints.len()).min(new.len());
            endpoints.extend(new.drain(..room));
        }
        let mut keeps_one = false;
        for (old, slice) in present.into_iter().zip(next) {
            let is_placeholder = is_empty && !keeps_one;
            if size(&slice) == 0 && !is_placeholder {
                free.push(old);
                continue;
            }
            keeps_one = true;
            if slice != *old && (size(&slice) > 0 || size(&old) > 0 || slice.metadata != old.metadata) {
                actions.push(Action::Update(slice));
            }
        }
        let placeholder = (is_empty && !keeps_one).then(Vec::new);
        let made = placeholder.into_iter().chain(new.chunks(self.most).map(<[Endpoint]>::to_vec));
        actions.extend(made.map(|endpoints| {
            let annotations = self.annotations.clone().filter(|it| !it.is_empty());
            let metadata = ObjectMeta { annotations, ..self.metadata.clone() };
            Action::Create(EndpointSlice { metadata, address_type: family.to_owned(), endpoints: Some(endpoints), ports: Some(ports.clone()) })
        }));
    }

    /// The slice with those of its endpoints that are still wanted, as they are now.
    fn kept(&self, slice: &EndpointSlice, wanted: &mut BTreeMap<String, Endpoint>) -> EndpointSlice {
        let mut next = slice.clone();
        next.endpoints = Some(slice.endpoints.iter().flatten().filter_map(|it| wanted.remove(&(self.id)(it))).collect());
        next.metadata.labels.clone_from(&self.metadata.labels);
        next.metadata.owner_references.clone_from(&self.metadata.owner_references);
        if self.annotations.is_some() {
            next.metadata.annotations = self.annotations.clone().filter(|it| !it.is_empty());
        }
        next
    }
}

fn size(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

impl Shell {
    fn slice_changed(&self, change: &Change<EndpointSlice>) {
        let Some(key) = service_key(change.object()).filter(|_| is_of(change.object(), MANAGER)) else { return };
        if matches!(change, Change::Added(_)) {
            self.expectations.creation_observed(&key);
        }
        self.queue.add_after(key, COALESCE);
    }

    /// A node that moved to another zone takes its pods' endpoints with it.
    fn node_changed(&self, change: &Change<Node>) {
        let zone = |it: &Node| it.labels().get(endpoint::ZONE).cloned();
        let is_moved = change.old().is_some_and(|old| zone(old) != zone(change.object()));
        if is_moved || (matches!(change, Change::Added(_)) && zone(change.object()).is_some()) {
            self.informers.services.list().iter().for_each(|it| self.queue.add_after(ObjectKey::of(it.as_ref()), COALESCE));
        }
    }
}

pub fn is_of(slice: &EndpointSlice, manager: &str) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|it| it == manager)
}

/// Carries actions out; returns the first failure. That the namespace is going is none.
pub async fn perform(control: &Control, key: &ObjectKey, actions: Vec<Action>) -> Result<()> {
    let creations = actions.iter().filter(|it| matches!(it, Action::Create(_))).count();
    if creations > 0 {
        control.expectations.expect(key, creations, []);
    }
    let mut failure = None;
    for action in actions {
        let is_creation = matches!(action, Action::Create(_));
        let written = match &action {
            Action::Create(slice) => writes::create(&control.client, slice).await.map(drop),
            Action::Update(slice) => writes::replace(&control.client, slice).await,
            Action::Delete(slice) => writes::delete(&control.client, slice.as_ref(), DeleteParams::default()).await.map(drop),
        };
        if let Err(error) = written {
            if is_creation {
                control.expectations.creation_observed(key);
            }
            failure = failure.or(Some(error).filter(|it| !it.is_namespace_terminating()));
        }
    }
    failure.map_or(Ok(()), Err)
}

fn stamped(mut actions: Vec<Action>, at: Option<String>) -> Vec<Action> {
    for action in &mut actions {
        if let (Action::Create(slice) | Action::Update(slice), Some(at)) = (action, &at) {
            slice.annotations_mut().insert(TRIGGER_TIME.to_owned(), at.clone());
        }
    }
    actions
}

/// The pods that a service selects.
pub fn selected(service: &Service, informers: &Informers) -> Vec<Arc<Pod>> {
    let mut pods = informers.pods.by(BY_NAMESPACE, &service.namespace().unwrap_or_default());
    pods.retain(|it| endpoint::selects(service, it));
    pods
}

/// The services whose endpoints a change of a pod concerns.
pub fn services_of(change: &Change<Pod>, informers: &Informers) -> Vec<ObjectKey> {
    let pod = change.object();
    if change.old().is_some_and(|old| shown(old) == shown(pod)) {
        return Vec::new();
    }
    let services = informers.services.by(BY_NAMESPACE, &pod.namespace().unwrap_or_default());
    let concerns = |it: &&Arc<Service>| endpoint::selects(it, pod) || change.old().is_some_and(|old| endpoint::selects(it, old));
    services.iter().filter(concerns).map(|it| ObjectKey::of(it.as_ref())).collect()
}

/// What of a pod shows in an endpoint.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let status = pod.status.as_ref();
    (
        status.and_then(|it| it.pod_ips.as_ref()),
        (pods::is_ready(pod), pods::is_terminal(pod), pod.metadata.deletion_timestamp.is_some()),
        pod.metadata.labels.as_ref(),
        pods::node_name(pod),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(extra: serde_json::Value) -> Service {
        let mut value = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s", "labels": {"l": "v"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}});
        json_patch::merge(&mut value, &extra);
        serde_json::from_value(value).unwrap()
    }

    fn pod(number: usize, ready: bool) -> Arc<Pod> {
        let value = json!({"metadata": {"name": format!("p{number}"), "namespace": "ns", "uid": format!("u{number:04}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": "10.1.0.1", "podIPs": [{"ip": format!("10.1.{}.{}", number / 200, number % 200)}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn made(actions: &[Action]) -> Vec<Arc<EndpointSlice>> {
        let make = |(at, action): (usize, &Action)| match action {
            Action::Create(slice) => {
                Some(Arc::new(EndpointSlice { metadata: ObjectMeta { name: Some(format!("s{at}")), ..slice.metadata.clone() }, ..slice.clone() }))
            }
            _ => None,
        };
        actions.iter().enumerate().filter_map(make).collect()
    }

    fn told(actions: &[Action]) -> Vec<String> {
        let tell = |action: &Action| match action {
            Action::Create(slice) => format!("create {}", size(slice)),
            Action::Update(slice) => format!("update {} {}", slice.name_any(), size(slice)),
            Action::Delete(slice) => format!("delete {}", slice.name_any()),
        };
        actions.iter().map(tell).collect()
    }

    #[test]
    fn slices_hold_a_hundred_and_change_as_little_as_possible() {
        let (service, none) = (service(json!({})), |_: &str| None);
        let pods: Vec<_> = (0..250).map(|it| pod(it, true)).collect();
        let first = plan(&service, &pods, &[], none);
        assert_eq!(told(&first), ["create 100", "create 100", "create 50"]);
        let slices = made(&first);
        assert_eq!(told(&plan(&service, &pods, &slices, none)), Vec::<String>::new());
        assert_eq!(told(&plan(&service, &pods[1..], &slices, none)), ["update s0 99"]);
        let mut other = pods[..249].to_vec();
        other.push(pod(249, false));
        assert_eq!(told(&plan(&service, &other, &slices, none)), ["update s2 50"]);
        assert_eq!(told(&plan(&service, &pods[..200], &slices, none)), ["delete s2"]);
        assert_eq!(told(&plan(&service, &[], &slices, none)), ["update s0 0", "delete s1", "delete s2"]);
        let placeholder = made(&plan(&service, &[], &[], none));
        assert_eq!(told(&plan(&service, &[], &placeholder, none)), Vec::<String>::new());
        assert_eq!(told(&plan(&service, &pods[..1], &placeholder, none)), ["update s0 1"]);
    }

    #[test]
    fn an_endpoint_says_what_its_pod_is() {
        let zone = |_: &str| Some("z".to_owned());
        let mut going = Pod::clone(&pod(1, true));
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::base::clock::now()));
        // (service, pod) -> (ready, serving, terminating)
        let cases = [
            (json!({}), pod(1, true), (true, true, false)),
            (json!({}), pod(1, false), (false, false, false)),
            (json!({"spec": {"publishNotReadyAddresses": true}}), pod(1, false), (true, false, false)),
            (json!({}), Arc::new(going), (false, true, true)),
        ];
        for (extra, pod, expected) in cases {
            let Action::Create(slice) = plan(&service(extra), &[pod], &[], zone).remove(0) else { panic!() };
            let (it, port) = (&slice.endpoints.as_ref().unwrap()[0], &slice.ports.as_ref().unwrap()[0]);
            let conditions = it.conditions.clone().unwrap();
            assert_eq!((conditions.ready, conditions.serving, conditions.terminating), (Some(expected.0), Some(expected.1), Some(expected.2)));
            assert_eq!(
                (it.zone.as_deref(), it.node_name.as_deref(), port.port, port.name.as_deref()),
                (Some("z"), Some("n1"), Some(8080), Some("http"))
            );
        }
    }

    #[test]
    fn a_headless_service_is_marked_so() {
        let headless = service(json!({"spec": {"clusterIP": "None"}}));
        let Action::Create(slice) = plan(&headless, &[], &[], |_| None).remove(0) else { panic!() };
        let labels = slice.labels();
        assert_eq!((labels[endpoint::HEADLESS].as_str(), labels[SERVICE_NAME].as_str(), labels["l"].as_str()), ("", "web", "v"));
    }

    #[test]
    fn only_what_shows_wakes_a_service() {
        let mut other = Pod::clone(&pod(1, true));
        other.annotations_mut().insert("a".into(), "b".into());
        let (ready, unready) = (pod(1, true), pod(1, false));
        assert!(shown(&ready) == shown(&other));
        assert!(shown(&ready) != shown(&unready));
    }
}
