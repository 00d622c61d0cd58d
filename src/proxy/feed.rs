//! Keeps the kernel as the informers see Services and EndpointSlices, and the host ports of this node's pods.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, ResourceExt};
use tokio::sync::Notify;

use super::{
    nftables::Table,
    plan::{self, Group},
    rules::{Draw, Elements, Family, Numbers},
};
use crate::{
    api::identity::User,
    base::Tasks,
    client::{Clients, Informer, informer},
};

/// Changes that come together are applied together.
const SETTLE: Duration = Duration::from_millis(10);
/// After the kernel has refused a transaction, the table is made anew this much later.
const RETRY: Duration = Duration::from_secs(1);
const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const BY_SERVICE: &str = "service";

#[derive(Clone, Debug)]
pub struct Options {
    pub node: String,
    /// The table's name: one a cluster.
    pub table: String,
    /// The cluster's pods, as a network of 65,536 addresses.
    pub pods: Ipv4Addr,
}

/// Files a slice under `namespace/service`.
pub fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.labels().get(SERVICE_NAME);
    name.map(|it| format!("{}/{it}", slice.namespace().unwrap_or_default())).into_iter().collect()
}

/// Starts the proxy of a node. The table goes with [`remove`].
pub fn start(clients: &Clients, tasks: &Tasks, options: Options) {
    let client = clients.of(&User::system("system:kube-proxy", &[]));
    let wake = Arc::new(Notify::new());
    let services: Informer<Service> = Informer::start("proxy-services", Api::all(client.clone()), informer::Options::default(), tasks);
    let slices: Informer<EndpointSlice> =
        Informer::start("proxy-slices", Api::all(client.clone()), informer::Options::default().index(BY_SERVICE, service_of), tasks);
    let node = clients.of(&User::system(&format!("system:node:{}", options.node), &["system:nodes"]));
    let own = informer::Options::default().fields(&format!("spec.nodeName={}", options.node));
    let pods: Informer<Pod> = Informer::start("proxy-pods", Api::all(node), own, tasks);
    for listener in [wake.clone()] {
        services.subscribe(move |_| listener.notify_one());
    }
    let listener = wake.clone();
    slices.subscribe(move |_| listener.notify_one());
    let listener = wake.clone();
    pods.subscribe(move |_| listener.notify_one());
    tasks.spawn("proxy", async move {
        services.synced().await;
        slices.synced().await;
        let mut proxy = Proxy { options, table: None, loaded: Elements::default(), numbers: Numbers::default(), draws: BTreeSet::new() };
        loop {
            let groups = proxy.groups(&services, &slices, &pods);
            match proxy.apply(&groups) {
                Ok(()) => {
                    wake.notified().await;
                    tokio::time::sleep(SETTLE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the service rules were refused; loading them anew");
                    proxy.table = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    });
}

/// Takes the rules of a cluster out of the kernel.
pub fn remove(table: &str) {
    if let Ok(mut table) = Table::open(table, Family::V4) {
        let _ = table.delete();
    }
}

struct Proxy {
    options: Options,
    table: Option<Table>,
    loaded: Elements,
    numbers: Numbers,
    draws: BTreeSet<Draw>,
}

impl Proxy {
    fn groups(&self, services: &Informer<Service>, slices: &Informer<EndpointSlice>, pods: &Informer<Pod>) -> Vec<Group> {
        let of_service = |service: &Arc<Service>| {
            let key = format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any());
            plan::service(service, &slices.by(BY_SERVICE, &key), &self.options.node)
        };
        let services = services.list();
        let pods = pods.list();
        services.iter().flat_map(of_service).chain(pods.iter().flat_map(|it| plan::pod(it))).collect()
    }

    fn apply(&mut self, groups: &[Group]) -> io::Result<()> {
        if self.table.is_none() {
            let mut table = Table::open(&self.options.table, Family::V4)?;
            table.create(Some((IpAddr::V4(self.options.pods), 16)))?;
            self.table = Some(table);
            self.loaded = Elements::default();
            self.draws.clear();
        }
        let wanted = Elements::render(groups, Family::V4, &mut self.numbers);
        let difference = self.loaded.difference(&wanted);
        if let (Some(table), false) = (&mut self.table, difference.is_empty()) {
            table.apply(&difference, &self.draws)?;
            self.draws.extend(difference.draws);
            self.loaded = wanted;
        }
        Ok(())
    }
}
