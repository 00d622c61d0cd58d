//! The live API servers: each renews a Lease, and stands in the Endpoints and EndpointSlices of Service `kubernetes` as long as it does. Their
//! processes keep all this, not the controllers'. Follows pkg/controlplane/reconcilers (lease.go) and KEP-1965, with one kind of Lease for both.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Endpoints, discovery::v1::EndpointSlice};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::{
    base::{Tasks, clock},
    client::{Informer, Result, SERVICE_NAME, Watch, writes},
};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
const MANAGER: &str = "kube-apiserver";
const LEASES: &str = "kube-system";
const IDENTITY: &str = "apiserver.kubernetes.io/identity";
/// A server that is killed is gone from the endpoints after LIVES_FOR + RENEW_EVERY, under 15 s.
const RENEW_EVERY: Duration = Duration::from_secs(3);
const LIVES_FOR: Duration = Duration::from_secs(9);

/// Keeps this server's Lease, and with the other servers the endpoints, under a client of the API server itself (`system:apiserver`), until
/// `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks, address: IpAddr, port: u16) {
    let own = SocketAddr::new(address, port);
    let wake = std::sync::Arc::new(Notify::new());
    let leases = Api::namespaced(client.clone(), LEASES);
    let informer: Informer<Lease> = Informer::start("apiserver-leases", leases.clone(), Watch::default().labels(IDENTITY), tasks);
    let listener = wake.clone();
    informer.subscribe(move |change| {
        if change.old().is_none() || change.is_deleted() {
            listener.notify_one();
        }
    });
    let (client, group) = (client.clone(), tasks.clone());
    tasks.spawn_finishing("apiserver-endpoints", async move {
        let mut servers = Servers { own, id: uuid::Uuid::new_v4().to_string(), client, leases, seen: HashMap::new() };
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        loop {
            let is_time = tokio::select! {
                _ = ticks.tick() => true,
                () = wake.notified() => false,
                () = group.stopping() => return servers.leave().await,
            };
            if let Err(error) = servers.keep(is_time, &informer).await {
                tracing::warn!(%error, "the endpoints of kubernetes were not written");
            }
        }
    });
}

struct Servers {
    own: SocketAddr,
    /// Of this process.
    id: String,
    client: kube::Client,
    leases: Api<Lease>,
    /// When each Lease was first seen as it is: another server is judged by our clock, not by the times that it writes.
    seen: HashMap<String, (Option<String>, Instant)>,
}

impl Servers {
    async fn keep(&mut self, renew: bool, informer: &Informer<Lease>) -> Result<()> {
        if renew {
            self.renew().await?;
        }
        informer.synced().await;
        let mut live = BTreeSet::from([self.own]);
        for lease in informer.list() {
            match address(&lease) {
                Some(address) if address == self.own || self.is_alive(&lease) => _ = live.insert(address),
                _ => self.remove(&lease).await?,
            }
        }
        publish(&self.client, &live).await
    }

    async fn renew(&self) -> Result<()> {
        let name = lease_name(self.own);
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": LEASES, "labels": {IDENTITY: MANAGER}},
            "spec": {"holderIdentity": format!("{}_{}", self.own, self.id), "leaseDurationSeconds": LIVES_FOR.as_secs(), "renewTime": clock::rfc3339_micro(clock::now())}});
        self.leases.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&lease)).await?;
        Ok(())
    }

    fn is_alive(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone();
        let (seen, since) = self.seen.entry(lease.name_any()).or_insert_with(|| (version.clone(), Instant::now()));
        if *seen != version {
            (*seen, *since) = (version, Instant::now());
        }
        since.elapsed() < LIVES_FOR
    }

    /// Removes the Lease of a server that has died, unless it was renewed at this moment.
    async fn remove(&mut self, lease: &Lease) -> Result<()> {
        self.seen.remove(&lease.name_any());
        let same = Preconditions { uid: None, resource_version: lease.metadata.resource_version.clone() };
        writes::delete(&self.client, lease, DeleteParams { preconditions: Some(same), ..DeleteParams::default() }).await.map(drop)
    }

    /// The others see at once that this server is gone.
    async fn leave(&self) {
        let (name, params) = (lease_name(self.own), DeleteParams::default());
        let _ = tokio::time::timeout(RENEW_EVERY, self.leases.delete(&name, &params)).await;
    }
}

/// Upstream's form: `apiserver-` and a hash of what makes the server unique.
fn lease_name(own: SocketAddr) -> String {
    let hex: String = Sha256::digest(own.to_string()).iter().take(13).map(|it| format!("{it:02x}")).collect();
    format!("apiserver-{hex}")
}

fn address(lease: &Lease) -> Option<SocketAddr> {
    lease.spec.as_ref()?.holder_identity.as_ref()?.split_once('_')?.0.parse().ok()
}

/// Applies the endpoints, which writes what is stored otherwise. Servers at several ports have a slice for each.
async fn publish(client: &kube::Client, live: &BTreeSet<SocketAddr>) -> Result<()> {
    let mut ports: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    live.iter().for_each(|it| ports.entry(it.port()).or_default().push(it.ip()));
    let params = PatchParams::apply(MANAGER).force();
    writes::api::<Endpoints>(client, NAMESPACE).patch(NAME, &params, &Patch::Apply(endpoints(&ports))).await?;
    let slices = writes::api::<EndpointSlice>(client, NAMESPACE);
    let mut names = Vec::new();
    for (port, addresses) in &ports {
        let name = if names.is_empty() { NAME.to_owned() } else { format!("{NAME}-{port}") };
        slices.patch(&name, &params, &Patch::Apply(endpoint_slice(&name, *port, addresses))).await?;
        names.push(name);
    }
    for old in slices.list(&ListParams::default().labels(&format!("{SERVICE_NAME}={NAME}"))).await?.items {
        if !names.contains(&old.name_any()) {
            writes::delete(client, &old, DeleteParams::default()).await?;
        }
    }
    Ok(())
}

fn port_of(port: u16) -> Value {
    json!({"name": "https", "port": port, "protocol": "TCP"})
}

/// Slices of these Endpoints are not mirrored: theirs is written here.
fn endpoints(ports: &BTreeMap<u16, Vec<IpAddr>>) -> Value {
    let addresses = |all: &[IpAddr]| all.iter().map(|it| json!({"ip": it})).collect::<Vec<_>>();
    let subsets: Vec<Value> = ports.iter().map(|(port, all)| json!({"addresses": addresses(all), "ports": [port_of(*port)]})).collect();
    json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}, "subsets": subsets})
}

fn endpoint_slice(name: &str, port: u16, addresses: &[IpAddr]) -> Value {
    let family = if addresses.iter().any(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<Value> = addresses.iter().map(|it| json!({"addresses": [it], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name, "labels": {SERVICE_NAME: NAME}},
        "addressType": family, "endpoints": endpoints, "ports": [port_of(port)]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_stand_under_the_addresses_that_they_advertise() {
        let it = endpoint_slice("kubernetes", 6443, &[[10, 0, 0, 5].into(), [10, 0, 0, 6].into()]);
        assert_eq!((&it["metadata"]["name"], &it["endpoints"][1]["addresses"][0], &it["ports"][0]["port"]), (&json!("kubernetes"), &json!("10.0.0.6"), &json!(6443)));
        let ports = BTreeMap::from([(6443, vec![[10, 0, 0, 5].into()]), (6444, vec![[10, 0, 0, 5].into()])]);
        let it = endpoints(&ports);
        assert_eq!((&it["subsets"][1]["addresses"][0]["ip"], &it["subsets"][1]["ports"][0]["port"]), (&json!("10.0.0.5"), &json!(6444)));
    }

    #[test]
    fn a_lease_says_where_its_server_is() {
        let lease = |holder: &str| serde_json::from_value::<Lease>(json!({"spec": {"holderIdentity": holder}})).unwrap();
        assert_eq!(address(&lease("10.0.0.5:6443_abc")), Some("10.0.0.5:6443".parse().unwrap()));
        assert_eq!(address(&lease("nonsense")), None);
    }
}
