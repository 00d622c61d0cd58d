//! The cluster's ranges of addresses. The first API server fixes them; nodes and controllers read them in ConfigMap
//! `kube-system/cluster-network`, as kubeadm's nodes read `kubeadm-config`.

use std::net::Ipv4Addr;

use serde_json::json;

use super::{Error, Result, keys};
use crate::{
    meta::{Cidr, Meta, Value},
    store::Store,
};

/// The name of the ConfigMap.
pub const CONFIG_MAP: &str = "cluster-network";
/// The last byte of the address of the cluster's DNS, as everywhere.
const DNS_ADDRESS: u32 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub services: Cidr,
    pub pods: Cidr,
}

/// What a process was told of the ranges; `None` is whatever the cluster has.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Wanted {
    /// The addresses of Services in a new cluster, such as 10.96.0.0/16.
    #[arg(long = "service-cidr", value_name = "CIDR")]
    pub services: Option<Cidr>,
    /// The addresses of pods in a new cluster, such as 10.244.0.0/16; each node gets a /24 of it.
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pub pods: Option<Cidr>,
}

impl Network {
    /// The cluster's own; those of a new cluster are `wanted`, or else `default`.
    pub async fn of(store: &Store, wanted: &Wanted, default: Self) -> Result<Self> {
        let first = Self { services: wanted.services.unwrap_or(default.services), pods: wanted.pods.unwrap_or(default.pods) };
        let own = Self::parse(&keys::kept(store, "network", || Ok(first.fields())).await?)?;
        for (flag, wanted, own) in [("service-cidr", wanted.services, own.services), ("pod-cidr", wanted.pods, own.pods)] {
            if let Some(wanted) = wanted.filter(|it| *it != own) {
                return Err(Error(format!("--{flag} {wanted}: the cluster has {own}, which cannot be changed")));
            }
        }
        Ok(own)
    }

    /// From the ConfigMap's data, or what the store keeps.
    pub fn parse(fields: &Value) -> Result<Self> {
        let range = |name: &str| fields.text(name).parse().map_err(|why| Error::new(&format!("the cluster's range of {name}"), why));
        Ok(Self { services: range("services")?, pods: range("pods")? })
    }

    fn fields(&self) -> Value {
        json!({"services": self.services.to_string(), "pods": self.pods.to_string()})
    }

    /// Where pods find the API server.
    pub fn api_service(&self) -> Ipv4Addr {
        self.services.at(1)
    }

    pub fn dns_service(&self) -> Ipv4Addr {
        self.services.at(DNS_ADDRESS)
    }

    /// ServiceCIDR `kubernetes`.
    pub fn service_cidr(&self) -> Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [self.services.to_string()]}})
    }

    /// The Services at fixed addresses, and the ConfigMap of the ranges.
    pub fn objects(&self) -> Vec<Value> {
        let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
        vec![
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
                "spec": {"clusterIP": self.api_service().to_string(), "type": "ClusterIP", "sessionAffinity": "None",
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]}}),
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "kube-dns", "namespace": "kube-system",
                    "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
                "spec": {"clusterIP": self.dns_service().to_string(), "type": "ClusterIP", "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]}}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP, "namespace": "kube-system"}, "data": self.fields()}),
        ]
    }
}
