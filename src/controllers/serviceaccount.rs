//! Every namespace gets ServiceAccount `default` and ConfigMap `kube-root-ca.crt`.
//! Follows pkg/controller/serviceaccount and pkg/controller/certificates/rootcacertpublisher.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::{Api, ResourceExt, api::ObjectMeta};

use super::{Context, Controller};
use crate::client::{
    Error, Informer, ObjectKey, Result, WorkQueue,
    writes::{self, CONTROLLER_MANAGER},
};

const WORKERS: usize = 5;
const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal \
                                   service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub struct ServiceAccountController;

impl Controller for ServiceAccountController {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn start(&self, context: &Context) {
        let (client, informers, tasks, queue) = (context.client(self.name()), context.informers.clone(), context.tasks.clone(), WorkQueue::new());
        let name = self.name();
        context.spawn_synced(name, move || {
            enqueue_namespaces(&informers.namespaces, &queue);
            let again = queue.clone();
            informers.service_accounts.subscribe(move |change| {
                if change.is_deleted() && change.object().name_any() == ACCOUNT {
                    again.add(change.object().namespace().unwrap_or_default());
                }
            });
            queue.run(&tasks, name, WORKERS, move |namespace: String| {
                let is_wanted = is_alive(&informers.namespaces, &namespace);
                let is_present = informers.service_accounts.get(&ObjectKey::new(&namespace, ACCOUNT)).is_some();
                let client = client.clone();
                async move { if is_wanted && !is_present { create_account(&client, &namespace).await } else { Ok(None) } }
            });
        });
    }
}

pub struct RootCaPublisher;

impl Controller for RootCaPublisher {
    fn name(&self) -> &'static str {
        "root-ca-cert-publisher"
    }

    fn start(&self, context: &Context) {
        let (client, informers, tasks, queue) = (context.client(self.name()), context.informers.clone(), context.tasks.clone(), WorkQueue::new());
        let (name, bundle) = (self.name(), context.options.root_ca.clone());
        context.spawn_synced(name, move || {
            enqueue_namespaces(&informers.namespaces, &queue);
            let again = queue.clone();
            informers.root_ca_config_maps.subscribe(move |change| again.add(change.object().namespace().unwrap_or_default()));
            queue.run(&tasks, name, WORKERS, move |namespace: String| {
                let is_wanted = is_alive(&informers.namespaces, &namespace);
                let present = informers.root_ca_config_maps.get(&ObjectKey::new(&namespace, ROOT_CA));
                let plan = is_wanted.then(|| publish(present.as_deref(), &bundle)).flatten();
                let client = client.clone();
                async move { write_root_ca(&client, &namespace, plan).await }
            });
        });
    }
}

fn enqueue_namespaces(namespaces: &Informer<Namespace>, queue: &WorkQueue<String>) {
    let queue = queue.clone();
    namespaces.subscribe(move |change| {
        if !change.is_deleted() {
            queue.add(change.object().name_any());
        }
    });
}

fn is_alive(namespaces: &Informer<Namespace>, name: &str) -> bool {
    let phase = |it: &Namespace| it.status.as_ref().and_then(|it| it.phase.clone());
    namespaces
        .get(&ObjectKey::new("", name))
        .is_some_and(|it| it.metadata.deletion_timestamp.is_none() && phase(&it).as_deref() != Some("Terminating"))
}

async fn create_account(client: &kube::Client, namespace: &str) -> Result<Option<Duration>> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let metadata = ObjectMeta { name: Some(ACCOUNT.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata, ..ServiceAccount::default() };
    settled(accounts.create(&writes::posting(CONTROLLER_MANAGER), &account).await.map(|_| ()))
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

async fn write_root_ca(client: &kube::Client, namespace: &str, plan: Option<Publish>) -> Result<Option<Duration>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let posting = writes::posting(CONTROLLER_MANAGER);
    match plan {
        None => Ok(None),
        Some(Publish::Create(map)) => settled(maps.create(&posting, &map).await.map(|_| ())),
        Some(Publish::Replace(map)) => settled(maps.replace(ROOT_CA, &posting, &map).await.map(|_| ())),
    }
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
