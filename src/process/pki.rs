//! The cluster's certificates: an authority of its own, what it has signed for each component, and TLS built from them.
//!
//! All are kept as PEM files in one directory, keys readable by their owner only. A certificate is reused at the next start unless it is about to
//! expire or is no longer the one that is wanted; the authority and the key for service-account tokens stay for good.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::api::tokens;

/// As kubeadm has it.
const AUTHORITY_DAYS: i64 = 3650;
const CERTIFICATE_DAYS: i64 = 365;
/// A certificate with less left is made anew at start: a process may run this long without one.
const RENEW_BEFORE_DAYS: i64 = 90;
/// Certificates begin this much in the past, for machines whose clocks are behind.
const BACKDATE_DAYS: i64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("certificate: {0}")]
    Certificate(String),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

type Result<T> = std::result::Result<T, Error>;

/// A certificate and its key, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub certificate: String,
    pub key: String,
}

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// DNS names and addresses under which it serves.
    pub names: Vec<String>,
    pub is_server: bool,
    pub is_client: bool,
}

impl Identity {
    /// The API server's serving certificate: the names of Service `kubernetes` and those given.
    pub fn api_server(names: &[String]) -> Self {
        let fixed = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];
        let names = fixed.map(str::to_owned).into_iter().chain(["127.0.0.1".to_owned(), "::1".to_owned()]).chain(names.iter().cloned());
        Self { common_name: "kube-apiserver".to_owned(), names: distinct(names), is_server: true, ..Self::default() }
    }

    /// The user who set up the cluster.
    pub fn admin() -> Self {
        Self::client("kubernetes-admin", &["system:masters"])
    }

    /// The API server as a client of nodes.
    pub fn kubelet_client() -> Self {
        Self::client("kube-apiserver-kubelet-client", &[])
    }

    /// A node: client of the API server, and server of its own API.
    pub fn node(name: &str, addresses: &[IpAddr]) -> Self {
        let names = [name.to_owned()].into_iter().chain(addresses.iter().map(ToString::to_string));
        Self { names: distinct(names), is_server: true, ..Self::client(&format!("system:node:{name}"), &["system:nodes"]) }
    }

    pub fn client(name: &str, groups: &[&str]) -> Self {
        let organizations = groups.iter().map(|it| (*it).to_owned()).collect();
        Self { common_name: name.to_owned(), organizations, is_client: true, ..Self::default() }
    }
}

fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|it| seen.insert(it.clone())).collect()
}

/// Signs certificates.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn generate(now: Timestamp) -> Result<Self> {
        let mut params = params("kubernetes", &[], AUTHORITY_DAYS, now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(certificate_error)?;
        let certificate = params.self_signed(&key).map_err(certificate_error)?;
        Self::read(Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    pub fn read(credential: Credential) -> Result<Self> {
        let key = KeyPair::from_pem(&credential.key).map_err(certificate_error)?;
        let issuer = Issuer::from_ca_cert_pem(&credential.certificate, key).map_err(certificate_error)?;
        Ok(Self { certificate: credential.certificate, key: credential.key, issuer })
    }

    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate of `identity` with a new key.
    pub fn issue(&self, identity: &Identity, now: Timestamp) -> Result<Credential> {
        let mut params = params(&identity.common_name, &identity.organizations, CERTIFICATE_DAYS, now);
        params.subject_alt_names = CertificateParams::new(identity.names.clone()).map_err(certificate_error)?.subject_alt_names;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [(identity.is_server, ExtendedKeyUsagePurpose::ServerAuth), (identity.is_client, ExtendedKeyUsagePurpose::ClientAuth)];
        params.extended_key_usages = usages.into_iter().filter_map(|(is_wanted, usage)| is_wanted.then_some(usage)).collect();
        let key = KeyPair::generate().map_err(certificate_error)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(certificate_error)?;
        Ok(Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Whether `credential` is of this authority, says what `identity` wants and lasts long enough.
    fn is_good(&self, credential: &Credential, identity: &Identity, now: Timestamp) -> bool {
        let leaf = CertificateDer::from_pem_slice(credential.certificate.as_bytes());
        let authority = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let (Ok(leaf), Ok(authority), Ok(_)) = (leaf, authority, KeyPair::from_pem(&credential.key)) else { return false };
        let (Ok((_, leaf)), Ok((_, authority))) = (X509Certificate::from_der(&leaf), X509Certificate::from_der(&authority)) else { return false };
        let lasts = leaf.validity().not_after.timestamp() - now.as_second() > RENEW_BEFORE_DAYS * 86_400;
        lasts && leaf.verify_signature(Some(authority.public_key())).is_ok() && identity_of(&leaf).is_some_and(|it| it.is_same(identity))
    }
}

impl Identity {
    fn is_same(&self, other: &Identity) -> bool {
        let sets = |it: &Identity| (it.organizations.iter().cloned().collect::<BTreeSet<_>>(), it.names.iter().cloned().collect::<BTreeSet<_>>());
        (&self.common_name, self.is_client, self.is_server, sets(self)) == (&other.common_name, other.is_client, other.is_server, sets(other))
    }
}

fn identity_of(certificate: &X509Certificate<'_>) -> Option<Identity> {
    let subject = certificate.subject();
    let usage = certificate.extended_key_usage().ok()??.value;
    let names = certificate.subject_alternative_name().ok()?.map(|it| it.value.general_names.iter().filter_map(name_text).collect());
    Some(Identity {
        common_name: subject.iter_common_name().next()?.as_str().ok()?.to_owned(),
        organizations: subject.iter_organization().filter_map(|it| Some(it.as_str().ok()?.to_owned())).collect(),
        names: names.unwrap_or_default(),
        is_server: usage.server_auth,
        is_client: usage.client_auth,
    })
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            _ => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    }
}

fn params(common_name: &str, organizations: &[String], days: i64, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    let today = now.to_zoned(TimeZone::UTC).date();
    let day = |days: i64| {
        let date = today.saturating_add(days.days());
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    (params.not_before, params.not_after) = (day(-BACKDATE_DAYS), day(days));
    params
}

fn certificate_error(why: rcgen::Error) -> Error {
    Error::Certificate(why.to_string())
}

/// The directory that holds the authority and what it has signed.
pub struct Pki {
    directory: PathBuf,
    authority: Authority,
}

impl Pki {
    /// Opens the directory; makes it, and the authority in it, the first time.
    pub fn open(directory: &Path, now: Timestamp) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|source| Error::File { path: directory.to_owned(), source })?;
        let authority = match read_pair(directory, "ca")? {
            Some(credential) => Authority::read(credential)?,
            None => {
                let authority = Authority::generate(now)?;
                write_pair(directory, "ca", &Credential { certificate: authority.certificate.clone(), key: authority.key.clone() })?;
                authority
            }
        };
        Ok(Self { directory: directory.to_owned(), authority })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The certificate kept as `{file}.crt` and `{file}.key`, made anew where it is missing, about to expire or not of `identity`.
    pub fn credential(&self, file: &str, identity: &Identity, now: Timestamp) -> Result<Credential> {
        if let Some(credential) = read_pair(&self.directory, file)?.filter(|it| self.authority.is_good(it, identity, now)) {
            return Ok(credential);
        }
        let credential = self.authority.issue(identity, now)?;
        write_pair(&self.directory, file, &credential)?;
        Ok(credential)
    }

    /// The key that signs service-account tokens, as PKCS#8 DER; made the first time.
    pub fn service_account_key(&self) -> Result<Vec<u8>> {
        let path = self.directory.join("sa.key");
        match read(&path)? {
            Some(pem) => match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
                Ok(key) => Ok(key.secret_der().to_vec()),
                Err(why) => Err(Error::Certificate(format!("{}: {why}", path.display()))),
            },
            None => {
                let key = tokens::generate_key();
                let lines: Vec<String> = STANDARD.encode(&key).as_bytes().chunks(64).map(|it| String::from_utf8_lossy(it).into_owned()).collect();
                write(&path, &format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")), 0o600)?;
                Ok(key)
            }
        }
    }
}

fn read_pair(directory: &Path, file: &str) -> Result<Option<Credential>> {
    let pair = (read(&directory.join(format!("{file}.crt")))?, read(&directory.join(format!("{file}.key")))?);
    Ok(match pair {
        (Some(certificate), Some(key)) => Some(Credential { certificate, key }),
        _ => None,
    })
}

/// The key is written first: a certificate without its key counts as missing, and so does a key alone.
fn write_pair(directory: &Path, file: &str, credential: &Credential) -> Result<()> {
    write(&directory.join(format!("{file}.key")), &credential.key, 0o600)?;
    write(&directory.join(format!("{file}.crt")), &credential.certificate, 0o644)
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let written = (|| {
        fs::remove_file(&new).or_else(|why| if why.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(why) })?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(|source| Error::File { path: path.to_owned(), source })
}

/// TLS for a server. Clients may present a certificate; one that `client_authority` (PEM) has not signed ends the handshake.
pub fn server_config(credential: &Credential, client_authority: &str) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_authority)?), provider.clone()).allow_unauthenticated();
    let verifier = verifier.build().map_err(|why| Error::Certificate(why.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_client_cert_verifier(verifier);
    let (chain, key) = parse(credential)?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS for a client that trusts `authority` (PEM) and, with `credential`, shows who it is.
pub fn client_config(authority: &str, credential: Option<&Credential>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots(authority)?);
    match credential.map(parse).transpose()? {
        Some((chain, key)) => Ok(builder.with_client_auth_cert(chain, key)?),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn roots(authority: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.map_err(|why| Error::Certificate(why.to_string()))?)?;
    }
    Ok(roots)
}

fn parse(credential: &Credential) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(credential.certificate.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes());
    let error = |why: rustls::pki_types::pem::Error| Error::Certificate(why.to_string());
    Ok((chain.map_err(error)?, key.map_err(error)?))
}

/// A kubeconfig with one cluster and one user, everything embedded. JSON is YAML.
pub fn kubeconfig(server_url: &str, authority: &str, credential: &Credential) -> String {
    let cluster = json!({"server": server_url, "certificate-authority-data": STANDARD.encode(authority)});
    let user = json!({
        "client-certificate-data": STANDARD.encode(&credential.certificate),
        "client-key-data": STANDARD.encode(&credential.key),
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "howdah", "cluster": cluster}],
        "contexts": [{"name": "howdah", "context": {"cluster": "howdah", "user": "kubernetes-admin"}}],
        "current-context": "howdah",
        "users": [{"name": "kubernetes-admin", "user": user}],
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::base::clock;

    #[test]
    fn certificates_are_reused_until_they_no_longer_fit() {
        let directory = tempfile::tempdir().unwrap();
        let now = clock::now();
        let identity = Identity::api_server(&["10.96.0.1".to_owned(), "fd00::1".to_owned(), "localhost".to_owned()]);
        let first = Pki::open(directory.path(), now).unwrap().credential("apiserver", &identity, now).unwrap();
        let pki = Pki::open(directory.path(), now).unwrap();
        let later = |days: i64| now + (24 * days).hours();
        let other = Identity::api_server(&["10.96.0.2".to_owned()]);
        // (identity, days later, whether the first certificate is still good)
        let cases = [(&identity, 0, true), (&identity, 274, true), (&identity, 276, false), (&other, 0, false)];
        for (identity, days, expected) in cases {
            assert_eq!(pki.authority.is_good(&first, identity, later(days)), expected, "{days}");
        }
        assert_eq!(pki.credential("apiserver", &identity, now).unwrap(), first);
        assert_ne!(pki.credential("apiserver", &other, now).unwrap(), first);
        assert!(!Authority::generate(now).unwrap().is_good(&first, &identity, now));
    }

    #[test]
    fn keys_are_their_owners_secret_and_stay() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), clock::now()).unwrap();
        let key = pki.service_account_key().unwrap();
        assert_eq!(pki.service_account_key().unwrap(), key);
        assert!(tokens::Tokens::new("i", &key).is_ok());
        for file in ["ca.key", "sa.key"] {
            assert_eq!(fs::metadata(directory.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn a_handshake_tells_the_client_or_nobody() {
        let now = clock::now();
        let authority = Authority::generate(now).unwrap();
        let other = Authority::generate(now).unwrap();
        let node = authority.issue(&Identity::node("n1", &["127.0.0.1".parse().unwrap()]), now).unwrap();
        let server = Arc::new(server_config(&node, authority.certificate()).unwrap());
        let admin = Identity::admin();
        // (trusted authority, client's credential, expected certificates at the server or failure)
        let cases = [
            (&authority, None, Some(0)),
            (&authority, Some(authority.issue(&admin, now).unwrap()), Some(1)),
            (&authority, Some(other.issue(&admin, now).unwrap()), None),
            (&other, None, None),
        ];
        for (trusted, credential, expected) in cases {
            let client = Arc::new(client_config(trusted.certificate(), credential.as_ref()).unwrap());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let accept = async {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = TlsAcceptor::from(server.clone()).accept(stream).await.ok()?;
                stream.write_all(b"x").await.ok()?;
                Some(stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len))
            };
            let connect = async {
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
                let mut stream = TlsConnector::from(client).connect(name, stream).await.ok()?;
                stream.read_exact(&mut [0]).await.ok()
            };
            let (accepted, connected) = tokio::join!(accept, connect);
            assert_eq!(connected.and(accepted), expected);
        }
    }

    #[test]
    fn a_kubeconfig_holds_everything() {
        let authority = Authority::generate(clock::now()).unwrap();
        let admin = authority.issue(&Identity::admin(), clock::now()).unwrap();
        let config: kube::config::Kubeconfig = serde_json::from_str(&kubeconfig("https://localhost:6443", authority.certificate(), &admin)).unwrap();
        assert_eq!(config.clusters[0].cluster.as_ref().unwrap().server.as_deref(), Some("https://localhost:6443"));
        assert!(config.auth_infos[0].auth_info.as_ref().unwrap().client_key_data.is_some());
        assert_eq!(config.current_context.as_deref(), Some("howdah"));
    }
}
