//! Certificates: an authority, what it signs for each component, requests to it, and TLS by credentials that change while it serves.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

const DAY: Duration = Duration::from_secs(86_400);
/// As kubeadm has it.
const AUTHORITY_FOR: Duration = DAY.saturating_mul(3650);
const CERTIFICATE_FOR: Duration = DAY.saturating_mul(365);
/// Certificates begin this much in the past, for machines whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("certificate: {0}")]
    Certificate(String),
    #[error("certificate: {0}")]
    Signing(#[from] rcgen::Error),
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

    /// The API server as a client of other servers of its own kind.
    pub fn front_proxy() -> Self {
        Self::client("front-proxy-client", &[])
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
    credential: Credential,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The cluster's authority, with a new key.
    pub fn generate(now: Timestamp) -> Result<Self> {
        Self::named("kubernetes", now)
    }

    /// A new authority with a key of its own.
    pub fn named(name: &str, now: Timestamp) -> Result<Self> {
        let mut params = params(&Identity::client(name, &[]), AUTHORITY_FOR, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Self::read(&Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    pub fn read(credential: &Credential) -> Result<Self> {
        let issuer = Issuer::from_ca_cert_pem(&credential.certificate, KeyPair::from_pem(&credential.key)?)?;
        Ok(Self { credential: credential.clone(), issuer })
    }

    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    pub fn certificate(&self) -> &str {
        &self.credential.certificate
    }

    /// A certificate of `identity` with a new key.
    pub fn issue(&self, identity: &Identity, now: Timestamp) -> Result<Credential> {
        let mut params = params(identity, CERTIFICATE_FOR, now)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [(identity.is_server, ExtendedKeyUsagePurpose::ServerAuth), (identity.is_client, ExtendedKeyUsagePurpose::ClientAuth)];
        params.extended_key_usages = usages.into_iter().filter_map(|(is_wanted, usage)| is_wanted.then_some(usage)).collect();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The certificate that `request` asks for, with the usages of the API's CertificateSigningRequest (`digital signature`, `client auth` …).
    pub fn sign(&self, request: Request, usages: &[String], lasts: Duration, now: Timestamp) -> Result<String> {
        let mut signed = request.asked;
        let params = &mut signed.params;
        params.is_ca = IsCa::NoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = usages.iter().filter_map(|it| key_usage(it)).collect();
        params.extended_key_usages = usages.iter().filter_map(|it| extended_usage(it)).collect();
        set_validity(params, lasts, now);
        Ok(signed.signed_by(&self.issuer)?.pem())
    }
}

fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    Some(match name {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        _ => return None,
    })
}

fn extended_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match name {
        "any" => ExtendedKeyUsagePurpose::Any,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "code signing" => ExtendedKeyUsagePurpose::CodeSigning,
        "email protection" => ExtendedKeyUsagePurpose::EmailProtection,
        "timestamping" => ExtendedKeyUsagePurpose::TimeStamping,
        "ocsp signing" => ExtendedKeyUsagePurpose::OcspSigning,
        _ => return None,
    })
}

/// A request for a certificate (PKCS#10) whose signature has been checked.
pub struct Request {
    /// The subject, and the DNS names and addresses.
    pub identity: Identity,
    /// It asks for names of other kinds too: mail addresses, URIs.
    pub has_other_names: bool,
    asked: CertificateSigningRequestParams,
}

impl Request {
    pub fn read(pem: &str) -> Result<Self> {
        let asked = CertificateSigningRequestParams::from_pem(pem)?;
        let is_named = |it: &&rcgen::SanType| matches!(it, rcgen::SanType::DnsName(_) | rcgen::SanType::IpAddress(_));
        let (known, other): (Vec<_>, Vec<_>) = asked.params.subject_alt_names.iter().partition(is_named);
        let names = known.into_iter().filter_map(|it| match it {
            rcgen::SanType::DnsName(name) => Some(name.to_string()),
            rcgen::SanType::IpAddress(ip) => Some(ip.to_string()),
            _ => None,
        });
        let texts = |kind: DnType| asked.params.distinguished_name.get(&kind).and_then(text).into_iter();
        let identity = Identity {
            common_name: texts(DnType::CommonName).next().unwrap_or_default(),
            organizations: texts(DnType::OrganizationName).collect(),
            names: names.collect(),
            ..Identity::default()
        };
        Ok(Self { identity, has_other_names: !other.is_empty(), asked })
    }

    /// A new key, and the request for a certificate of `identity` for it; both as PEM.
    pub fn make(identity: &Identity) -> Result<(String, String)> {
        let mut params = CertificateParams::new(identity.names.clone())?;
        params.distinguished_name = distinguished_name(identity);
        let key = KeyPair::generate()?;
        Ok((key.serialize_pem(), params.serialize_request(&key)?.pem()?))
    }
}

fn text(value: &rcgen::DnValue) -> Option<String> {
    match value {
        rcgen::DnValue::Utf8String(text) => Some(text.clone()),
        rcgen::DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        rcgen::DnValue::Ia5String(text) => Some(text.as_str().to_owned()),
        rcgen::DnValue::TeletexString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn params(identity: &Identity, lasts: Duration, now: Timestamp) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(identity.names.clone())?;
    params.distinguished_name = distinguished_name(identity);
    set_validity(&mut params, lasts, now);
    Ok(params)
}

fn distinguished_name(identity: &Identity) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    identity.organizations.iter().for_each(|it| name.push(DnType::OrganizationName, it.as_str()));
    name.push(DnType::CommonName, identity.common_name.as_str());
    name
}

fn set_validity(params: &mut CertificateParams, lasts: Duration, now: Timestamp) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_second().unsigned_abs());
    (params.not_before, params.not_after) = (now - BACKDATE, now + lasts);
}

/// What `read` finds in a certificate (PEM).
fn within<T>(certificate: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T> {
    let wrong = |why: &dyn std::fmt::Display| Error::Certificate(why.to_string());
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|why| wrong(&why))?;
    X509Certificate::from_der(&der).map(|(_, parsed)| read(&parsed)).map_err(|why| wrong(&why))
}

/// When a certificate (PEM) begins and ends, in seconds since 1970.
pub fn lifetime(certificate: &str) -> Result<(i64, i64)> {
    within(certificate, |it| (it.validity().not_before.timestamp(), it.validity().not_after.timestamp()))
}

/// Whether less than a fifth of a certificate's time is left, or it cannot be read: client-go's manager renews at 70 to 90 %.
pub fn is_due(certificate: &str, now: Timestamp) -> bool {
    !lifetime(certificate).is_ok_and(|(begins, ends)| ends - now.as_second() > (ends - begins) / 5)
}

/// Whether a certificate (PEM) is of `identity`, with all its names, and signed by `authority` (PEM).
pub fn is_of(certificate: &str, identity: &Identity, authority: &str) -> bool {
    let has_signed = |leaf: &X509Certificate<'_>| within(authority, |it| leaf.verify_signature(Some(it.public_key())).is_ok()).unwrap_or(false);
    let is_good = |leaf: &X509Certificate<'_>| {
        let common_name = leaf.subject().iter_common_name().next().and_then(|it| it.as_str().ok());
        let names: BTreeSet<String> = leaf.subject_alternative_name().ok().flatten().into_iter().flat_map(|it| it.value.general_names.iter().filter_map(name_text)).collect();
        common_name == Some(&identity.common_name) && identity.names.iter().all(|it| names.contains(it)) && has_signed(leaf)
    };
    within(certificate, is_good).unwrap_or(false)
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|it| it.to_string())
        }
        _ => None,
    }
}

/// `sha256:…` of an authority's public key: kubeadm's `--discovery-token-ca-cert-hash` (RFC 7469).
pub fn public_key_hash(certificate: &str) -> Result<String> {
    let digest = within(certificate, |it| ::ring::digest::digest(&::ring::digest::SHA256, it.public_key().raw))?;
    let hex: String = digest.as_ref().iter().map(|it| format!("{it:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// How often it is seen whether a first credential has come.
const READY_EVERY: std::time::Duration = std::time::Duration::from_millis(20);

/// A credential that TLS looks up at each handshake, so that it can be replaced while connections are served.
#[derive(Debug, Default)]
pub struct Rotating(ArcSwapOption<CertifiedKey>);

impl Rotating {
    pub fn new(credential: &Credential) -> Result<Arc<Self>> {
        let rotating = Arc::new(Self::default());
        rotating.replace(credential)?;
        Ok(rotating)
    }

    /// Waits for the first credential.
    pub async fn ready(&self) {
        while self.0.load().is_none() {
            tokio::time::sleep(READY_EVERY).await;
        }
    }

    pub fn replace(&self, credential: &Credential) -> Result<()> {
        let (chain, key) = parse(credential)?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for Rotating {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
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
pub fn server_config(credential: Arc<Rotating>, client_authority: &str) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_authority)?), provider.clone()).allow_unauthenticated();
    let verifier = verifier.build().map_err(|why| Error::Certificate(why.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_client_cert_verifier(verifier);
    let mut config = builder.with_cert_resolver(credential);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS for a client that trusts `authority` (PEM) and, with `credential`, shows who it is.
pub fn client_config(authority: &str, credential: Option<Arc<Rotating>>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots(authority)?);
    Ok(match credential {
        Some(credential) => builder.with_client_cert_resolver(credential),
        None => builder.with_no_client_auth(),
    })
}

/// TLS to servers whose certificates are not checked, as upstream's proxy does.
pub fn trusting_any(credential: Option<Arc<Rotating>>) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.expect("ring has TLS 1.2 and 1.3").dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
    match credential {
        Some(credential) => builder.with_client_cert_resolver(credential),
        None => builder.with_no_client_auth(),
    }
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

type Signed = std::result::Result<HandshakeSignatureValid, rustls::Error>;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, message: &[u8], certificate: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Signed {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(&self, message: &[u8], certificate: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Signed {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use super::super::clock;

    #[test]
    fn certificates_are_due_before_they_end() {
        let (now, identity) = (clock::now(), Identity::admin());
        let issued = Authority::generate(now).unwrap().issue(&identity, now).unwrap();
        let later = |days: i64| now + jiff::SignedDuration::from_hours(24 * days);
        assert_eq!([0, 290, 295].map(|it| is_due(&issued.certificate, later(it))), [false, false, true]);
        assert!(is_due("", now));
    }

    #[test]
    fn a_request_is_signed_as_it_asks() {
        let now = clock::now();
        let authority = Authority::generate(now).unwrap();
        let (key, pem) = Request::make(&Identity::node("n1", &["10.0.0.1".parse().unwrap()])).unwrap();
        let request = Request::read(&pem).unwrap();
        let identity = request.identity.clone();
        assert_eq!((identity.common_name.as_str(), identity.organizations.as_slice()), ("system:node:n1", ["system:nodes".to_owned()].as_slice()));
        assert_eq!((identity.names.as_slice(), request.has_other_names), (["n1".to_owned(), "10.0.0.1".to_owned()].as_slice(), false));
        let certificate = authority.sign(request, &["digital signature".into(), "server auth".into()], Duration::from_secs(600), now).unwrap();
        let (begins, ends) = lifetime(&certificate).unwrap();
        assert_eq!((begins, ends), (now.as_second() - 300, now.as_second() + 600));
        assert!(Rotating::new(&Credential { certificate, key }).is_ok());
        assert!(Request::read("nonsense").is_err());
    }

    #[tokio::test]
    async fn a_handshake_tells_the_client_or_nobody() {
        let now = clock::now();
        let authority = Authority::generate(now).unwrap();
        let other = Authority::generate(now).unwrap();
        let node = authority.issue(&Identity::node("n1", &["127.0.0.1".parse().unwrap()]), now).unwrap();
        let server = Arc::new(server_config(Rotating::new(&node).unwrap(), authority.certificate()).unwrap());
        let admin = Identity::admin();
        // (trusted authority, client's credential, expected certificates at the server or failure)
        let cases = [
            (&authority, None, Some(0)),
            (&authority, Some(authority.issue(&admin, now).unwrap()), Some(1)),
            (&authority, Some(other.issue(&admin, now).unwrap()), None),
            (&other, None, None),
        ];
        for (trusted, credential, expected) in cases {
            let client = Arc::new(client_config(trusted.certificate(), credential.map(|it| Rotating::new(&it).unwrap())).unwrap());
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
}
