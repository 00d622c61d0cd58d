//! Kubeconfig files: written for people and for the cluster's roles, read by the roles that run apart.

use std::{fs, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use serde_json::json;

use super::{Error, Result};
use crate::{
    base::{
        Tasks,
        pki::{self, Authority, Credential, Identity, Rotating},
        clock,
    },
    client::{Clients, remote},
    meta::{Meta, Value},
};

/// How long a process waits for its kubeconfig, which an API server that starts beside it may still have to write.
const APPEARS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a file is looked at for a newer credential.
const REREAD_EVERY: Duration = Duration::from_secs(300);

/// A kubeconfig with one cluster and one user, everything embedded. JSON is YAML.
fn render(server_url: &str, authority: &str, user: &str, credential: &Credential) -> String {
    let cluster = json!({"server": server_url, "certificate-authority-data": STANDARD.encode(authority)});
    let secrets = json!({
        "client-certificate-data": STANDARD.encode(&credential.certificate),
        "client-key-data": STANDARD.encode(&credential.key),
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "howdah", "cluster": cluster}],
        "contexts": [{"name": "howdah", "context": {"cluster": "howdah", "user": user}}],
        "current-context": "howdah",
        "users": [{"name": user, "user": secrets}],
    });
    format!("{config:#}\n")
}

/// A kubeconfig that names the cluster alone: kubeadm's `cluster-info`.
pub fn cluster_info(server_url: &str, authority: &str) -> String {
    let cluster = json!({"server": server_url, "certificate-authority-data": STANDARD.encode(authority)});
    let config = json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": cluster}], "contexts": [], "current-context": "", "users": []});
    format!("{config:#}\n")
}

/// The authority (PEM) in such a kubeconfig.
pub fn authority_of(cluster_info: &str) -> Result<String> {
    let config: Value = serde_saphyr::from_str(cluster_info).map_err(|why| Error::new("cluster-info", why))?;
    let encoded = config.items_at(&["clusters"]).first().map(|it| it.text_at(&["cluster", "certificate-authority-data"]).to_owned()).unwrap_or_default();
    let pem = STANDARD.decode(encoded).ok().and_then(|it| String::from_utf8(it).ok()).filter(|it| !it.is_empty());
    pem.ok_or_else(|| Error("cluster-info names no authority".to_owned()))
}

/// Writes the kubeconfig of `identity`, with a new credential, readable by its owner only.
pub fn write(path: &Path, server_url: &str, authority: &Authority, identity: &Identity) -> Result<()> {
    let failed = |why: &dyn std::fmt::Display| Error::new(&path.display().to_string(), why);
    let credential = authority.issue(identity, clock::now()).map_err(|why| failed(&why))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|why| failed(&why))?;
    }
    pki::write(path, &render(server_url, authority.certificate(), &identity.common_name, &credential), 0o600).map_err(|why| failed(&why))
}

/// What a kubeconfig says: the cluster's address and authority, and who we are.
pub struct Kubeconfig {
    pub server: String,
    /// PEM.
    pub authority: String,
    pub credential: Credential,
}

impl Kubeconfig {
    /// The current context of a file whose certificates are embedded.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |why: &dyn std::fmt::Display| Error::new(&path.display().to_string(), why);
        let text = fs::read_to_string(path).map_err(|why| failed(&why))?;
        let config: Value = serde_saphyr::from_str(&text).map_err(|why| failed(&why))?;
        let named = |list: &str, name: &str| config.items_at(&[list]).iter().find(|it| it.text("name") == name).cloned().unwrap_or_default();
        let context = named("contexts", config.text("current-context"));
        let cluster = named("clusters", context.text_at(&["context", "cluster"]));
        let user = named("users", context.text_at(&["context", "user"]));
        let pem = |object: &Value, part: &str, field: &str| {
            let bytes = STANDARD.decode(object.text_at(&[part, field])).ok().filter(|it| !it.is_empty());
            bytes.and_then(|it| String::from_utf8(it).ok()).ok_or_else(|| failed(&format!("the current context has no {field}")))
        };
        Ok(Self {
            server: cluster.text_at(&["cluster", "server"]).to_owned(),
            authority: pem(&cluster, "cluster", "certificate-authority-data")?,
            credential: Credential { certificate: pem(&user, "user", "client-certificate-data")?, key: pem(&user, "user", "client-key-data")? },
        })
    }

    /// Reads a file that may appear only in a moment.
    pub async fn await_at(path: &Path) -> Result<Self> {
        let began = std::time::Instant::now();
        while !path.exists() && began.elapsed() < APPEARS_WITHIN {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Self::read(path)
    }

    /// Clients of this user. They ask `servers`, or the one in the file, and show a newer certificate as soon as the file has one.
    pub fn connect(&self, path: &Path, servers: &[String], tasks: &Tasks) -> Result<Clients> {
        let failed = |why: &dyn std::fmt::Display| Error::new(&path.display().to_string(), why);
        let rotating = Rotating::new(&self.credential).map_err(|why| failed(&why))?;
        tasks.spawn("kubeconfig", follow(path.to_owned(), rotating.clone()));
        let own = std::slice::from_ref(&self.server);
        let servers = parse_servers(if servers.is_empty() { own } else { servers })?;
        remote::connect(servers, &self.authority, Some(rotating), tasks).map_err(|why| failed(&why))
    }
}

async fn follow(path: std::path::PathBuf, rotating: Arc<Rotating>) {
    loop {
        tokio::time::sleep(REREAD_EVERY).await;
        let read = Kubeconfig::read(&path).and_then(|it| rotating.replace(&it.credential).map_err(|why| Error::new("the credential", why)));
        if let Err(error) = read {
            tracing::warn!(%error, "the kubeconfig is kept as it was");
        }
    }
}

/// The addresses of API servers: https://HOST:PORT.
pub fn parse_servers(servers: &[String]) -> Result<Vec<Uri>> {
    let parse = |it: &String| {
        let uri: Uri = it.parse().map_err(|why| Error::new(it, why))?;
        let is_good = uri.scheme_str() == Some("https") && uri.authority().is_some();
        is_good.then_some(uri).ok_or_else(|| Error(format!("{it}: an API server's address is https://HOST:PORT")))
    };
    servers.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/admin.conf");
        let authority = Authority::generate(clock::now()).unwrap();
        write(&path, "https://localhost:6443", &authority, &Identity::admin()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Kubeconfig::read(&path).unwrap();
        assert_eq!((read.server.as_str(), read.authority.as_str()), ("https://localhost:6443", authority.certificate()));
        assert!(Rotating::new(&read.credential).is_ok());
        assert!(Kubeconfig::read(&folder.path().join("none")).is_err());
    }

    #[test]
    fn servers_are_https() {
        for (text, is_good) in [("https://a:6443", true), ("http://a:6443", false), ("a:6443", false), ("", false)] {
            assert_eq!(parse_servers(&[text.to_owned()]).is_ok(), is_good, "{text}");
        }
    }
}
