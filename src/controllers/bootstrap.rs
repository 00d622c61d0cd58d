//! Bootstrap tokens: ConfigMap `kube-public/cluster-info` is signed with each of them, so that a machine which knows a token can trust what it
//! says; tokens that have expired are removed. Follows pkg/controller/bootstrap/{bootstrapsigner,tokencleaner}.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::DeleteParams;
use ring::hmac;

use super::{Controller, Shell};
use crate::{
    base::clock,
    client::{ObjectKey, Result, writes},
};

pub const PUBLIC: &str = "kube-public";
pub const CLUSTER_INFO: &str = "cluster-info";
/// The key of the ConfigMap under which the signed kubeconfig stands.
pub const KUBECONFIG: &str = "kubeconfig";
/// The keys of the signatures: this and the token's id.
pub const SIGNATURE: &str = "jws-kubeconfig-";
/// How often expired tokens are looked for.
const EVERY: Duration = Duration::from_secs(10);

/// `header..signature` of a text that stands elsewhere (RFC 7515, appendix F), made with a token.
pub fn sign(text: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{header}.{}", URL_SAFE_NO_PAD.encode(text)).as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}

pub struct BootstrapSigner;

impl Controller for BootstrapSigner {
    type Key = ();
    const NAME: &'static str = "bootstrap-signer";
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell<Self>>) {
        shell.on(&shell.informers.bootstrap_tokens, |it, _| it.queue.add(()));
        shell.on(&shell.informers.cluster_info, |it, _| it.queue.add(()));
    }

    async fn reconcile(shell: &Arc<Shell<Self>>, (): &()) -> Result<Option<Duration>> {
        let Some(info) = shell.informers.cluster_info.get(&ObjectKey::new(PUBLIC, CLUSTER_INFO)) else { return Ok(None) };
        if let Some(next) = signed(&info, &shell.informers.bootstrap_tokens.list(), clock::now()) {
            writes::replace(&shell.client, &next).await?;
        }
        Ok(Some(EVERY))
    }
}

pub struct TokenCleaner;

impl Controller for TokenCleaner {
    type Key = ();
    const NAME: &'static str = "token-cleaner";
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell<Self>>) {
        shell.on(&shell.informers.bootstrap_tokens, |it, _| it.queue.add(()));
    }

    async fn reconcile(shell: &Arc<Shell<Self>>, (): &()) -> Result<Option<Duration>> {
        for secret in shell.informers.bootstrap_tokens.list().iter().filter(|it| is_expired(it, clock::now())) {
            writes::delete(&shell.client, secret.as_ref(), DeleteParams::default()).await?;
        }
        Ok(Some(EVERY))
    }
}

fn data(secret: &Secret, name: &str) -> String {
    secret.data.as_ref().and_then(|it| it.get(name)).map(|it| String::from_utf8_lossy(&it.0).into_owned()).unwrap_or_default()
}

fn is_expired(secret: &Secret, now: Timestamp) -> bool {
    let text = data(secret, "expiration");
    !text.is_empty() && !text.parse::<Timestamp>().is_ok_and(|it| it > now)
}

/// The ConfigMap with the signatures of the tokens that there are, unless it has exactly those.
fn signed(info: &ConfigMap, secrets: &[Arc<Secret>], now: Timestamp) -> Option<ConfigMap> {
    let text = info.data.as_ref()?.get(KUBECONFIG)?;
    let is_for_signing = |it: &&Arc<Secret>| data(it, "usage-bootstrap-signing") == "true" && !is_expired(it, now);
    let signatures = secrets.iter().filter(is_for_signing).map(|it| {
        let (id, secret) = (data(it, "token-id"), data(it, "token-secret"));
        (format!("{SIGNATURE}{id}"), sign(text, &id, &secret))
    });
    let others = info.data.iter().flatten().filter(|(key, _)| !key.starts_with(SIGNATURE)).map(|(key, value)| (key.clone(), value.clone()));
    let wanted: BTreeMap<String, String> = others.chain(signatures).collect();
    (info.data.as_ref() != Some(&wanted)).then(|| ConfigMap { data: Some(wanted), ..info.clone() })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    /// The value is that of cluster-bootstrap `token/jws/jws_test.go`.
    #[test]
    fn signatures_are_upstreams() {
        let expected = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8";
        assert_eq!(sign("Hello from the other side. I must have called a thousand times.", "joshua", "my voice is my passcode"), expected);
    }

    #[test]
    fn cluster_info_has_a_signature_for_each_token() {
        let info: ConfigMap = serde_json::from_value(json!({"data": {"kubeconfig": "text", "jws-kubeconfig-old123": "x"}})).unwrap();
        let secret = |expires: &str| {
            let fields = [("token-id", "abcdef"), ("token-secret", "s"), ("usage-bootstrap-signing", "true"), ("expiration", expires)];
            let data = fields.iter().map(|(key, value)| (key.to_string(), ByteString(value.as_bytes().to_vec()))).collect();
            Arc::new(Secret { data: Some(data), ..Secret::default() })
        };
        let now = Timestamp::UNIX_EPOCH;
        let next = signed(&info, &[secret("1970-01-01T00:00:01Z")], now).unwrap();
        let keys: Vec<&String> = next.data.as_ref().unwrap().keys().collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", "kubeconfig"]);
        assert!(signed(&next, &[secret("1970-01-01T00:00:01Z")], now).is_none());
        assert_eq!(signed(&next, &[secret("1969-12-31T23:59:59Z")], now).unwrap().data.unwrap().len(), 1);
    }
}
