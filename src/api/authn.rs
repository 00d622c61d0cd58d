//! Authentication: client certificates, service-account tokens, impersonation.
//! Source: apiserver `pkg/authentication/request/{x509,bearertoken,websocket}`, `pkg/endpoints/filters/impersonation`.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use jiff::Timestamp;
use ring::digest;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    bootstrap_tokens,
    identity::{ANONYMOUS, AUTHENTICATED, Attributes, Decision, Peer, UNAUTHENTICATED, User},
    tokens::{CREDENTIAL_ID, Find, Tokens},
    websocket,
};
use crate::{
    base::clock,
    meta::{Result, Status},
    store::Snapshot,
};

/// A WebSocket client in a browser cannot set headers; it offers its token as a subprotocol.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
const IMPERSONATE_USER: &str = "impersonate-user";
const IMPERSONATE_GROUP: &str = "impersonate-group";
const IMPERSONATE_UID: &str = "impersonate-uid";
const IMPERSONATE_EXTRA: &str = "impersonate-extra-";

/// Tells who sends a request.
pub struct Authenticator {
    tokens: Arc<Tokens>,
}

impl Authenticator {
    pub fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens }
    }

    /// The user who sends a request with these headers from this peer; anonymous when it brings no credential.
    /// 401 for a credential that is not valid.
    pub fn authenticate(&self, headers: &HeaderMap, peer: &Peer, snapshot: &Snapshot) -> Result<User> {
        self.authenticate_at(headers, peer, clock::now(), &|key| snapshot.get(key))
    }

    fn authenticate_at(&self, headers: &HeaderMap, peer: &Peer, now: Timestamp, find: Find<'_>) -> Result<User> {
        if let Some(user) = peer.user.clone().or_else(|| of_certificate(peer.certificates.first()?)) {
            return Ok(user);
        }
        let token = match bearer_token(headers) {
            Some(token) => Some(token),
            None => protocol_token(headers)?,
        };
        let Some(token) = token else { return Ok(anonymous()) };
        if let Some(bootstrapper) = bootstrap_tokens::authenticate(&token, now, find) {
            return bootstrapper.map_err(|why| unauthorized(&why));
        }
        match self.tokens.verify(&token, &[], now, find) {
            Ok(Some(verified)) => Ok(verified.user),
            Ok(None) => Err(unauthorized("invalid bearer token")),
            Err(why) => Err(unauthorized(&why)),
        }
    }
}

fn anonymous() -> User {
    User { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..User::default() }
}

/// What is wrong with a credential goes into the log only.
fn unauthorized(why: &str) -> Status {
    tracing::info!(why, "unable to authenticate the request");
    Status::unauthorized()
}

/// The user that a verified certificate names: CN, and O for each group. None without a CN.
fn of_certificate(der: &Vec<u8>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok().filter(|it| !it.is_empty())?.to_owned();
    let mut groups: Vec<String> = subject.iter_organization().filter_map(|it| Some(it.as_str().ok()?.to_owned())).collect();
    groups.push(AUTHENTICATED.to_owned());
    let fingerprint: String = digest::digest(&digest::SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={fingerprint}")])]);
    Some(User { name, groups, extra, ..User::default() })
}

/// The token in an `Authorization: Bearer` header.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let mut parts = value.splitn(3, ' ');
    let is_bearer = parts.next()?.eq_ignore_ascii_case("bearer");
    parts.next().filter(|token| is_bearer && !token.is_empty()).map(str::to_owned)
}

/// The token in a WebSocket subprotocol; at least one other protocol must be offered with it.
fn protocol_token(headers: &HeaderMap) -> Result<Option<String>> {
    if !websocket::is_asked(headers) {
        return Ok(None);
    }
    let (tokens, others): (Vec<&str>, Vec<&str>) = protocols(headers).partition(|it| it.starts_with(BEARER_PROTOCOL));
    let encoded = match tokens.as_slice() {
        [] => return Ok(None),
        [one] => &one[BEARER_PROTOCOL.len()..],
        _ => return Err(unauthorized("multiple base64.bearer.authorization tokens specified")),
    };
    let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| unauthorized("invalid base64.bearer.authorization token encoding"))?;
    let token = String::from_utf8(decoded).map_err(|_| unauthorized("invalid base64.bearer.authorization token"))?;
    match (token.is_empty(), others.is_empty()) {
        (true, _) => Ok(None),
        (false, true) => Err(unauthorized("missing additional subprotocol")),
        (false, false) => Ok(Some(token)),
    }
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    values.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')).map(str::trim)
}

/// Removes what only this server may see: credentials and impersonation. To be called before a request is passed on.
pub fn remove_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    let impersonating: Vec<_> = headers.keys().filter(|it| it.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonating {
        headers.remove(name);
    }
    let offered: Vec<&str> = protocols(headers).filter(|it| !it.starts_with(BEARER_PROTOCOL)).collect();
    let offered = offered.join(",");
    if let Ok(value) = offered.parse() {
        match headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) && !offered.is_empty() {
            true => _ = headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value),
            false => _ = headers.remove(header::SEC_WEBSOCKET_PROTOCOL),
        }
    }
}

/// The user as whom `user` asks to act by `Impersonate-*` headers, `user` itself without them. `authorize` decides about `user`.
/// 400 for groups, UID or extra without a user; 403 for what `user` may not impersonate.
pub fn impersonate(user: User, headers: &HeaderMap, authorize: impl Fn(&User, &Attributes) -> Decision) -> Result<User> {
    let Some(asked) = Impersonation::of(headers)? else { return Ok(user) };
    for attributes in asked.questions() {
        authorize(&user, &attributes).check(&user, &attributes)?;
    }
    Ok(asked.into_user())
}

/// What the headers ask for.
struct Impersonation {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    fn of(headers: &HeaderMap) -> Result<Option<Self>> {
        let all = |name: &str| headers.get_all(name).iter().map(|it| String::from_utf8_lossy(it.as_bytes()).into_owned()).collect::<Vec<_>>();
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        let extra = headers.keys().filter_map(|it| Some((unescape(it.as_str().strip_prefix(IMPERSONATE_EXTRA)?), all(it.as_str()))));
        let asked = Self { user: first(IMPERSONATE_USER), groups: all(IMPERSONATE_GROUP), uid: first(IMPERSONATE_UID), extra: extra.collect() };
        if !asked.user.is_empty() {
            return Ok(Some(asked));
        }
        match (&asked.groups[..], &*asked.uid, asked.extra.is_empty()) {
            ([], "", true) => Ok(None),
            _ => Err(Status::bad_request(format!("requested {} without impersonating a user", asked.describe()))),
        }
    }

    /// What is asked for beside the user: kind, resource, name, and a key of extra.
    fn others(&self) -> impl Iterator<Item = (&'static str, &'static str, &str, &str)> {
        let groups = self.groups.iter().map(|it| ("Group", "groups", it.as_str(), ""));
        let extra = self.extra.iter().flat_map(|(key, values)| values.iter().map(move |it| ("UserExtra", "userextras", it.as_str(), key.as_str())));
        let uid = Some(self.uid.as_str()).filter(|it| !it.is_empty()).map(|it| ("UID", "uids", it, ""));
        groups.chain(extra).chain(uid)
    }

    /// The references as Go prints them.
    fn describe(&self) -> String {
        let version = |kind: &str| if kind == "Group" { "" } else { "authentication.k8s.io/v1" };
        let all: Vec<String> = self.others().map(|(kind, _, name, field)| format!("{{{kind}  {name}  {}  {field}}}", version(kind))).collect();
        format!("[{}]", all.join(" "))
    }

    fn questions(&self) -> Vec<Attributes> {
        let ask = |resource: &str, name: &str| Attributes { name: name.into(), ..Attributes::new("impersonate", "", resource) };
        let user = match service_account(&self.user) {
            Some((namespace, name)) => Attributes { namespace: namespace.into(), ..ask("serviceaccounts", name) },
            None => ask("users", &self.user),
        };
        let group = |kind: &str| if kind == "Group" { "" } else { "authentication.k8s.io" };
        let others = self.others().map(|(kind, resource, name, key)| Attributes { group: group(kind).into(), subresource: key.into(), ..ask(resource, name) });
        [user].into_iter().chain(others).collect()
    }

    fn into_user(self) -> User {
        let mut groups = match (self.groups.is_empty(), service_account(&self.user)) {
            (true, Some((namespace, name))) => User::service_account(namespace, name).groups,
            _ => self.groups,
        };
        let has = |group: &str| groups.iter().any(|it| it == group);
        match self.user == ANONYMOUS {
            true if !has(UNAUTHENTICATED) => groups.push(UNAUTHENTICATED.to_owned()),
            false if !has(AUTHENTICATED) && !has(UNAUTHENTICATED) => groups.push(AUTHENTICATED.to_owned()),
            _ => (),
        }
        User { name: self.user, uid: self.uid, groups, extra: self.extra }
    }
}

/// (namespace, name) of a service account's user name.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// Decodes `%2f`; a key with what is no valid escape stays as it is.
fn unescape(key: &str) -> String {
    let is_escape = |it: &str| it.len() > 1 && it.bytes().take(2).all(|it| it.is_ascii_hexdigit());
    let decoded = percent_encoding::percent_decode_str(key).decode_utf8().ok().filter(|_| key.split('%').skip(1).all(is_escape));
    decoded.map_or_else(|| key.to_owned(), |it| it.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::tokens::{Bound, Grant, ISSUER, Reference, generate_key},
        store::{Key, Stored},
    };

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn certificate(name: &str, groups: &[&str]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn credentials_name_their_user() {
        let tokens = Arc::new(Tokens::new(ISSUER, &generate_key()).unwrap());
        let account = Reference { name: "bot".into(), uid: "u".into() };
        let bound = Bound { namespace: "ns".into(), account, ..Bound::default() };
        let token = tokens.issue(Grant { bound, audiences: vec![ISSUER.into()], seconds: 600, ..Grant::default() }, clock::now());
        let encoded = format!("{BEARER_PROTOCOL}{}", URL_SAFE_NO_PAD.encode(&token));
        let authenticator = Authenticator::new(tokens);
        let bearer = format!("Bearer {token}");
        let both = format!("v5.channel.k8s.io, {encoded}");
        // (headers, certificate's CN, expected name or "" for 401)
        let cases = [
            (vec![], "", "system:anonymous"),
            (vec![("authorization", "Basic abc")], "", "system:anonymous"),
            (vec![("authorization", "Bearer ")], "", "system:anonymous"),
            (vec![("authorization", "Bearer abc")], "", ""),
            (vec![("authorization", &*bearer)], "", "system:serviceaccount:ns:bot"),
            (vec![("authorization", "Bearer abc")], "jane", "jane"),
            (vec![], "jane", "jane"),
            (vec![("upgrade", "websocket"), ("sec-websocket-protocol", &*both)], "", "system:serviceaccount:ns:bot"),
            (vec![("upgrade", "websocket"), ("sec-websocket-protocol", &*encoded)], "", ""),
            (vec![("sec-websocket-protocol", &*encoded)], "", "system:anonymous"),
        ];
        for (lines, common_name, expected) in cases {
            let certificates = if common_name.is_empty() { vec![] } else { vec![certificate(common_name, &["devs"])] };
            let peer = Peer { certificates: certificates.into(), ..Peer::default() };
            let header = crate::store::Header { uid: "u".into(), ..Default::default() };
            let stored = |key: &Key| {
                Some(Arc::new(Stored { key: key.clone(), revision: 1, json: "{}".into(), header: header.clone(), forms: Default::default() }))
            };
            let got = authenticator.authenticate_at(&headers(&lines), &peer, clock::now(), &stored);
            assert_eq!(got.as_ref().map(|it| it.name.as_str()).unwrap_or(""), expected, "{lines:?} {got:?}");
            assert!(got.as_ref().is_ok() || got.unwrap_err().code == 401);
        }
        let jane = of_certificate(&certificate("jane", &["devs"])).unwrap();
        assert_eq!(jane.groups, ["devs", "system:authenticated"]);
    }

    #[test]
    fn one_acts_as_another_only_if_allowed() {
        // (headers, resources that may be impersonated, expected "name|groups" or error)
        let cases = [
            (vec![], "", Ok("me|")),
            (vec![("impersonate-user", "bob")], "users", Ok("bob|system:authenticated")),
            (
                vec![("impersonate-user", "bob")],
                "",
                Err("users \"bob\" is forbidden: User \"me\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"),
            ),
            (vec![("impersonate-user", "bob"), ("impersonate-group", "a")], "users groups", Ok("bob|a,system:authenticated")),
            (vec![("impersonate-user", "bob"), ("impersonate-group", "system:unauthenticated")], "users groups", Ok("bob|system:unauthenticated")),
            (vec![("impersonate-user", "system:anonymous")], "users", Ok("system:anonymous|system:unauthenticated")),
            (
                vec![("impersonate-user", "system:serviceaccount:ns:bot")],
                "serviceaccounts",
                Ok("system:serviceaccount:ns:bot|system:serviceaccounts,system:serviceaccounts:ns,system:authenticated"),
            ),
            (
                vec![("impersonate-user", "bob"), ("impersonate-extra-acme%2fteam", "x")],
                "users",
                Err("userextras.authentication.k8s.io \"x\" is forbidden: User \"me\" cannot impersonate resource \"userextras/acme/team\" in API \
                     group \"authentication.k8s.io\" at the cluster scope"),
            ),
            (vec![("impersonate-group", "a")], "groups", Err("requested [{Group  a    }] without impersonating a user")),
        ];
        for (lines, allowed, expected) in cases {
            let me = User { name: "me".into(), ..User::default() };
            let decide = |_: &User, it: &Attributes| Decision { is_allowed: allowed.split(' ').any(|allowed| allowed == it.resource), ..Decision::default() };
            let got = impersonate(me, &headers(&lines), decide).map(|it| format!("{}|{}", it.name, it.groups.join(",")));
            assert_eq!(got.as_deref().map_err(|it| it.message.as_str()), expected);
        }
    }

    #[test]
    fn credentials_are_not_passed_on() {
        let mut passed = headers(&[
            ("authorization", "Bearer x"),
            ("impersonate-user", "y"),
            ("accept", "z"),
            ("sec-websocket-protocol", &format!("a, {BEARER_PROTOCOL}b, c")),
        ]);
        remove_credentials(&mut passed);
        assert_eq!(passed, headers(&[("accept", "z"), ("sec-websocket-protocol", "a,c")]));
    }
}
