//! How a machine joins: it learns the cluster's authority from what a token has signed, and asks for a certificate.
//! Source: kubeadm `app/discovery/token`, KEP "kubelet TLS bootstrap".

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use k8s_openapi::{ByteString, api::core::v1::{ConfigMap, Secret}};
use kube::{Api, api::{ObjectMeta, PostParams}};

use super::{Error, Result, kubeconfig};
use crate::{
    api::{bootstrap_tokens, identity::User},
    base::{Tasks, clock, pki::{self, Identity, Rotating}},
    client::{Clients, remote},
    controllers::bootstrap::{self, CLUSTER_INFO, KUBECONFIG, PUBLIC, SIGNATURE},
    node::{certificates::{self, Certificate, Purpose}, http::{Trust, send}},
};

/// A new token is in cluster-info a moment after it was made.
const SIGNED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Of an answer with cluster-info: a ConfigMap's most.
const ANSWER_MAX: usize = 2 << 20;
/// The file with the cluster's authority, beside the node's certificates.
const AUTHORITY: &str = "ca.crt";

/// What a machine needs to know to join.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// The cluster's API server, as https://HOST:PORT. May be repeated: the next is asked when one fails.
    #[arg(long = "join", value_name = "URL", required = true)]
    pub servers: Vec<String>,
    /// What `howdah token create` has printed; needed until the machine has joined.
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The hash of the cluster's authority, as `howdah token create` prints it, for those who do not trust the token alone.
    #[arg(long = "ca-cert-hash", value_name = "sha256:HEX")]
    pub authority_hash: Option<String>,
    /// Where the node's state, certificates and images are kept.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// The node's name.
    #[arg(skip)]
    pub node: String,
}

/// A machine that has joined.
pub struct Joined {
    pub clients: Clients,
    /// PEM.
    pub authority: String,
}

/// Joins, or goes on with the certificate of an earlier time; keeps the certificate fresh until `tasks` stop.
pub async fn join(options: &Options, tasks: &Tasks) -> Result<Joined> {
    let servers = kubeconfig::parse_servers(&options.servers)?;
    let folder = certificates::folder(&options.data_dir);
    let known = std::fs::read_to_string(folder.join(AUTHORITY)).ok();
    let authority = match known {
        Some(authority) => authority,
        None => discover(options, &servers, tasks).await?,
    };
    let own = Certificate {
        folder: folder.clone(),
        purpose: Purpose::Client,
        identity: Identity::client(&format!("system:node:{}", options.node), &["system:nodes"]),
        authority: authority.clone(),
    };
    let failed = |why: &dyn std::fmt::Display| Error::new("the node's certificate", why);
    let credential = match own.kept() {
        Some(credential) => credential,
        None => {
            let bootstrap = remote::with_token(servers.clone(), &authority, token(options)?).map_err(|why| failed(&why))?;
            own.ask(&bootstrap).await.map_err(|why| failed(&why))?
        }
    };
    pki::write(&folder.join(AUTHORITY), &authority, 0o644).map_err(|why| failed(&why))?;
    let rotating = Rotating::new(&credential).map_err(|why| failed(&why))?;
    let clients = remote::connect(servers, &authority, Some(rotating.clone()), tasks).map_err(|why| failed(&why))?;
    own.rotate(clients.of(&User::default()), rotating, tasks);
    Ok(Joined { clients, authority })
}

fn token(options: &Options) -> Result<&str> {
    let token = options.token.as_deref().ok_or_else(|| Error("this machine has not joined yet: --token is needed; `howdah token create` makes one".to_owned()))?;
    bootstrap_tokens::split(token).map(|_| token).ok_or_else(|| Error("a token has the form abcdef.0123456789abcdef".to_owned()))
}

/// The cluster's authority, from the cluster-info that the token has signed. Whose server answers is not known before.
async fn discover(options: &Options, servers: &[Uri], tasks: &Tasks) -> Result<String> {
    let (id, secret) = bootstrap_tokens::split(token(options)?).unwrap_or_default();
    let began = std::time::Instant::now();
    loop {
        let mut last = Error("no API server is known".to_owned());
        for server in servers {
            match cluster_info(server, tasks).await.and_then(|info| verified(&info, id, secret)) {
                Ok(authority) => return checked(authority, options.authority_hash.as_deref()),
                Err(why) => last = Error::new(&server.to_string(), why),
            }
        }
        if began.elapsed() > SIGNED_WITHIN {
            return Err(last);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn cluster_info(server: &Uri, tasks: &Tasks) -> Result<ConfigMap> {
    let failed = |why: &dyn std::fmt::Display| Error::new("cluster-info", why);
    let path = format!("https://{}/api/v1/namespaces/{PUBLIC}/configmaps/{CLUSTER_INFO}", server.authority().map(|it| it.as_str()).unwrap_or_default());
    let request = Request::get(path).body(Full::<Bytes>::default()).map_err(|why| failed(&why))?;
    let answer = send(tasks, request, Trust::Anyone).await.map_err(|why| failed(&why))?;
    let status = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(|why| failed(&why))?.to_bytes();
    if !status.is_success() {
        return Err(failed(&format!("{status}: {}", String::from_utf8_lossy(&body))));
    }
    serde_json::from_slice(&body).map_err(|why| failed(&why))
}

fn verified(info: &ConfigMap, id: &str, secret: &str) -> Result<String> {
    let field = |name: &str| info.data.as_ref().and_then(|it| it.get(name)).cloned().unwrap_or_default();
    let (text, signature) = (field(KUBECONFIG), field(&format!("{SIGNATURE}{id}")));
    match signature.as_str() {
        "" => Err(Error(format!("could not find a JWS signature in the cluster-info ConfigMap for token ID {id:?}"))),
        given if given == bootstrap::sign(&text, id, secret) => kubeconfig::authority_of(&text),
        _ => Err(Error(format!("failed to verify JWS signature of received cluster info object, can't trust this API Server (token ID {id:?})"))),
    }
}

fn checked(authority: String, hash: Option<&str>) -> Result<String> {
    let own = pki::public_key_hash(&authority).map_err(|why| Error::new("the cluster's authority", why))?;
    match hash {
        Some(wanted) if wanted != own => Err(Error(format!("the cluster's authority is {own}, not {wanted} as --ca-cert-hash says"))),
        _ => Ok(authority),
    }
}

/// Makes a bootstrap token that is good for `lasts`; returns it.
pub async fn create_token(client: &kube::Client, lasts: Duration, description: &str) -> Result<String> {
    let (id, secret) = bootstrap_tokens::generate();
    let expires = clock::rfc3339(clock::now() + lasts);
    let fields = [
        ("token-id", id.as_str()),
        ("token-secret", &secret),
        ("expiration", &expires),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
        ("description", description),
    ];
    let data = fields.iter().map(|(name, value)| ((*name).to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
    let metadata = ObjectMeta { name: Some(bootstrap_tokens::secret_name(&id)), ..ObjectMeta::default() };
    let object = Secret { metadata, data: Some(data), type_: Some(bootstrap_tokens::SECRET_TYPE.to_owned()), ..Secret::default() };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), bootstrap_tokens::NAMESPACE);
    secrets.create(&PostParams::default(), &object).await.map_err(|why| Error::new("the token", why))?;
    Ok(format!("{id}.{secret}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::pki::Authority;

    #[test]
    fn only_what_the_token_has_signed_is_trusted() {
        let authority = Authority::generate(clock::now()).unwrap();
        let text = kubeconfig::cluster_info("https://10.0.0.1:6443", authority.certificate());
        let info = |signature: String| serde_json::from_value::<ConfigMap>(json!({"data": {"kubeconfig": text, "jws-kubeconfig-abcdef": signature}})).unwrap();
        let (id, secret) = ("abcdef", "0123456789abcdef");
        assert_eq!(verified(&info(bootstrap::sign(&text, id, secret)), id, secret).unwrap(), authority.certificate());
        assert!(verified(&info(bootstrap::sign(&text, id, "another")), id, secret).is_err());
        assert!(verified(&info(bootstrap::sign(&text, id, secret)), "ghijkl", secret).is_err());
        let hash = pki::public_key_hash(authority.certificate()).unwrap();
        assert!(checked(authority.certificate().to_owned(), Some(&hash)).is_ok());
        assert!(checked(authority.certificate().to_owned(), Some("sha256:00")).is_err());
    }
}
