//! Keeps the kernel as the informers see Services and EndpointSlices, and the host ports of this node's pods.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
};
use kube::{Api, ResourceExt};
use tokio::sync::Notify;

use super::{
    nftables::Table,
    plan::{self, Group},
    rules::{Draw, Elements, Family, Numbers},
};
use crate::{
    base::Tasks,
    client::{BY_SERVICE, Informer, Watch, informer::service_of},
    meta::Cidr,
};

/// Changes that come together are applied together.
const SETTLE: Duration = Duration::from_millis(10);
/// After the kernel has refused a transaction, the table is made anew this much later.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Options {
    pub node: String,
    /// The table's name: one a cluster.
    pub table: String,
    /// The cluster's pods.
    pub pods: Cidr,
    /// This node's DNS server: here Service `kube-dns` leads to it alone, so that a node that dies takes nobody's names away.
    pub dns: SocketAddr,
}

const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// Starts the proxy of a node, with the node's client. The table goes with [`remove`].
pub fn start(client: &kube::Client, tasks: &Tasks, options: Options) {
    let wake = Arc::new(Notify::new());
    let services: Informer<Service> = Informer::start("proxy-services", Api::all(client.clone()), Watch::default(), tasks);
    let slices: Informer<EndpointSlice> = Informer::start("proxy-slices", Api::all(client.clone()), Watch::default().index(BY_SERVICE, service_of), tasks);
    let own = Watch::default().fields(&format!("spec.nodeName={}", options.node));
    let pods: Informer<Pod> = Informer::start("proxy-pods", Api::all(client.clone()), own, tasks);
    services.wakes(&wake);
    slices.wakes(&wake);
    pods.wakes(&wake);
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

/// Why Services do not work on this machine, where they do not: the kernel is given rules for a moment.
pub fn missing() -> Option<String> {
    let name = format!("howdah-probe-{}", std::process::id());
    let tried = Table::open(&name, Family::V4).and_then(|mut it| it.create(None).and_then(|()| it.delete()));
    tried.err().map(|why| format!("pods do not reach Services, for want of nftables with NAT and maps ({why})"))
}

/// Takes the rules of a cluster out of the kernel.
pub fn remove(table: &str) {
    if let Ok(mut table) = Table::open(table, Family::V4) {
        let _ = table.delete();
    }
}

/// The slice that leads to this node's DNS server.
fn own_dns(at: SocketAddr) -> EndpointSlice {
    let port = |name: &str, protocol: &str| EndpointPort { name: Some(name.to_owned()), port: Some(at.port().into()), protocol: Some(protocol.to_owned()), app_protocol: None };
    let endpoint = Endpoint { addresses: vec![at.ip().to_string()], ..Endpoint::default() };
    EndpointSlice { endpoints: Some(vec![endpoint]), ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]), ..EndpointSlice::default() }
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
            let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
            let slices = match (namespace.as_str(), name.as_str()) == DNS_SERVICE {
                true => vec![Arc::new(own_dns(self.options.dns))],
                false => slices.by(BY_SERVICE, &format!("{namespace}/{name}")),
            };
            plan::service(service, &slices, &self.options.node)
        };
        let services = services.list();
        let pods = pods.list();
        services.iter().flat_map(of_service).chain(pods.iter().flat_map(|it| plan::pod(it))).collect()
    }

    fn apply(&mut self, groups: &[Group]) -> io::Result<()> {
        if self.table.is_none() {
            let mut table = Table::open(&self.options.table, Family::V4)?;
            table.create(Some((IpAddr::V4(self.options.pods.at(0)), self.options.pods.prefix().into())))?;
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
