//! The node's certificates: asked of the cluster, kept in files, and asked for again before they expire.
//! Follows client-go `util/certificate` and kubelet `pkg/kubelet/certificate`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, api::PostParams};

use crate::{
    base::{
        Tasks,
        backoff::Backoff,
        clock,
        pki::{self, Credential, Identity, Request, Rotating},
    },
    controllers::certificates::{self, NODE_CLIENT, NODE_SERVING},
};

/// How long the cluster may take to sign before it is asked anew.
const SIGNED_WITHIN: Duration = Duration::from_secs(900);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is seen whether a certificate is about to expire.
const CHECK_EVERY: Duration = Duration::from_secs(600);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    fn file(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "serving",
        }
    }

    fn signer(self) -> (&'static str, &'static str) {
        match self {
            Self::Client => (NODE_CLIENT, "client auth"),
            Self::Serving => (NODE_SERVING, "server auth"),
        }
    }
}

/// One certificate of the node, in a folder.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub folder: PathBuf,
    pub purpose: Purpose,
    pub identity: Identity,
    /// A certificate of another authority is of no use.
    pub authority: String,
}

impl Certificate {
    /// The one in the folder, if it is of this identity and authority and not about to expire.
    pub fn kept(&self) -> Option<Credential> {
        let read = |suffix: &str| fs::read_to_string(self.path(suffix)).ok();
        let credential = Credential { certificate: read("crt")?, key: read("key")? };
        let is_good = !pki::is_due(&credential.certificate, clock::now()) && pki::is_of(&credential.certificate, &self.identity, &self.authority);
        is_good.then_some(credential)
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.purpose.file()))
    }

    /// Asks the cluster for a new one, waits for it and keeps it.
    pub async fn ask(&self, client: &kube::Client) -> io::Result<Credential> {
        let (key, pem) = Request::make(&self.identity).map_err(io::Error::other)?;
        let (signer, usage) = self.purpose.signer();
        let name = format!("csr-{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
        let request = certificates::request(&name, signer, &pem, &["digital signature", usage]);
        let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
        requests.create(&PostParams::default(), &request).await.map_err(io::Error::other)?;
        let signed = tokio::time::timeout(SIGNED_WITHIN, signed(&requests, &name)).await;
        let certificate = signed.map_err(|_| io::Error::other(format!("certificate request {name} was not approved")))??;
        let credential = Credential { certificate, key };
        self.keep(&credential)?;
        Ok(credential)
    }

    fn keep(&self, credential: &Credential) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        pki::write(&self.path("key"), &credential.key, 0o600).map_err(io::Error::other)?;
        pki::write(&self.path("crt"), &credential.certificate, 0o644).map_err(io::Error::other)
    }

    /// Keeps `rotating` at a good certificate until `tasks` stop.
    pub fn rotate(self, client: kube::Client, rotating: Arc<Rotating>, tasks: &Tasks) {
        tasks.spawn_vital("node-certificate", async move {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
            loop {
                let credential = match self.kept() {
                    Some(credential) => Ok(credential),
                    None => self.ask(&client).await,
                };
                match credential.and_then(|it| rotating.replace(&it).map_err(io::Error::other)) {
                    Ok(()) => {
                        backoff.reset();
                        tokio::time::sleep(CHECK_EVERY).await;
                    }
                    Err(error) => {
                        tracing::warn!(purpose = self.purpose.file(), %error, "the node got no certificate");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            }
        });
    }
}

async fn signed(requests: &Api<CertificateSigningRequest>, name: &str) -> io::Result<String> {
    loop {
        let found = requests.get(name).await.map_err(io::Error::other)?;
        if let Some(outcome) = certificates::outcome(&found) {
            return outcome.map_err(io::Error::other);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Where a node's certificates are kept.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("node/pki")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::pki::Authority;

    #[test]
    fn a_certificate_is_kept_while_it_is_of_use() {
        let (now, folder) = (clock::now(), tempfile::tempdir().unwrap());
        let (authority, other) = (Authority::generate(now).unwrap(), Authority::generate(now).unwrap());
        let own = |name: &str, address: &str, authority: &Authority| Certificate {
            folder: folder.path().to_owned(),
            purpose: Purpose::Serving,
            identity: Identity::node(name, &[address.parse().unwrap()]),
            authority: authority.certificate().to_owned(),
        };
        let made = own("n1", "10.0.0.1", &authority);
        assert!(made.kept().is_none());
        let credential = authority.issue(&made.identity, now).unwrap();
        made.keep(&credential).unwrap();
        assert_eq!(made.kept(), Some(credential));
        for (name, address, authority) in [("n2", "10.0.0.1", &authority), ("n1", "10.0.0.2", &authority), ("n1", "10.0.0.1", &other)] {
            assert!(own(name, address, authority).kept().is_none(), "{name} {address}");
        }
        made.keep(&authority.issue(&made.identity, now - jiff::SignedDuration::from_hours(24 * 300)).unwrap()).unwrap();
        assert!(made.kept().is_none());
    }
}
