//! Certificate requests: those of nodes are approved, old ones removed; `signer.rs` signs what is approved.
//! Follows pkg/controller/certificates/{approver,cleaner}, and for serving certificates, which upstream leaves to others, approves names and
//! addresses that the Node object has.

pub mod signer;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{ResourceExt, api::DeleteParams};

use super::Controller;
use crate::{
    base::{
        clock,
        pki::{self, Request},
    },
    client::{Informer, ObjectKey, Result, writes},
};

pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// A serving certificate may be asked for a moment before the Node object says its addresses.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// So long is it looked again.
const UNDECIDED: SignedDuration = SignedDuration::from_mins(10);
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
/// `approvedExpiration`, `deniedExpiration`.
const DECIDED_FOR: SignedDuration = SignedDuration::from_hours(1);
/// `pendingExpiration`.
const PENDING_FOR: SignedDuration = SignedDuration::from_hours(24);

/// Approves the requests of nodes, and removes what is done with.
pub struct CertificateController;
type Shell = super::Shell<CertificateController>;

impl Controller for CertificateController {
    type Key = String;
    const NAME: &'static str = "certificate-controller";
    const WORKERS: usize = 2;

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.certificate_requests, |it, change| it.queue.add(change.object().name_any()));
    }

    async fn reconcile(shell: &Arc<Shell>, name: &String) -> Result<Option<Duration>> {
        let Some(request) = shell.informers.certificate_requests.get(&ObjectKey::new("", name)) else { return Ok(None) };
        if is_done_with(&request, clock::now()) {
            return writes::delete(&shell.client, request.as_ref(), DeleteParams::default()).await.map(|_| None);
        }
        let again = match is_pending(&request) {
            true => decide(&shell.client, &shell.informers.nodes, &request).await?,
            false => None,
        };
        Ok(again.or(Some(CLEAN_EVERY)))
    }
}

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.iter().flat_map(|it| it.conditions.iter().flatten()).find(|it| it.type_ == kind)
}

fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    request.status.as_ref().and_then(|it| it.certificate.as_ref()).map(|it| it.0.as_slice()).filter(|it| !it.is_empty())
}

fn is_pending(request: &CertificateSigningRequest) -> bool {
    certificate(request).is_none() && ["Approved", "Denied", "Failed"].iter().all(|it| condition(request, it).is_none())
}

fn parse(spec: &CertificateSigningRequestSpec) -> std::result::Result<Request, String> {
    let pem = String::from_utf8(spec.request.0.clone()).map_err(|why| why.to_string())?;
    Request::read(&pem).map_err(|why| format!("unable to parse csr: {why}"))
}

async fn decide(client: &kube::Client, nodes: &Informer<Node>, request: &CertificateSigningRequest) -> Result<Option<Duration>> {
    let (spec, Ok(parsed)) = (&request.spec, parse(&request.spec)) else { return Ok(None) };
    match spec.signer_name.as_str() {
        NODE_CLIENT if problem(NODE_CLIENT, &parsed, spec).is_none() => {
            let is_own = spec.username.as_deref() == Some(&parsed.identity.common_name);
            let (subresource, what) = if is_own { ("selfnodeclient", "self kubelet client certificate") } else { ("nodeclient", "kubelet client certificate") };
            if may_ask(client, spec, subresource).await? {
                approve(client, request, &format!("Auto approving {what} after SubjectAccessReview.")).await?;
            }
            Ok(None)
        }
        NODE_SERVING if problem(NODE_SERVING, &parsed, spec).is_none() && spec.username.as_deref() == Some(&parsed.identity.common_name) => {
            let name = parsed.identity.common_name.trim_start_matches("system:node:");
            if nodes.get(&ObjectKey::new("", name)).is_some_and(|it| has_names(&it, &parsed.identity.names)) {
                approve(client, request, "Auto approving kubelet serving certificate: the Node has these names and addresses.").await?;
                return Ok(None);
            }
            let age = clock::now().duration_since(request.metadata.creation_timestamp.as_ref().map_or_else(clock::now, |it| it.0));
            Ok((age < UNDECIDED).then_some(LOOK_AGAIN))
        }
        _ => Ok(None),
    }
}

/// Whether all of `names` are the node's: its name, or among the addresses in its status.
fn has_names(node: &Node, names: &[String]) -> bool {
    let addresses = node.status.iter().flat_map(|it| it.addresses.iter().flatten()).map(|it| it.address.as_str());
    let own: BTreeSet<&str> = addresses.chain(node.metadata.name.as_deref()).collect();
    names.iter().all(|it| own.contains(it.as_str()))
}

async fn may_ask(client: &kube::Client, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool> {
    let attributes = ResourceAttributes {
        group: Some("certificates.k8s.io".to_owned()),
        resource: Some("certificatesigningrequests".to_owned()),
        verb: Some("create".to_owned()),
        version: Some("*".to_owned()),
        subresource: Some(subresource.to_owned()),
        ..ResourceAttributes::default()
    };
    let asked = SubjectAccessReviewSpec {
        user: spec.username.clone(),
        uid: spec.uid.clone(),
        groups: spec.groups.clone(),
        extra: spec.extra.clone(),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec: asked, ..SubjectAccessReview::default() };
    Ok(writes::create(client, &review).await?.status.is_some_and(|it| it.allowed))
}

async fn approve(client: &kube::Client, request: &CertificateSigningRequest, message: &str) -> Result<()> {
    writes::replace_part(client, "approval", &with_condition(request, "Approved", "AutoApproved", message)).await
}

fn with_condition(request: &CertificateSigningRequest, kind: &str, reason: &str, message: &str) -> CertificateSigningRequest {
    let (mut next, now) = (request.clone(), Time(clock::now()));
    let condition = CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    };
    next.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    next
}

/// Why a request is not one that the signer signs; `None` if it is.
fn problem(signer: &str, request: &Request, spec: &CertificateSigningRequestSpec) -> Option<String> {
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let only = |all: &[&str], must: &str| usages.contains(must) && usages.iter().all(|it| all.contains(it));
    let identity = &request.identity;
    let is_node = identity.organizations == ["system:nodes"] && identity.common_name.strip_prefix("system:node:").is_some_and(|it| !it.is_empty());
    let node = || if identity.organizations == ["system:nodes"] { "subject common name does not begin with system:node:" } else { "subject organization is not system:nodes" };
    let found = match signer {
        LEGACY => return None,
        CLIENT if !only(&["client auth", "digital signature", "key encipherment"], "client auth") => "usages did not match allowed: client auth, digital signature, key encipherment",
        CLIENT => return None,
        NODE_CLIENT | NODE_SERVING if !is_node => node(),
        NODE_CLIENT if request.has_other_names || !identity.names.is_empty() => "DNS, email, IP and URI subjectAltNames are not allowed",
        NODE_CLIENT if !only(&["client auth", "digital signature", "key encipherment"], "client auth") => "usages did not match key encipherment, digital signature, client auth",
        NODE_SERVING if request.has_other_names => "email and URI subjectAltNames are not allowed",
        NODE_SERVING if identity.names.is_empty() => "at least one DNS or IP subjectAltName is required",
        NODE_SERVING if !only(&["server auth", "digital signature", "key encipherment"], "server auth") => "usages did not match key encipherment, digital signature, server auth",
        NODE_CLIENT | NODE_SERVING => return None,
        _ => "no signer of this cluster",
    };
    Some(found.to_owned())
}

/// Decided for an hour, or undecided for a day, or its certificate has expired.
fn is_done_with(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let since = |kind: &str| condition(request, kind).and_then(|it| Some(now.duration_since(it.last_update_time.as_ref()?.0)));
    let is_decided = ["Approved", "Denied", "Failed"].iter().any(|it| since(it).is_some_and(|it| it > DECIDED_FOR));
    let age = request.metadata.creation_timestamp.as_ref().map(|it| now.duration_since(it.0));
    let issued = certificate(request).and_then(|it| pki::lifetime(std::str::from_utf8(it).ok()?).ok());
    is_decided || age.is_some_and(|it| it > PENDING_FOR) && is_pending(request) || issued.is_some_and(|(_, ends)| ends < now.as_second())
}

/// Waits for the certificate of a request that was made.
pub fn outcome(request: &CertificateSigningRequest) -> Option<std::result::Result<String, String>> {
    if let Some(certificate) = certificate(request) {
        return Some(String::from_utf8(certificate.to_vec()).map_err(|why| why.to_string()));
    }
    let refused = ["Denied", "Failed"].iter().find_map(|it| condition(request, it))?;
    Some(Err(format!("the certificate request was {}: {}", refused.type_.to_lowercase(), refused.message.as_deref().unwrap_or_default())))
}

/// A request, ready to be sent.
pub fn request(name: &str, signer: &str, pem: &str, usages: &[&str]) -> CertificateSigningRequest {
    let spec = CertificateSigningRequestSpec {
        request: ByteString(pem.as_bytes().to_vec()),
        signer_name: signer.to_owned(),
        usages: Some(usages.iter().map(|it| (*it).to_owned()).collect()),
        ..CertificateSigningRequestSpec::default()
    };
    let mut request = CertificateSigningRequest { spec, ..CertificateSigningRequest::default() };
    request.metadata.name = Some(name.to_owned());
    request
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::pki::Identity;

    #[test]
    fn signers_sign_what_they_are_for() {
        let node = Identity::client("system:node:n1", &["system:nodes"]);
        let serving = Identity { names: vec!["n1".into(), "10.0.0.1".into()], ..node.clone() };
        let person = Identity::client("jane", &["devs"]);
        let (client, server) = (["digital signature", "client auth"].as_slice(), ["digital signature", "server auth"].as_slice());
        let cases = [
            (NODE_CLIENT, &node, client, true),
            (NODE_CLIENT, &serving, client, false),
            (NODE_CLIENT, &person, client, false),
            (NODE_CLIENT, &node, server, false),
            (NODE_SERVING, &serving, server, true),
            (NODE_SERVING, &node, server, false),
            (NODE_SERVING, &serving, client, false),
            (CLIENT, &person, client, true),
            (CLIENT, &person, server, false),
            (LEGACY, &person, server, true),
            ("example.com/own", &person, client, false),
        ];
        for (signer, identity, usages, expected) in cases {
            let (_, pem) = Request::make(identity).unwrap();
            let made = request("r", signer, &pem, usages);
            assert_eq!(problem(signer, &parse(&made.spec).unwrap(), &made.spec).is_none(), expected, "{signer} {identity:?} {usages:?}");
        }
    }

    #[test]
    fn a_node_serves_under_its_own_names_only() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})).unwrap();
        for (names, expected) in [(["n1", "10.0.0.1"], true), (["n1", "10.0.0.2"], false), (["n2", "10.0.0.1"], false)] {
            assert_eq!(has_names(&node, &names.map(str::to_owned)), expected, "{names:?}");
        }
    }

    #[test]
    fn requests_go_when_they_are_done_with() {
        let at = |hour: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour);
        let made = |conditions: serde_json::Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"request": "", "signerName": "s"}, "status": {"conditions": conditions}})).unwrap()
        };
        let denied = json!([{"type": "Denied", "status": "True", "lastUpdateTime": "1970-01-01T00:00:00Z"}]);
        for (conditions, hours, expected) in [(json!([]), 23, false), (json!([]), 25, true), (denied.clone(), 0, false), (denied, 2, true)] {
            assert_eq!(is_done_with(&made(conditions.clone()), at(hours)), expected, "{conditions} {hours}");
        }
    }
}
