//! The `kubernetes` Service's own Endpoints and EndpointSlice: where pods reach the API server. Its process keeps them, not the controllers'.
//! Follows pkg/controlplane/reconcilers.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice},
};
use kube::{Api, Resource, ResourceExt, api::ObjectMeta};

use crate::{
    base::{Tasks, backoff::Backoff},
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
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// Keeps both objects at `address:port`, under a client of the API server itself (`system:apiserver`), until `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks, address: IpAddr, port: u16) {
    keep(Api::namespaced(client.clone(), NAMESPACE), tasks, endpoints(address, port), |it: &mut Endpoints, wanted| {
        it.subsets = wanted.subsets.clone()
    });
    let slices = Api::namespaced(client.clone(), NAMESPACE);
    keep(slices, tasks, endpoint_slice(address, port), |it: &mut EndpointSlice, wanted| {
        it.endpoints = wanted.endpoints.clone();
        it.ports = wanted.ports.clone();
    });
}

/// Writes `wanted` whenever what is stored is different.
fn keep<K>(api: Api<K>, tasks: &Tasks, wanted: K, set: fn(&mut K, &K))
where
    K: Cached + Resource + serde::Serialize + PartialEq,
{
    let informer: Informer<K> = Informer::start("kubernetes-endpoints", api.clone(), Watch::default().fields("metadata.name=kubernetes"), tasks);
    let (sender, mut changed) = tokio::sync::mpsc::unbounded_channel();
    tasks.spawn("kubernetes-endpoints", async move {
        informer.synced().await;
        informer.subscribe(move |_| {
            let _ = sender.send(());
        });
        loop {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
            while let Err(error) = ensure(&api, &wanted, set).await {
                tracing::debug!(%error, "the endpoints of kubernetes were not written");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            if changed.recv().await.is_none() {
                return;
            }
        }
    });
}

async fn ensure<K>(api: &Api<K>, wanted: &K, set: fn(&mut K, &K)) -> Result<()>
where
    K: Cached + Resource + serde::Serialize + PartialEq,
{
    let posting = writes::posting(MANAGER);
    let Some(present) = writes::unless_not_found(api.get(NAME).await)? else {
        api.create(&posting, wanted).await?;
        return Ok(());
    };
    let mut next = present.clone();
    next.labels_mut().extend(wanted.labels().clone());
    set(&mut next, wanted);
    if next != present {
        api.replace(NAME, &posting, &next).await?;
    }
    Ok(())
}

/// Slices of these Endpoints are not mirrored: theirs is written here.
fn endpoints(address: IpAddr, port: u16) -> Endpoints {
    let subset = EndpointSubset {
        addresses: Some(vec![EndpointAddress { ip: address.to_string(), ..EndpointAddress::default() }]),
        ports: Some(vec![EndpointPort { name: Some(PORT_NAME.to_owned()), port: port.into(), protocol: Some("TCP".to_owned()), app_protocol: None }]),
        ..EndpointSubset::default()
    };
    Endpoints { metadata: metadata("endpointslice.kubernetes.io/skip-mirror", "true"), subsets: Some(vec![subset]) }
}

fn endpoint_slice(address: IpAddr, port: u16) -> EndpointSlice {
    let conditions = EndpointConditions { ready: Some(true), ..EndpointConditions::default() };
    EndpointSlice {
        metadata: metadata("kubernetes.io/service-name", NAME),
        address_type: if address.is_ipv6() { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(vec![Endpoint { addresses: vec![address.to_string()], conditions: Some(conditions), ..Endpoint::default() }]),
        ports: Some(vec![SlicePort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(port.into()),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]),
    }
}

fn metadata(label: &str, value: &str) -> ObjectMeta {
    let labels = Some(BTreeMap::from([(label.to_owned(), value.to_owned())]));
    ObjectMeta { name: Some(NAME.to_owned()), namespace: Some(NAMESPACE.to_owned()), labels, ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_stands_under_the_address_it_advertises() {
        let it = serde_json::to_value(endpoint_slice([10, 0, 0, 5].into(), 6443)).unwrap();
        assert_eq!(it["endpoints"][0]["addresses"][0], "10.0.0.5");
        assert_eq!((it["ports"][0]["port"].as_i64(), it["addressType"].as_str()), (Some(6443), Some("IPv4")));
        let it = serde_json::to_value(endpoints([10, 0, 0, 5].into(), 6443)).unwrap();
        assert_eq!(
            (it["subsets"][0]["addresses"][0]["ip"].as_str(), it["subsets"][0]["ports"][0]["name"].as_str()),
            (Some("10.0.0.5"), Some("https"))
        );
    }
}
