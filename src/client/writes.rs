//! Writing: who the field manager is, what an error means, and trying again after a conflict.

use std::{future::Future, time::Duration};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Error, Result};
use crate::base::backoff::Backoff;

/// client-go's `retry.DefaultRetry`: five tries, 10 ms apart at first.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The field manager of the controllers, as upstream's (a client's user agent up to the first slash).
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub const SCHEDULER: &str = "kube-scheduler";

pub fn posting(manager: &str) -> PostParams {
    PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() }
}

pub fn patching(manager: &str) -> PatchParams {
    PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() }
}

/// Deletes only the object of this uid.
pub fn deleting(uid: Option<&str>) -> DeleteParams {
    let preconditions = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    DeleteParams { preconditions, ..DeleteParams::default() }
}

/// Writes the status of an object; only if it has not changed since it was read.
pub async fn status<K>(client: &kube::Client, manager: &str, object: &K) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    api.replace_status(&object.name_any(), &posting(manager), object).await?;
    Ok(())
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

/// An object that is already gone is as good as deleted.
pub fn unless_not_found<T>(result: std::result::Result<T, kube::Error>) -> Result<Option<T>> {
    match result.map_err(Error::from) {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
