//! Keeps the zone as the informers see Services and EndpointSlices, and the cluster's DNS in a Service of its own.

use std::{net::SocketAddr, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::mpsc,
};

use super::{
    server::{Server, resolvers},
    zone::Zone,
};
use crate::{
    api::identity::{MASTERS, User},
    base::Tasks,
    client::{Clients, Informer, ObjectKey, informer},
};

const DOMAIN: &str = "cluster.local";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "service";
/// Services that wait to be rendered; more only wait longer.
const QUEUE: usize = 1024;

fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.labels().get(SERVICE_NAME);
    name.map(|it| format!("{}/{it}", slice.namespace().unwrap_or_default())).into_iter().collect()
}

/// Starts the server at `address` (port 0 is any) and publishes it as Service `kube-dns` at `cluster_ip`.
pub async fn start(clients: &Clients, tasks: &Tasks, address: std::net::IpAddr, cluster_ip: &str) -> std::io::Result<()> {
    let udp = UdpSocket::bind(SocketAddr::new(address, 0)).await?;
    let own = udp.local_addr()?;
    let tcp = TcpListener::bind(own).await?;
    let zone = Zone::new(DOMAIN).map_err(std::io::Error::other)?;
    let zone = Arc::new(ArcSwap::from_pointee(zone));
    Server::new(zone.clone(), resolvers(Path::new("/etc/resolv.conf"))).start(udp, tcp, tasks);
    follow(clients, tasks, zone);
    let (client, cluster_ip) = (clients.of(&User::system("system:apiserver", &[MASTERS])), cluster_ip.to_owned());
    tasks.spawn("dns-publish", async move {
        if let Err(error) = publish(&client, own, &cluster_ip).await {
            tracing::warn!(%error, "the cluster's DNS could not be published");
        }
    });
    Ok(())
}

fn follow(clients: &Clients, tasks: &Tasks, zone: Arc<ArcSwap<Zone>>) {
    let client = clients.of(&User::service_account("kube-system", "coredns"));
    let services: Informer<Service> = Informer::start("dns-services", Api::all(client.clone()), informer::Options::default(), tasks);
    let slices: Informer<EndpointSlice> = Informer::start("dns-slices", Api::all(client), informer::Options::default().index(BY_SERVICE, service_of), tasks);
    let (changed, mut changes) = mpsc::channel::<ObjectKey>(QUEUE);
    let sender = changed.clone();
    services.subscribe(move |change| _ = sender.try_send(ObjectKey::of(&**change.object())));
    slices.subscribe(move |change| {
        let slice = change.object();
        if let Some(name) = slice.labels().get(SERVICE_NAME) {
            let _ = changed.try_send(ObjectKey::new(slice.namespace().unwrap_or_default(), name.clone()));
        }
    });
    tasks.spawn("dns-zone", async move {
        while let Some(key) = changes.recv().await {
            let found = services.get(&key);
            let own = slices.by(BY_SERVICE, &key.to_string());
            let next = match &found {
                Some(service) => zone.load().with(service, &own),
                None => zone.load().without(&key.namespace, &key.name),
            };
            zone.store(Arc::new(next));
        }
    });
}

/// Service and EndpointSlice `kube-dns`, under the names that clients look for.
async fn publish(client: &kube::Client, own: SocketAddr, cluster_ip: &str) -> kube::Result<()> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": own.port()});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"clusterIP": cluster_ip, "type": "ClusterIP", "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]}});
    let endpoint = |name: &str, protocol: &str| json!({"name": name, "port": own.port(), "protocol": protocol});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {SERVICE_NAME: "kube-dns", "endpointslice.kubernetes.io/managed-by": "howdah-dns"}},
        "endpoints": [{"addresses": [own.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [endpoint("dns", "UDP"), endpoint("dns-tcp", "TCP")]});
    let params = PatchParams::apply("howdah-dns").force();
    Api::<Service>::namespaced(client.clone(), "kube-system").patch("kube-dns", &params, &Patch::Apply(&service)).await?;
    Api::<EndpointSlice>::namespaced(client.clone(), "kube-system").patch("kube-dns", &params, &Patch::Apply(&slice)).await?;
    Ok(())
}
