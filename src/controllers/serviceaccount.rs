//! Every namespace gets ServiceAccount `default` and ConfigMap `kube-root-ca.crt`.
//! Follows pkg/controller/serviceaccount and pkg/controller/certificates/rootcacertpublisher.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::{ResourceExt, api::ObjectMeta};

use super::{Controller, Shell};
use crate::client::{Informer, ObjectKey, Result, writes};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal \
                                   service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub struct ServiceAccountController;

impl Controller for ServiceAccountController {
    type Key = String;
    const NAME: &'static str = "service-account-controller";

    async fn listen(shell: &Arc<Shell<Self>>) {
        queue_namespaces(shell);
        shell.on(&shell.informers.service_accounts, |it, change| {
            if change.is_deleted() && change.object().name_any() == ACCOUNT {
                it.queue.add(change.object().namespace().unwrap_or_default());
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell<Self>>, namespace: &String) -> Result<Option<Duration>> {
        let is_present = shell.informers.service_accounts.get(&ObjectKey::new(namespace, ACCOUNT)).is_some();
        if is_present || !is_alive(&shell.informers.namespaces, namespace) {
            return Ok(None);
        }
        let metadata = ObjectMeta { name: Some(ACCOUNT.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
        settled(writes::create(&shell.client, &ServiceAccount { metadata, ..ServiceAccount::default() }).await)
    }
}

pub struct RootCaPublisher {
    pub bundle: String,
}

impl Controller for RootCaPublisher {
    type Key = String;
    const NAME: &'static str = "root-ca-cert-publisher";

    async fn listen(shell: &Arc<Shell<Self>>) {
        queue_namespaces(shell);
        shell.on(&shell.informers.root_ca_config_maps, |it, change| it.queue.add(change.object().namespace().unwrap_or_default()));
    }

    async fn reconcile(shell: &Arc<Shell<Self>>, namespace: &String) -> Result<Option<Duration>> {
        if !is_alive(&shell.informers.namespaces, namespace) {
            return Ok(None);
        }
        let present = shell.informers.root_ca_config_maps.get(&ObjectKey::new(namespace, ROOT_CA));
        let wanted = published(namespace, present.as_deref(), &shell.own.bundle);
        match present {
            None => settled(writes::create(&shell.client, &wanted).await),
            Some(present) if *present != wanted => settled(writes::replace(&shell.client, &wanted).await),
            Some(_) => Ok(None),
        }
    }
}

fn queue_namespaces<C: Controller<Key = String>>(shell: &Arc<Shell<C>>) {
    shell.on(&shell.informers.namespaces, |it, change| {
        if !change.is_deleted() {
            it.queue.add(change.object().name_any());
        }
    });
}

fn is_alive(namespaces: &Informer<Namespace>, name: &str) -> bool {
    let phase = |it: &Namespace| it.status.as_ref().and_then(|it| it.phase.clone());
    namespaces
        .get(&ObjectKey::new("", name))
        .is_some_and(|it| it.metadata.deletion_timestamp.is_none() && phase(&it).as_deref() != Some("Terminating"))
}

/// Someone else was first, or the namespace is going: nothing is left to do.
fn settled<T>(result: Result<T>) -> Result<Option<Duration>> {
    match result {
        Err(error) if !error.is_already_exists() && !error.is_not_found() && !error.is_namespace_terminating() => Err(error),
        _ => Ok(None),
    }
}

/// The ConfigMap as it should be.
fn published(namespace: &str, present: Option<&ConfigMap>, bundle: &str) -> ConfigMap {
    let mut wanted = present.cloned().unwrap_or_default();
    (wanted.metadata.name, wanted.metadata.namespace) = (Some(ROOT_CA.to_owned()), Some(namespace.to_owned()));
    wanted.data = Some(BTreeMap::from([(ROOT_CA_KEY.to_owned(), bundle.to_owned())]));
    wanted.annotations_mut().insert(DESCRIPTION.to_owned(), ROOT_CA_DESCRIPTION.to_owned());
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_published_once() {
        let map = published("ns", None, "PEM");
        assert_eq!(published("ns", Some(&map), "PEM"), map);
        assert_eq!(published("ns", Some(&map), "NEW").data.unwrap()[ROOT_CA_KEY], "NEW");
    }
}
