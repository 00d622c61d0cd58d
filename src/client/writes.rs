//! Writing objects: to where they are, what an error means, and trying again after a conflict. Who writes is known by the client
//! (`super::program`).

use std::{future::Future, time::Duration};

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::Value;

use super::{Cached, Error, Result};
use crate::base::backoff::Backoff;

/// client-go's `retry.DefaultRetry`: five tries, 10 ms apart at first.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Where the objects of a scope are: those of a namespace, or the cluster's.
pub trait Reach: Sized {
    fn api<K: Resource<DynamicType = (), Scope = Self>>(client: &Client, namespace: &str) -> Api<K>;
}

impl Reach for NamespaceResourceScope {
    fn api<K: Resource<DynamicType = (), Scope = Self>>(client: &Client, namespace: &str) -> Api<K> {
        Api::namespaced(client.clone(), namespace)
    }
}

impl Reach for ClusterResourceScope {
    fn api<K: Resource<DynamicType = (), Scope = Self>>(client: &Client, _: &str) -> Api<K> {
        Api::all(client.clone())
    }
}

/// The objects of a namespace; of a kind that has none, all.
pub fn api<K: Cached>(client: &Client, namespace: &str) -> Api<K> {
    K::Scope::api(client, namespace)
}

/// The objects beside `object`.
fn beside<K: Cached>(client: &Client, object: &K) -> Api<K> {
    api(client, object.meta().namespace.as_deref().unwrap_or_default())
}

/// The object as the server has it now.
pub async fn fresh<K: Cached>(client: &Client, object: &K) -> Result<K> {
    Ok(beside(client, object).get(&object.name_any()).await?)
}

pub async fn create<K: Cached>(client: &Client, object: &K) -> Result<K> {
    Ok(beside(client, object).create(&PostParams::default(), object).await?)
}

/// Writes an object, only if it has not changed since it was read.
pub async fn replace<K: Cached>(client: &Client, object: &K) -> Result<()> {
    beside(client, object).replace(&object.name_any(), &PostParams::default(), object).await?;
    Ok(())
}

/// Writes a subresource of an object, such as its status; only if it has not changed since it was read.
pub async fn replace_part<K: Cached>(client: &Client, part: &str, object: &K) -> Result<()> {
    beside(client, object).replace_subresource(part, &object.name_any(), &PostParams::default(), object).await?;
    Ok(())
}

/// Makes the status of `old` that of `new`, unless it is so already.
pub async fn status<K: Cached + PartialEq>(client: &Client, old: &K, new: &K) -> Result<()> {
    if old == new { Ok(()) } else { replace_part(client, "status", new).await }
}

/// Whether the object was still there.
pub async fn patch<K: Cached>(client: &Client, object: &K, patch: &Patch<Value>) -> Result<bool> {
    was_there(beside(client, object).patch(&object.name_any(), &PatchParams::default(), patch).await)
}

/// Whether the object was still there.
pub async fn patch_status<K: Cached>(client: &Client, object: &K, patch: &Patch<Value>) -> Result<bool> {
    was_there(beside(client, object).patch_status(&object.name_any(), &PatchParams::default(), patch).await)
}

/// Deletes the object, and no other that has its name by now; whether it was still there.
pub async fn delete<K: Cached>(client: &Client, object: &K, mut options: DeleteParams) -> Result<bool> {
    options.preconditions.get_or_insert_default().uid = object.uid();
    match was_there(beside(client, object).delete(&object.name_any(), &options).await) {
        Err(error) if error.is_conflict() => Ok(false),
        other => other,
    }
}

/// A deletion that the object's node need not agree to.
pub fn at_once() -> DeleteParams {
    DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }
}

/// Runs `write`, which reads the object afresh each time, until it meets no conflict.
pub async fn retry_on_conflict<T, F, W>(mut write: F) -> Result<T>
where
    F: FnMut() -> W,
    W: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match write().await {
            Err(error) if error.is_conflict() && backoff.failures() + 1 < TRIES => tokio::time::sleep(backoff.next_delay()).await,
            other => return other,
        }
    }
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        self.has_reason("NotFound")
    }

    pub fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }

    pub fn is_already_exists(&self) -> bool {
        self.has_reason("AlreadyExists")
    }

    /// Whether the create failed only because the namespace is being deleted (`NamespaceTerminatingCause`).
    pub fn is_namespace_terminating(&self) -> bool {
        let causes = self.status().and_then(|it| it.details.as_ref()).map(|it| it.causes.as_slice()).unwrap_or_default();
        causes.iter().any(|it| it.reason == "NamespaceTerminating")
    }

    fn has_reason(&self, reason: &str) -> bool {
        self.status().is_some_and(|it| it.reason == reason)
    }
}

/// Nothing where there is no such object.
pub fn unless_not_found<T>(result: std::result::Result<T, kube::Error>) -> Result<Option<T>> {
    match result.map_err(Error::from) {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn was_there<T>(result: std::result::Result<T, kube::Error>) -> Result<bool> {
    unless_not_found(result).map(|it| it.is_some())
}
