//! Signs approved certificate requests. It runs in the API servers, so that the authority's key never leaves them.
//! Follows pkg/controller/certificates/signer.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{Api, ResourceExt};

use super::{certificate, condition, parse, problem, with_condition};
use crate::{
    base::{Tasks, clock, pki::Authority},
    client::{Informer, ObjectKey, Result, Watch, WorkQueue, writes},
};

const WORKERS: usize = 2;
/// `--cluster-signing-duration`.
const LASTS: Duration = Duration::from_secs(365 * 86_400);
/// The signers of this cluster; requests to others are left to those.
const OWN: &str = "kubernetes.io/";

/// Signs with `authority` under a client of the API server itself, until `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks, authority: Arc<Authority>) {
    let queue = WorkQueue::new();
    let requests: Informer<CertificateSigningRequest> = Informer::start("csrsigning", Api::all(client.clone()), Watch::default(), tasks);
    let (client, listener) = (client.clone(), queue.clone());
    requests.subscribe(move |change| {
        if !change.is_deleted() && is_due(change.object()) {
            listener.add(change.object().name_any());
        }
    });
    queue.run(tasks, "csrsigning", WORKERS, move |name: String| {
        let (client, authority, request) = (client.clone(), authority.clone(), requests.get(&ObjectKey::new("", name)));
        async move {
            match request.filter(|it| is_due(it)) {
                Some(request) => sign(&client, &authority, &request).await.map(|()| None),
                None => Ok(None),
            }
        }
    });
}

fn is_due(request: &CertificateSigningRequest) -> bool {
    let is_decided = condition(request, "Approved").is_some() && condition(request, "Denied").is_none() && condition(request, "Failed").is_none();
    is_decided && certificate(request).is_none() && request.spec.signer_name.starts_with(OWN)
}

async fn sign(client: &kube::Client, authority: &Authority, request: &CertificateSigningRequest) -> Result<()> {
    let next = match issue(authority, request) {
        Ok(pem) => {
            let mut next = request.clone();
            next.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            next
        }
        Err(why) => with_condition(request, "Failed", "SignerValidationFailure", &why),
    };
    // Of several servers that sign at the same time one's certificate is kept.
    match writes::replace_part(client, "status", &next).await {
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
        other => other,
    }
}

fn issue(authority: &Authority, request: &CertificateSigningRequest) -> std::result::Result<String, String> {
    let (spec, parsed) = (&request.spec, parse(&request.spec)?);
    if let Some(why) = problem(&spec.signer_name, &parsed, spec) {
        return Err(why);
    }
    let asked = spec.expiration_seconds.and_then(|it| u64::try_from(it).ok()).map(Duration::from_secs);
    let usages = spec.usages.clone().unwrap_or_default();
    authority.sign(parsed, &usages, asked.map_or(LASTS, |it| it.min(LASTS)), clock::now()).map_err(|why| why.to_string())
}
