//! Keeps the zone as the informers see Services and EndpointSlices.

use std::{net::SocketAddr, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::Api;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::mpsc,
};

use super::{
    server::{Server, resolvers},
    zone::Zone,
};
use crate::{
    base::Tasks,
    client::{
        BY_SERVICE, Informer, ObjectKey, Watch,
        informer::{service_key, service_of},
    },
};

const DOMAIN: &str = "cluster.local";
/// Services that wait to be rendered; more only wait longer.
const QUEUE: usize = 1024;

/// Starts the server at `address`, at any port. Returns where it listens; each node's proxy leads Service `kube-dns` to its own.
pub async fn start(client: &kube::Client, tasks: &Tasks, address: std::net::IpAddr) -> std::io::Result<SocketAddr> {
    let udp = UdpSocket::bind(SocketAddr::new(address, 0)).await?;
    let own = udp.local_addr()?;
    let tcp = TcpListener::bind(own).await?;
    let zone = Zone::new(DOMAIN).map_err(std::io::Error::other)?;
    let zone = Arc::new(ArcSwap::from_pointee(zone));
    Server::new(zone.clone(), resolvers(Path::new("/etc/resolv.conf"))).start(udp, tcp, tasks);
    follow(client, tasks, zone);
    Ok(own)
}

fn follow(client: &kube::Client, tasks: &Tasks, zone: Arc<ArcSwap<Zone>>) {
    let services: Informer<Service> = Informer::start("dns-services", Api::all(client.clone()), Watch::default(), tasks);
    let slices: Informer<EndpointSlice> = Informer::start("dns-slices", Api::all(client.clone()), Watch::default().index(BY_SERVICE, service_of), tasks);
    let (changed, mut changes) = mpsc::channel::<ObjectKey>(QUEUE);
    let sender = changed.clone();
    services.subscribe(move |change| _ = sender.try_send(ObjectKey::of(&**change.object())));
    slices.subscribe(move |change| service_key(change.object()).into_iter().for_each(|it| _ = changed.try_send(it)));
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
