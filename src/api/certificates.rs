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
    meta::{Meta, Result, Value},
};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// A new request says who made it.
pub fn requester(context: &Context<'_>, request: &mut Value) -> Result<()> {
    let user = json!(context.requester.user);
    for field in ["username", "uid", "groups", "extra"] {
        match user.get(field) {
            Some(value) => request.set_at(&["spec", field], value.clone()),
            None => _ = request.remove_at(&["spec", field]),
        }
    }
    Ok(())
}

/// Who approves may use the signer so, and who signs too. Nobody becomes an administrator by a certificate.
pub fn check(context: &Context<'_>, request: &Value) -> Result<()> {
    if context.target.kind.group != GROUP || context.target.kind.plural != "certificatesigningrequests" {
        return Ok(());
    }
    let signer = request.text_at(&["spec", "signerName"]);
    let forbidden = |why: String| context.forbid(request, why);
    match context.target.subresource_name() {
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
        let attributes = Attributes { name: name.to_owned(), ..Attributes::new(verb, GROUP, "signers") };
        context.server.authorizer.authorize(&context.requester.user, &attributes, context.snapshot).is_allowed
    })
}
