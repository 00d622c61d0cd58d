//! Service-account tokens: signed, bound, expiring (KEP-1205); the issuer's key and its discovery documents.
//!
//! A token is a JWS in compact form, ES256. The few lines that this takes stand here over `ring`: a JWT library would want its
//! cryptography installed once for the whole process, and would check claims by rules that are not Kubernetes' own.
//! Source: kubernetes `pkg/serviceaccount/{claims,jwt,openidmetadata}.go`.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::identity::User;
use crate::{
    meta::{Meta, Value},
    store::{Key, Stored},
};

/// `--service-account-issuer`; also the one audience of the API server.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub const OPENID_CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
pub const JWKS_PATH: &str = "/openid/v1/jwks";

/// How far clocks may differ (`jwt.DefaultLeeway`); a deleted object's tokens live on as long.
const LEEWAY_SECONDS: i64 = 60;
/// An uncompressed point on P-256 behind this is a `SubjectPublicKeyInfo`, from whose digest the key's id is made.
const P256_PUBLIC_KEY_INFO: &[u8] =
    &[0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0];
/// No token of ours comes near; longer ones are not looked at.
const TOKEN_MAX: usize = 16 << 10;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// `user.Info` extra that names the credential: `JTI=…`, `X509SHA256=…`.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Finds objects by key in some snapshot.
pub type Find<'a> = &'a dyn Fn(&Key) -> Option<Arc<Stored>>;

/// The issuer: signs tokens and verifies them.
pub struct Tokens {
    issuer: String,
    audiences: Vec<String>,
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

#[derive(Debug, thiserror::Error)]
#[error("the service-account key is not a P-256 key in PKCS#8: {0}")]
pub struct BadKey(String);

/// What a token is about and how long it lives.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    pub bound: Bound,
    pub audiences: Vec<String>,
    pub seconds: i64,
    /// After this many seconds the use of the token is remarked, though still accepted.
    pub warn_after_seconds: Option<i64>,
}

/// The account and the objects whose end is the token's end: its private claims.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(rename = "serviceaccount")]
    pub account: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// The second from which on the use of the token is remarked.
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Reference {
    pub fn to(object: &Value) -> Self {
        Self { name: object.name().to_owned(), uid: object.uid().to_owned() }
    }
}

/// A token that holds: whose it is, and which of the asked audiences it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub user: User,
    pub audiences: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kid: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audience,
    exp: i64,
    #[serde(default)]
    iat: i64,
    iss: String,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
    #[serde(default)]
    nbf: i64,
    sub: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// A new signing key, as PKCS#8 DER.
pub fn generate_key() -> Vec<u8> {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    document.expect("the system's random numbers are at hand").as_ref().to_vec()
}

impl Tokens {
    pub fn new(issuer: &str, signing_key_pkcs8: &[u8]) -> Result<Self, BadKey> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, signing_key_pkcs8, &random).map_err(|why| BadKey(why.to_string()))?;
        let info = [P256_PUBLIC_KEY_INFO, key.public_key().as_ref()].concat();
        let key_id = encode(digest::digest(&digest::SHA256, &info).as_ref());
        Ok(Self { issuer: issuer.to_owned(), audiences: vec![issuer.to_owned()], key, key_id, random })
    }

    /// The audiences of the API server itself: what a token is for unless it says otherwise.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The signed token of `grant`, valid from `now` on.
    pub fn issue(&self, grant: Grant, now: Timestamp) -> String {
        let now = now.as_second();
        let claims = Claims {
            aud: Audience::Many(grant.audiences),
            exp: now + grant.seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now,
            sub: User::service_account(&grant.bound.namespace, &grant.bound.account.name).name,
            kubernetes: Bound { warnafter: grant.warn_after_seconds.map(|it| now + it), ..grant.bound },
        };
        self.sign(&Header { alg: "ES256".to_owned(), kid: self.key_id.clone() }, &claims)
    }

    fn sign(&self, header: &Header, claims: &Claims) -> String {
        let part = |json: serde_json::Result<Vec<u8>>| encode(&json.expect("texts and numbers serialise"));
        let message = format!("{}.{}", part(serde_json::to_vec(header)), part(serde_json::to_vec(claims)));
        let signature = self.key.sign(&self.random, message.as_bytes()).expect("the system's random numbers are at hand");
        format!("{message}.{}", encode(signature.as_ref()))
    }

    /// Whose token it is. `audiences` are those asked for; empty means the API server's own. `None` for what is no token of this
    /// issuer; the error says in upstream's words what is wrong with one that is.
    pub fn verify(&self, token: &str, audiences: &[String], now: Timestamp, find: Find<'_>) -> Result<Option<Verified>, String> {
        let Some((header, claims, message, signature)) = self.decode(token) else { return Ok(None) };
        if header.alg != "ES256" || !(header.kid.is_empty() || header.kid == self.key_id) {
            return Err("invalid signature, no keys found".to_owned());
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(message.as_bytes(), &signature).map_err(|_| "go-jose/go-jose: error in cryptographic primitive".to_owned())?;
        let audiences = self.common_audiences(&claims.aud, audiences)?;
        check_times(&claims, now)?;
        check_bound(&claims.kubernetes, now, find)?;
        Ok(Some(Verified { user: user_of(&claims), audiences }))
    }

    /// The parts of a token that names this issuer.
    fn decode<'a>(&self, token: &'a str) -> Option<(Header, Claims, &'a str, Vec<u8>)> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header = serde_json::from_slice(&decode(header)?).ok()?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).ok()?;
        (claims.iss == self.issuer).then_some((header, claims, message, decode(signature)?))
    }

    fn common_audiences(&self, of_token: &Audience, asked: &[String]) -> Result<Vec<String>, String> {
        let asked = if asked.is_empty() { &self.audiences } else { asked };
        let of_token = match of_token {
            Audience::Many(none) if none.is_empty() => &self.audiences,
            Audience::Many(many) => many,
            Audience::One(one) => std::slice::from_ref(one),
        };
        let common: Vec<String> = of_token.iter().filter(|it| asked.contains(it)).cloned().collect();
        match common.is_empty() {
            true => Err(format!("token audiences {} is invalid for the target audiences {}", quoted(of_token), quoted(asked))),
            false => Ok(common),
        }
    }

    /// `/.well-known/openid-configuration`; `host` is the address under which clients reach the server.
    pub fn openid_configuration(&self, host: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{host}{JWKS_PATH}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`, of media type `application/jwk-set+json`.
    pub fn jwks(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": encode(x), "y": encode(y)}]})
    }
}

/// `["a" "b"]`, as Go prints a list of texts with `%q`.
pub fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|it| format!("{it:?}")).collect();
    format!("[{}]", texts.join(" "))
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), String> {
    let now = now.as_second();
    let wrong = match () {
        () if now + LEEWAY_SECONDS < claims.nbf => "service account token is not valid yet",
        () if now - LEEWAY_SECONDS > claims.exp => "service account token has expired",
        () if now + LEEWAY_SECONDS < claims.iat => "service account token is issued in the future",
        () => return Ok(()),
    };
    Err(wrong.to_owned())
}

/// The account, and the one object that the token is bound to, must still be the ones that they were.
fn check_bound(bound: &Bound, now: Timestamp, find: Find<'_>) -> Result<(), String> {
    let (namespace, account) = (bound.namespace.as_str(), &bound.account);
    let Some(stored) = find(&Key::new("serviceaccounts", namespace, &account.name)) else {
        return Err(format!("serviceaccounts {:?} not found", account.name));
    };
    if *stored.header.uid != *account.uid {
        return Err(format!("service account UID ({}) does not match claim ({})", stored.header.uid, account.uid));
    }
    if is_deleted(&stored, now) {
        return Err(format!("service account {namespace}/{} has been deleted", account.name));
    }
    // A pod's token does not end with the node.
    let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
    let objects = [("secret", namespace, bound.secret.as_ref()), ("pod", namespace, bound.pod.as_ref()), ("node", "", node)];
    objects.into_iter().try_for_each(|(what, namespace, reference)| reference.map_or(Ok(()), |it| check_reference(what, namespace, it, now, find)))
}

fn check_reference(what: &str, namespace: &str, reference: &Reference, now: Timestamp, find: Find<'_>) -> Result<(), String> {
    let found = find(&Key::new(&format!("{what}s"), namespace, &reference.name));
    match found {
        Some(it) if *it.header.uid != *reference.uid => {
            Err(format!("{what} UID ({}) does not match service account {what} ref claim ({})", it.header.uid, reference.uid))
        }
        Some(it) if !is_deleted(&it, now) => Ok(()),
        _ => Err("service account token has been invalidated".to_owned()),
    }
}

/// Deletion began longer ago than the leeway. Objects are parsed only if they may hold a deletionTimestamp at all.
fn is_deleted(stored: &Stored, now: Timestamp) -> bool {
    const FIELD: &[u8] = b"\"deletionTimestamp\"";
    if !stored.json.text().windows(FIELD.len()).any(|it| it == FIELD) {
        return false;
    }
    let object = stored.value();
    let began = object.deletion_timestamp().and_then(|it| it.parse::<Timestamp>().ok());
    began.is_some_and(|it| it.as_second() < now.as_second() - LEEWAY_SECONDS)
}

/// `ServiceAccountInfo.UserInfo`.
fn user_of(claims: &Claims) -> User {
    let bound = &claims.kubernetes;
    let mut user = User { uid: bound.account.uid.clone(), ..User::service_account(&bound.namespace, &bound.account.name) };
    let of = |reference: &Option<Reference>, names: [&'static str; 2]| reference.clone().map(|it| [(names[0], it.name), (names[1], it.uid)]);
    let objects = [of(&bound.pod, [POD_NAME, POD_UID]), of(&bound.node, [NODE_NAME, NODE_UID])].into_iter().flatten().flatten();
    let credential = (!claims.jti.is_empty()).then(|| (CREDENTIAL_ID, format!("JTI={}", claims.jti)));
    user.extra = objects.chain(credential).filter(|it| !it.1.is_empty()).map(|(key, value)| (key.to_owned(), vec![value])).collect();
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(uid: &str, deleted: &str) -> Arc<Stored> {
        let mut object = json!({"metadata": {"uid": uid}});
        if !deleted.is_empty() {
            object.set_metadata("deletionTimestamp", deleted);
        }
        let header = crate::store::Header { uid: uid.into(), ..Default::default() };
        Arc::new(Stored { key: Key::new("x", "", ""), revision: 1, json: object.to_string().into(), header, forms: Default::default() })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reference(name: &str, uid: &str) -> Reference {
        Reference { name: name.to_owned(), uid: uid.to_owned() }
    }

    const NOW: i64 = 1_800_000_000;

    fn grant() -> Grant {
        let (pod, node) = (Some(reference("web", "p1")), Some(reference("n1", "u9")));
        let bound = Bound { namespace: "default".into(), account: reference("bot", "s1"), pod, node, ..Bound::default() };
        Grant { bound, audiences: vec![ISSUER.into()], seconds: 600, ..Grant::default() }
    }

    #[test]
    fn a_token_tells_whose_it_is() {
        let tokens = Tokens::new(ISSUER, &generate_key()).unwrap();
        let token = tokens.issue(grant(), at(NOW));
        let find = |key: &Key| Some(stored(if &*key.resource == "pods" { "p1" } else { "s1" }, ""));
        let user = tokens.verify(&token, &[], at(NOW), &find).unwrap().unwrap().user;
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:default:bot", "s1"));
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
        let extra: Vec<_> = [POD_NAME, POD_UID, NODE_NAME, NODE_UID].iter().map(|it| user.extra[*it][0].as_str()).collect();
        assert_eq!(extra, ["web", "p1", "n1", "u9"]);
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("JTI="));
    }

    #[test]
    fn tokens_end_with_their_time_and_their_objects() {
        let tokens = Tokens::new(ISSUER, &generate_key()).unwrap();
        let token = tokens.issue(grant(), at(NOW));
        let long_ago = at(NOW - 100).to_string();
        let just_now = at(NOW - 10).to_string();
        // (seconds later, account uid and deletion, pod uid and deletion, expected error)
        let cases = [
            (0, ("s1", ""), ("p1", ""), ""),
            (659, ("s1", ""), ("p1", ""), ""),
            (661, ("s1", ""), ("p1", ""), "service account token has expired"),
            (-61, ("s1", ""), ("p1", ""), "service account token is not valid yet"),
            (0, ("s2", ""), ("p1", ""), "service account UID (s2) does not match claim (s1)"),
            (0, ("s1", &*long_ago), ("p1", ""), "service account default/bot has been deleted"),
            (0, ("", ""), ("p1", ""), "serviceaccounts \"bot\" not found"),
            (0, ("s1", ""), ("p2", ""), "pod UID (p2) does not match service account pod ref claim (p1)"),
            (0, ("s1", ""), ("", ""), "service account token has been invalidated"),
            (0, ("s1", ""), ("p1", &*long_ago), "service account token has been invalidated"),
            (0, ("s1", ""), ("p1", &*just_now), ""),
        ];
        for (later, account, pod, expected) in cases {
            let find = |key: &Key| {
                let (uid, deleted) = if &*key.resource == "pods" { pod } else { account };
                (!uid.is_empty()).then(|| stored(uid, deleted))
            };
            let error = tokens.verify(&token, &[], at(NOW + later), &find).err().unwrap_or_default();
            assert_eq!(error, expected, "{later} {account:?} {pod:?}");
        }
    }

    #[test]
    fn audiences_must_meet() {
        let tokens = Tokens::new(ISSUER, &generate_key()).unwrap();
        let find = |_: &Key| Some(stored("s1", ""));
        let cases = [
            (vec![ISSUER], vec![], Ok(vec![ISSUER])),
            (vec!["vault", ISSUER], vec!["vault", "x"], Ok(vec!["vault"])),
            (vec!["vault"], vec![], Err(format!("token audiences [\"vault\"] is invalid for the target audiences [\"{ISSUER}\"]"))),
        ];
        for (of_token, asked, expected) in cases {
            let texts = |list: &[&str]| list.iter().map(|it| it.to_string()).collect::<Vec<_>>();
            let bound = Bound { pod: None, node: None, ..grant().bound };
            let token = tokens.issue(Grant { bound, audiences: texts(&of_token), ..grant() }, at(NOW));
            let got = tokens.verify(&token, &texts(&asked), at(NOW), &find).map(|it| it.unwrap().audiences);
            assert_eq!(got, expected.map(|it| texts(&it)));
        }
    }

    #[test]
    fn foreign_and_tampered_tokens_are_refused() {
        let tokens = Tokens::new(ISSUER, &generate_key()).unwrap();
        let other_issuer = Tokens::new("https://elsewhere", &generate_key()).unwrap().issue(grant(), at(NOW));
        let other_key = Tokens::new(ISSUER, &generate_key()).unwrap().issue(grant(), at(NOW));
        let own = tokens.issue(grant(), at(NOW));
        let (message, signature) = own.rsplit_once('.').unwrap();
        let (header, claims) = message.split_once('.').unwrap();
        let admin = String::from_utf8(decode(claims).unwrap()).unwrap().replace("bot", "admin");
        let forged = format!("{header}.{}.{signature}", encode(admin.as_bytes()));
        let unsigned = format!("{}.{claims}.", encode(b"{\"alg\":\"none\"}"));
        let find = |key: &Key| Some(stored(if &*key.resource == "pods" { "p1" } else { "s1" }, ""));
        let cases = [("", true), ("abc", true), ("a.b.c", true), (&other_issuer, true), (&other_key, false), (&forged, false), (&unsigned, false)];
        for (token, is_foreign) in cases {
            let got = tokens.verify(token, &[], at(NOW), &find);
            assert!(if is_foreign { got == Ok(None) } else { got.is_err() }, "{token}: {got:?}");
        }
    }

    #[test]
    fn the_documents_describe_the_key() {
        let tokens = Tokens::new(ISSUER, &generate_key()).unwrap();
        let keys = tokens.jwks();
        assert_eq!(keys["keys"][0]["kid"], tokens.key_id.as_str());
        let point = [vec![4], decode(keys["keys"][0].text("x")).unwrap(), decode(keys["keys"][0].text("y")).unwrap()].concat();
        assert_eq!(point, tokens.key.public_key().as_ref());
        assert_eq!(tokens.openid_configuration("h:1")["jwks_uri"], "https://h:1/openid/v1/jwks");
    }
}
