//! What all API servers of a cluster share, kept in the store under keys that no client sees: the certificate authority, the key that signs
//! service-account tokens, the ranges of addresses. Each is made once: of servers that start at the same time, one's is kept and all use it.

use std::{fs, io, path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::json;

use super::{Error, Result};
use crate::{
    api::tokens,
    base::{
        clock,
        pki::{Authority, Credential},
    },
    meta::{Meta, Value},
    store::{Change, Draft, Expect, Header, Key, Rejected, Store, Transaction, Write},
};

const RESOURCE: &str = "internal/cluster";

/// The cluster's secrets.
pub struct Keys {
    pub authority: Arc<Authority>,
    /// Signs the certificate by which other servers of this API know this one; another than the cluster's own, so that nobody else has one.
    pub front_proxy: Arc<Authority>,
    /// What signs service-account tokens, as PKCS#8 DER.
    pub service_accounts: Vec<u8>,
}

impl Keys {
    /// Those of the store. A cluster from the time when they were files in `folder` brings them along.
    pub async fn of(store: &Store, folder: &Path) -> Result<Self> {
        let failed = |why: &dyn std::fmt::Display| Error::new("the cluster's keys", why);
        let authority = kept(store, "authority", || {
            let credential = match (read(&folder.join("ca.crt"))?, read(&folder.join("ca.key"))?) {
                (Some(certificate), Some(key)) => Credential { certificate, key },
                _ => Authority::generate(clock::now()).map_err(|why| failed(&why))?.credential().clone(),
            };
            Ok(to_value(&credential))
        });
        let authority = Authority::read(&credential(&authority.await?)).map_err(|why| failed(&why))?;
        let front_proxy = kept(store, "front-proxy-authority", || {
            Ok(to_value(Authority::named("front-proxy-ca", clock::now()).map_err(|why| failed(&why))?.credential()))
        });
        let front_proxy = Authority::read(&credential(&front_proxy.await?)).map_err(|why| failed(&why))?;
        let accounts = kept(store, "service-accounts", || {
            let key = read(&folder.join("sa.key"))?.unwrap_or_else(|| pem(&tokens::generate_key()));
            Ok(json!({"key": key}))
        });
        let accounts = accounts.await?;
        let key = PrivateKeyDer::from_pem_slice(accounts.text("key").as_bytes()).map_err(|why| failed(&why))?;
        Ok(Self { authority: Arc::new(authority), front_proxy: Arc::new(front_proxy), service_accounts: key.secret_der().to_vec() })
    }
}

fn to_value(credential: &Credential) -> Value {
    json!({"certificate": credential.certificate, "key": credential.key})
}

fn credential(value: &Value) -> Credential {
    Credential { certificate: value.text("certificate").to_owned(), key: value.text("key").to_owned() }
}

fn pem(key: &[u8]) -> String {
    let lines: Vec<String> = STANDARD.encode(key).as_bytes().chunks(64).map(|it| String::from_utf8_lossy(it).into_owned()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(Error::new(&path.display().to_string(), why)),
    }
}

/// The value that the cluster keeps as `name`; `make` makes it where there is none.
pub async fn kept(store: &Store, name: &str, make: impl FnOnce() -> Result<Value>) -> Result<Value> {
    let unavailable = |why: Rejected| Error::new("the store", why);
    let key = Key::new(RESOURCE, "", name);
    if let Some(stored) = store.consistent().await.map_err(unavailable)?.get(&key) {
        return Ok(stored.value());
    }
    let mut value = make()?;
    value.set_metadata("name", name);
    let write = Write { key, expect: Expect::Absent, change: Change::Put(Draft::new(&value, Header::default())) };
    match store.submit(Transaction { writes: vec![write] }).await {
        Ok(_) => Ok(value),
        Err(Rejected::Exists(stored)) => Ok(stored.value()),
        Err(why) => Err(unavailable(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::Tasks, store::memory::Memory};

    #[tokio::test]
    async fn servers_that_start_at_the_same_time_agree() {
        let (engine, tasks, folder) = (Arc::new(Memory::new()), Tasks::new(), tempfile::tempdir().unwrap());
        let open = || Store::open(engine.clone(), Arc::new(|_, _| Header::default()), &tasks);
        let (one, two) = (open().await.unwrap(), open().await.unwrap());
        let (one, two) = tokio::join!(Keys::of(&one, folder.path()), Keys::of(&two, folder.path()));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!(one.authority.credential(), two.authority.credential());
        assert_eq!(one.service_accounts, two.service_accounts);
    }

    #[tokio::test]
    async fn keys_that_were_files_stay() {
        let (tasks, folder) = (Tasks::new(), tempfile::tempdir().unwrap());
        let authority = Authority::generate(clock::now()).unwrap();
        let key = tokens::generate_key();
        for (file, text) in [("ca.crt", &authority.credential().certificate), ("ca.key", &authority.credential().key), ("sa.key", &pem(&key))] {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let store = Store::open(Arc::new(Memory::new()), Arc::new(|_, _| Header::default()), &tasks).await.unwrap();
        let keys = Keys::of(&store, folder.path()).await.unwrap();
        assert_eq!((keys.authority.credential(), &keys.service_accounts), (authority.credential(), &key));
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        assert_eq!(Keys::of(&store, folder.path()).await.unwrap().authority.credential(), authority.credential());
    }
}
