//! Signs approved certificate requests. It runs in the API servers, so that the authority's key never leaves them.
//! Follows pkg/controller/certificates/signer.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt};

use super::{certificate, condition, parse, problem};
use crate::{
    base::{Tasks, clock, pki::Authority},
    client::{Error, Informer, ObjectKey, Result, WorkQueue, informer::Options as Watch, writes},
};

const WORKERS: usize = 2;
/// `--cluster-signing-duration`.
const LASTS: Duration = Duration::from_secs(365 * 86_400);
const MANAGER: &str = "kube-apiserver";
/// The signers of this cluster; requests to others are left to those.
const OWN: &str = "kubernetes.io/";

/// Signs with `authority` under a client of the API server itself, until `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks, authority: Arc<Authority>) {
    let queue = WorkQueue::new();
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let requests: Informer<CertificateSigningRequest> = Informer::start("csrsigning", api.clone(), Watch::default(), tasks);
    let listener = queue.clone();
    requests.subscribe(move |change| {
        if !change.is_deleted() && is_due(change.object()) {
            listener.add(change.object().name_any());
        }
    });
    queue.run(tasks, "csrsigning", WORKERS, move |name: String| {
        let (api, authority, request) = (api.clone(), authority.clone(), requests.get(&ObjectKey::new("", name)));
        async move {
            match request.filter(|it| is_due(it)) {
                Some(request) => sign(&api, &authority, &request).await.map(|()| None),
                None => Ok(None),
            }
        }
    });
}

fn is_due(request: &CertificateSigningRequest) -> bool {
    let is_decided = condition(request, "Approved").is_some() && condition(request, "Denied").is_none() && condition(request, "Failed").is_none();
    is_decided && certificate(request).is_none() && request.spec.signer_name.starts_with(OWN)
}

async fn sign(api: &Api<CertificateSigningRequest>, authority: &Authority, request: &CertificateSigningRequest) -> Result<()> {
    let mut next = request.clone();
    let status = next.status.get_or_insert_default();
    match issue(authority, request) {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(why) => {
            let now = Time(clock::now());
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".to_owned(),
                status: "True".to_owned(),
                reason: Some("SignerValidationFailure".to_owned()),
                message: Some(why),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(now),
            });
        }
    }
    // Of several servers that sign at the same time one's certificate is kept.
    match api.replace_status(&request.name_any(), &writes::posting(MANAGER), &next).await.map_err(Error::from) {
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
        other => other.map(drop),
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
