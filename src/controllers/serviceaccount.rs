//! Every namespace gets ServiceAccount `default` and ConfigMap `kube-root-ca.crt`.
//! Follows pkg/controller/serviceaccount and pkg/controller/certificates/rootcacertpublisher.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::{Api, ResourceExt, api::ObjectMeta};

use super::{Controller, Shell};
use crate::client::{
    Error, Informer, ObjectKey, Result,
    writes::{self, CONTROLLER_MANAGER},
};

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
        let accounts: Api<ServiceAccount> = Api::namespaced(shell.client.clone(), namespace);
        let metadata = ObjectMeta { name: Some(ACCOUNT.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        settled(accounts.create(&writes::posting(CONTROLLER_MANAGER), &account).await.map(|_| ()))
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
        let maps: Api<ConfigMap> = Api::namespaced(shell.client.clone(), namespace);
        let posting = writes::posting(CONTROLLER_MANAGER);
        match publish(present.as_deref(), &shell.own.bundle) {
            None => Ok(None),
            Some(Publish::Create(map)) => settled(maps.create(&posting, &map).await.map(|_| ())),
            Some(Publish::Replace(map)) => settled(maps.replace(ROOT_CA, &posting, &map).await.map(|_| ())),
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
fn settled(result: std::result::Result<(), kube::Error>) -> Result<Option<Duration>> {
    match result.map_err(Error::from) {
        Err(error) if !error.is_already_exists() && !error.is_not_found() && !error.is_namespace_terminating() => Err(error),
        _ => Ok(None),
    }
}

#[derive(Debug, PartialEq)]
enum Publish {
    Create(ConfigMap),
    Replace(ConfigMap),
}

/// The ConfigMap as it should be, unless it is so.
fn publish(present: Option<&ConfigMap>, bundle: &str) -> Option<Publish> {
    let data = BTreeMap::from([(ROOT_CA_KEY.to_owned(), bundle.to_owned())]);
    let description = (DESCRIPTION.to_owned(), ROOT_CA_DESCRIPTION.to_owned());
    let Some(present) = present else {
        let metadata = ObjectMeta { name: Some(ROOT_CA.to_owned()), annotations: Some(BTreeMap::from([description])), ..ObjectMeta::default() };
        return Some(Publish::Create(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }));
    };
    let mut wanted = present.clone();
    wanted.data = Some(data);
    wanted.annotations_mut().insert(description.0, description.1);
    (wanted != *present).then_some(Publish::Replace(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_published_once() {
        let Some(Publish::Create(map)) = publish(None, "PEM") else { panic!() };
        assert_eq!(publish(Some(&map), "PEM"), None);
        let Some(Publish::Replace(next)) = publish(Some(&map), "NEW") else { panic!() };
        assert_eq!(next.data.unwrap()[ROOT_CA_KEY], "NEW");
    }
}
