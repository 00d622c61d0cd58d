//! Pulling an image from a registry into an OCI layout on disk. Source: OCI distribution specification 1.1, Docker's token authentication.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    http::{Trust, send},
    images::{full_name, hex},
};
use crate::{
    base::Tasks,
    meta::{Meta, Value},
};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The specification asks registries to take manifests of at least this size.
const MANIFEST_MAX: usize = 4 << 20;
const REDIRECTS_MAX: usize = 5;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Docker Hub's name and the host that serves it.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Where images come from.
#[derive(Clone)]
pub struct Registries {
    /// Asked before any registry, as containerd's `_default` host: `http://host:port`.
    pub mirror: Option<String>,
    pub tasks: Tasks,
}

/// A user's name and password for one registry's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub host: String,
    pub basic: String,
}

/// A name taken apart: `registry/repository`, and a tag or digest.
#[derive(Debug, PartialEq, Eq)]
struct Reference {
    registry: String,
    repository: String,
    reference: String,
}

impl Reference {
    fn parse(name: &str) -> Option<Self> {
        let full = full_name(name);
        let (registry, rest) = full.split_once('/')?;
        let (repository, reference) = match rest.split_once('@') {
            Some((path, digest)) => (path.rsplit_once(':').map_or(path, |it| it.0), digest),
            None => rest.rsplit_once(':')?,
        };
        Some(Self { registry: registry.to_owned(), repository: repository.to_owned(), reference: reference.to_owned() })
    }
}

fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::other(why.into())
}

impl Registries {
    /// Downloads the image into `folder` as an OCI layout with its name, without the layers that are `present` by their digest of content.
    pub async fn pull(&self, name: &str, credentials: &[Credential], folder: &Path, present: impl Fn(&str) -> bool) -> io::Result<()> {
        let reference = Reference::parse(name).ok_or_else(|| wrong("invalid reference format"))?;
        let mut last = None;
        for base in self.bases(&reference.registry) {
            let basic = credentials.iter().find(|it| it.host == reference.registry).map(|it| it.basic.clone());
            let mut session = Session { base, reference: &reference, tasks: &self.tasks, basic, authorization: None };
            match session.pull(name, folder, &present).await {
                Ok(()) => return Ok(()),
                // The registry's own answer tells more than a mirror's.
                Err(error) => last = Some(error),
            }
        }
        let why = last.map_or_else(String::new, |it| it.to_string());
        Err(wrong(format!("failed to pull and unpack image {:?}: failed to resolve reference {:?}: {why}", full_name(name), full_name(name))))
    }

    fn bases(&self, registry: &str) -> Vec<String> {
        let host = if registry == HUB.0 { HUB.1 } else { registry };
        let name = host.rsplit_once(':').map_or(host, |it| it.0);
        let is_local = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback());
        let own = format!("{}://{host}", if is_local { "http" } else { "https" });
        self.mirror.iter().map(|it| it.trim_end_matches('/').to_owned()).chain([own]).collect()
    }
}

struct Session<'a> {
    base: String,
    reference: &'a Reference,
    tasks: &'a Tasks,
    basic: Option<String>,
    authorization: Option<String>,
}

impl Session<'_> {
    async fn pull(&mut self, name: &str, folder: &Path, present: impl Fn(&str) -> bool) -> io::Result<()> {
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        let (bytes, kind) = self.manifest(&self.reference.reference).await?;
        let mut manifest: Value = serde_json::from_slice(&bytes)?;
        let mut digest = store(folder, &bytes)?;
        let mut media_type = kind;
        if manifest.get("config").is_none() {
            digest = of_this_machine(&manifest).ok_or_else(|| wrong("no match for platform in manifest: not found"))?;
            let (bytes, kind) = self.manifest(&digest).await?;
            (manifest, media_type) = (serde_json::from_slice(&bytes)?, kind);
            store(folder, &bytes)?;
        }
        let config: Value = serde_json::from_slice(&fs::read(self.blob(manifest.text_at(&["config", "digest"]), folder).await?)?)?;
        let contents = config.items_at(&["rootfs", "diff_ids"]);
        for (at, layer) in manifest.items_at(&["layers"]).iter().enumerate() {
            if !contents.get(at).and_then(Value::as_str).is_some_and(&present) {
                self.blob(layer.text("digest"), folder).await?;
            }
        }
        let annotations = json!({"io.containerd.image.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": media_type, "digest": digest, "annotations": annotations}]});
        fs::write(folder.join("index.json"), index.to_string())
    }

    /// The bytes and the media type of a manifest or index.
    async fn manifest(&mut self, reference: &str) -> io::Result<(Bytes, String)> {
        let response = self.get(&format!("manifests/{reference}"), ACCEPT).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
        let body = Limited::new(response.into_body(), MANIFEST_MAX).collect();
        let bytes = body.await.map_err(|why| wrong(why.to_string()))?.to_bytes();
        match reference.strip_prefix("sha256:") {
            Some(wanted) if hex(&Sha256::digest(&bytes)) != wanted => Err(wrong(format!("the manifest is not {reference}"))),
            _ => Ok((bytes, kind)),
        }
    }

    /// Downloads a blob; returns its file.
    async fn blob(&mut self, digest: &str, folder: &Path) -> io::Result<PathBuf> {
        let wanted = digest.strip_prefix("sha256:").filter(|it| it.len() == 64 && it.bytes().all(|it| it.is_ascii_hexdigit()));
        let wanted = wanted.ok_or_else(|| wrong(format!("{digest:?} is not a digest")))?;
        let mut body = self.get(&format!("blobs/{digest}"), "*/*").await?.into_body();
        let path = folder.join("blobs/sha256").join(wanted);
        let (mut file, mut hash) = (File::create(&path)?, Sha256::new());
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                hash.update(&data);
                file.write_all(&data)?;
            }
        }
        if hex(&hash.finalize()) == wanted { Ok(path) } else { Err(wrong(format!("a blob is not {digest}"))) }
    }

    /// Asks the registry, with a token where it wants one, and follows where it points.
    async fn get(&mut self, path: &str, accept: &str) -> io::Result<Response<Incoming>> {
        let url = format!("{}/v2/{}/{path}?ns={}", self.base, self.reference.repository, self.reference.registry);
        let mut response = self.ask(&url, accept, self.authorization.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.authorization = Some(self.authorize(response.headers()).await?);
            response = self.ask(&url, accept, self.authorization.clone()).await?;
        }
        for _ in 0..REDIRECTS_MAX {
            let place = response.headers().get(header::LOCATION).and_then(|it| it.to_str().ok());
            let Some(place) = place.filter(|_| response.status().is_redirection()) else { break };
            // A redirect leads to a store of blobs that knows nothing of our token.
            let place = if place.starts_with('/') { format!("{}{place}", self.base) } else { place.to_owned() };
            response = self.ask(&place, accept, None).await?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(wrong(format!("{}/{}:{}: not found", self.reference.registry, self.reference.repository, self.reference.reference))),
            status => Err(wrong(format!("unexpected status from GET request to {url}: {status}"))),
        }
    }

    async fn ask(&self, url: &str, accept: &str, authorization: Option<String>) -> io::Result<Response<Incoming>> {
        let mut request = Request::get(url).header(header::ACCEPT, accept).header(header::USER_AGENT, concat!("howdah/", env!("CARGO_PKG_VERSION")));
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::default()).map_err(io::Error::other)?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, send(self.tasks, request, Trust::System)).await;
        answer.map_err(|_| wrong(format!("GET {url}: no answer in time")))?.map_err(|why| wrong(format!("GET {url}: {why}")))
    }

    /// The Authorization that a challenge asks for.
    async fn authorize(&self, headers: &HeaderMap) -> io::Result<String> {
        let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let basic = self.basic.as_ref().map(|it| format!("Basic {it}"));
        let Some(parameters) = challenge.strip_prefix("Bearer ") else {
            return basic.ok_or_else(|| wrong("pull access denied, repository does not exist or may require authorization"));
        };
        let value = |name: &str| parameters.split(',').find_map(|it| it.trim().strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'));
        let realm = value("realm").ok_or_else(|| wrong("the registry asks for a token but does not say whose"))?;
        let repository = &self.reference.repository;
        let url = format!("{realm}?service={}&scope=repository:{repository}:pull", value("service").unwrap_or_default());
        let response = self.ask(&url, "application/json", basic).await?;
        if !response.status().is_success() {
            return Err(wrong(format!("failed to authorize: failed to fetch anonymous token: unexpected status from GET request to {url}: {}", response.status())));
        }
        let bytes = Limited::new(response.into_body(), MANIFEST_MAX).collect().await.map_err(|why| wrong(why.to_string()))?.to_bytes();
        let answer: Value = serde_json::from_slice(&bytes)?;
        let token = Some(answer.text("token")).filter(|it| !it.is_empty()).unwrap_or(answer.text("access_token"));
        Ok(format!("Bearer {token}"))
    }
}

fn store(folder: &Path, bytes: &[u8]) -> io::Result<String> {
    let name = hex(&Sha256::digest(bytes));
    fs::write(folder.join("blobs/sha256").join(&name), bytes)?;
    Ok(format!("sha256:{name}"))
}

/// The digest of the manifest for this architecture.
fn of_this_machine(index: &Value) -> Option<String> {
    let fits = |it: &&Value| it.text_at(&["platform", "architecture"]) == crate::api::http::arch() && it.text_at(&["platform", "os"]) == "linux";
    index.items_at(&["manifests"]).iter().find(fits).map(|it| it.text("digest").to_owned())
}

/// The credentials in a Secret of type `kubernetes.io/dockerconfigjson`.
pub fn credentials(config: &[u8]) -> Vec<Credential> {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let auths = config.get("auths").and_then(Value::as_object);
    let one = |(host, entry): (&String, &Value)| {
        let host = host.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or_default();
        let host = if host == "index.docker.io" { HUB.0 } else { host };
        let basic = match entry.text("auth") {
            "" => BASE64.encode(format!("{}:{}", entry.text("username"), entry.text("password"))),
            auth => auth.to_owned(),
        };
        Credential { host: host.to_owned(), basic }
    };
    auths.into_iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let cases = [
            ("web", ("docker.io", "library/web", "latest")),
            ("localhost:5000/a/b:1", ("localhost:5000", "a/b", "1")),
            ("r.example.com/a:1@sha256:00", ("r.example.com", "a", "sha256:00")),
        ];
        for (name, (registry, repository, reference)) in cases {
            let expected = Reference { registry: registry.to_owned(), repository: repository.to_owned(), reference: reference.to_owned() };
            assert_eq!(Reference::parse(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn docker_configurations_hold_credentials() {
        let config = json!({"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}, "r.example.com": {"username": "a", "password": "b"}}}).to_string();
        let own = |host: &str| Credential { host: host.to_owned(), basic: "YTpi".to_owned() };
        assert_eq!(credentials(config.as_bytes()), [own("docker.io"), own("r.example.com")]);
    }
}
