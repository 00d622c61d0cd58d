//! The live API servers: each renews a Lease, and stands in the Endpoints and EndpointSlices of Service `kubernetes` as long as it does. Their
//! processes keep all this, not the controllers'. Follows pkg/controlplane/reconcilers (lease.go) and KEP-1965, with one kind of Lease for both.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::{
    base::{Tasks, clock},
    client::{
        Informer, Result,
        informer::{Cached, Options as Watch},
        writes,
    },
};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
const PORT_NAME: &str = "https";
const MANAGER: &str = "kube-apiserver";
const LEASES: &str = "kube-system";
const IDENTITY: &str = "apiserver.kubernetes.io/identity";
const SERVICE: &str = "kubernetes.io/service-name";
/// A server that is killed is gone from the endpoints after LIVES_FOR + RENEW_EVERY, under 15 s.
const RENEW_EVERY: Duration = Duration::from_secs(3);
const LIVES_FOR: Duration = Duration::from_secs(9);

/// Keeps this server's Lease, and with the other servers the endpoints, under a client of the API server itself (`system:apiserver`), until
/// `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks, address: IpAddr, port: u16) {
    let own = SocketAddr::new(address, port);
    let wake = std::sync::Arc::new(Notify::new());
    let leases = Api::namespaced(client.clone(), LEASES);
    let mut watched = Watch::default();
    watched.config = watched.config.labels(IDENTITY);
    let informer: Informer<Lease> = Informer::start("apiserver-leases", leases.clone(), watched, tasks);
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
        let preconditions = Preconditions { uid: None, resource_version: lease.metadata.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.leases.delete(&lease.name_any(), &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            other => other.map(drop).map_err(Into::into),
        }
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

/// Writes what is stored otherwise. Servers at several ports have a slice for each.
async fn publish(client: &kube::Client, live: &BTreeSet<SocketAddr>) -> Result<()> {
    let mut ports: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    live.iter().for_each(|it| ports.entry(it.port()).or_default().push(it.ip()));
    ensure(&Api::namespaced(client.clone(), NAMESPACE), &endpoints(&ports), |it: &mut Endpoints, wanted| it.subsets = wanted.subsets.clone()).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted: Vec<EndpointSlice> = ports.iter().enumerate().map(|(at, (port, addresses))| endpoint_slice(at == 0, *port, addresses)).collect();
    for slice in &wanted {
        ensure(&slices, slice, |it: &mut EndpointSlice, wanted| (it.endpoints, it.ports) = (wanted.endpoints.clone(), wanted.ports.clone())).await?;
    }
    for old in slices.list(&ListParams::default().labels(&format!("{SERVICE}={NAME}"))).await?.items {
        if !wanted.iter().any(|it| it.metadata.name == old.metadata.name) {
            writes::unless_not_found(slices.delete(&old.name_any(), &DeleteParams::default()).await)?;
        }
    }
    Ok(())
}

async fn ensure<K>(api: &Api<K>, wanted: &K, set: fn(&mut K, &K)) -> Result<()>
where
    K: Cached + Resource + serde::Serialize + PartialEq,
{
    let (posting, name) = (writes::posting(MANAGER), wanted.name_any());
    let Some(present) = writes::unless_not_found(api.get(&name).await)? else {
        api.create(&posting, wanted).await?;
        return Ok(());
    };
    let mut next = present.clone();
    next.labels_mut().extend(wanted.labels().clone());
    set(&mut next, wanted);
    if next != present {
        api.replace(&name, &posting, &next).await?;
    }
    Ok(())
}

/// Slices of these Endpoints are not mirrored: theirs is written here.
fn endpoints(ports: &BTreeMap<u16, Vec<IpAddr>>) -> Endpoints {
    let subset = |(port, addresses): (&u16, &Vec<IpAddr>)| EndpointSubset {
        addresses: Some(addresses.iter().map(|it| EndpointAddress { ip: it.to_string(), ..EndpointAddress::default() }).collect()),
        ports: Some(vec![EndpointPort { name: Some(PORT_NAME.to_owned()), port: (*port).into(), protocol: Some("TCP".to_owned()), app_protocol: None }]),
        ..EndpointSubset::default()
    };
    Endpoints { metadata: metadata(NAME.to_owned(), "endpointslice.kubernetes.io/skip-mirror", "true"), subsets: Some(ports.iter().map(subset).collect()) }
}

fn endpoint_slice(is_first: bool, port: u16, addresses: &[IpAddr]) -> EndpointSlice {
    let conditions = EndpointConditions { ready: Some(true), ..EndpointConditions::default() };
    let endpoint = |it: &IpAddr| Endpoint { addresses: vec![it.to_string()], conditions: Some(conditions.clone()), ..Endpoint::default() };
    EndpointSlice {
        metadata: metadata(if is_first { NAME.to_owned() } else { format!("{NAME}-{port}") }, SERVICE, NAME),
        address_type: if addresses.iter().any(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(addresses.iter().map(endpoint).collect()),
        ports: Some(vec![SlicePort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(port.into()),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]),
    }
}

fn metadata(name: String, label: &str, value: &str) -> ObjectMeta {
    let labels = Some(BTreeMap::from([(label.to_owned(), value.to_owned())]));
    ObjectMeta { name: Some(name), namespace: Some(NAMESPACE.to_owned()), labels, ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_stand_under_the_addresses_that_they_advertise() {
        let it = serde_json::to_value(endpoint_slice(true, 6443, &[[10, 0, 0, 5].into(), [10, 0, 0, 6].into()])).unwrap();
        assert_eq!((&it["metadata"]["name"], &it["endpoints"][1]["addresses"][0], &it["ports"][0]["port"]), (&json!("kubernetes"), &json!("10.0.0.6"), &json!(6443)));
        let ports = BTreeMap::from([(6443, vec![[10, 0, 0, 5].into()]), (6444, vec![[10, 0, 0, 5].into()])]);
        let it = serde_json::to_value(endpoints(&ports)).unwrap();
        assert_eq!((&it["subsets"][1]["addresses"][0]["ip"], &it["subsets"][1]["ports"][0]["port"]), (&json!("10.0.0.5"), &json!(6444)));
    }

    #[test]
    fn a_lease_says_where_its_server_is() {
        let lease = |holder: &str| serde_json::from_value::<Lease>(json!({"spec": {"holderIdentity": holder}})).unwrap();
        assert_eq!(address(&lease("10.0.0.5:6443_abc")), Some("10.0.0.5:6443".parse().unwrap()));
        assert_eq!(address(&lease("nonsense")), None);
    }
}
