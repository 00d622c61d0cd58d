//! What is checked of CertificateSigningRequests beyond their validity: who asks is written down, and who may approve and sign.
//! Source: `pkg/registry/certificates/certificates/strategy.go`, `plugin/pkg/admission/certificates/{approval,signing,subjectrestriction}`.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    admission::{Context, Operation},
    identity::{Attributes, MASTERS},
};
use crate::{
    base::pki::Request,
    meta::{Meta, Result, Status, Value},
};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(context: &Context<'_>) -> bool {
    context.target.kind.group == GROUP && context.target.kind.plural == "certificatesigningrequests"
}

/// A new request says who made it.
pub fn requester(context: &Context<'_>, request: &mut Value) -> Result<()> {
    if !is_request(context) || context.operation != Operation::Create || context.target.subresource.is_some() {
        return Ok(());
    }
    let user = &context.requester.user;
    request.set_at(&["spec", "username"], user.name.as_str());
    request.set_at(&["spec", "groups"], json!(user.groups));
    for (field, value) in [("uid", json!(user.uid)), ("extra", json!(user.extra))] {
        match user.uid.is_empty() && field == "uid" || user.extra.is_empty() && field == "extra" {
            true => _ = request.remove_at(&["spec", field]),
            false => request.set_at(&["spec", field], value),
        }
    }
    Ok(())
}

/// Who approves may use the signer so, and who signs too. Nobody becomes an administrator by a certificate.
pub fn check(context: &Context<'_>, request: &Value) -> Result<()> {
    if !is_request(context) {
        return Ok(());
    }
    let signer = request.text_at(&["spec", "signerName"]);
    let forbidden = |why: String| Status::forbidden(&context.target.resource(), request.name(), why);
    let part = context.target.subresource.as_ref().map(|it| it.name.as_ref()).unwrap_or_default();
    match part {
        "" if context.operation == Operation::Create && signer == CLIENT_SIGNER && asks_for_masters(request) => {
            Err(forbidden(format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")))
        }
        "approval" if !may(context, "approve", signer) => Err(forbidden(format!("user not permitted to approve requests with signerName {signer:?}"))),
        "status" if has_new_certificate(context, request) && !may(context, "sign", signer) => {
            Err(forbidden(format!("user not permitted to sign requests with signerName {signer:?}")))
        }
        _ => Ok(()),
    }
}

fn asks_for_masters(request: &Value) -> bool {
    let pem = STANDARD.decode(request.text_at(&["spec", "request"])).ok().and_then(|it| String::from_utf8(it).ok());
    pem.and_then(|it| Request::read(&it).ok()).is_some_and(|it| it.identity.organizations.iter().any(|it| it == MASTERS))
}

fn has_new_certificate(context: &Context<'_>, request: &Value) -> bool {
    let certificate = |it: &Value| it.text_at(&["status", "certificate"]).to_owned();
    let failed = |it: &Value| it.condition("Failed").is_some();
    context.old.is_none_or(|old| certificate(old) != certificate(request) || failed(old) != failed(request))
}

/// Whether the user may do `verb` with this signer, or with all of its domain.
fn may(context: &Context<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, domain.as_str()].into_iter().any(|name| {
        let attributes = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        context.server.authorizer.authorize(&context.requester.user, &attributes, context.snapshot).is_allowed
    })
}
