//! Bootstrap tokens: what a machine that joins shows before it has a certificate. Each is a Secret in kube-system.
//! Source: kubernetes `plugin/pkg/auth/authenticator/token/bootstrap`, cluster-bootstrap `util/{secrets,tokens}`.

use jiff::Timestamp;
use ring::{digest, rand::SecureRandom};

use super::{
    identity::{AUTHENTICATED, User},
    tokens::Find,
};
use crate::{
    meta::{Meta, Value},
    store::Key,
};

pub const NAMESPACE: &str = "kube-system";
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The group of all who show one.
pub const GROUP: &str = "system:bootstrappers";
pub const ID_LENGTH: usize = 6;
pub const SECRET_LENGTH: usize = 16;
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// `abcdef.0123456789abcdef` as id and secret.
pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let is_good = |text: &str, length| text.len() == length && text.bytes().all(|it| LETTERS.contains(&it));
    (is_good(id, ID_LENGTH) && is_good(secret, SECRET_LENGTH)).then_some((id, secret))
}

/// A new id and secret.
pub fn generate() -> (String, String) {
    let random = ring::rand::SystemRandom::new();
    // 252 is the largest multiple of 36 letters in a byte: beyond it the first letters would be likelier.
    let letter = || loop {
        let mut byte = [0];
        random.fill(&mut byte).expect("the system's random numbers are at hand");
        if byte[0] < 252 {
            return char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]);
        }
    };
    let text = |length: usize| (0..length).map(|_| letter()).collect();
    (text(ID_LENGTH), text(SECRET_LENGTH))
}

pub fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// Whose token it is; `None` for what is no bootstrap token. The error says what is wrong with one that is.
pub fn authenticate(token: &str, now: Timestamp, find: Find<'_>) -> Option<Result<User, String>> {
    let (id, secret) = split(token)?;
    let found = find(&Key::new("secrets", NAMESPACE, &secret_name(id))).map(|it| it.value());
    Some(check(id, secret, found.as_ref(), now))
}

fn check(id: &str, secret: &str, found: Option<&Value>, now: Timestamp) -> Result<User, String> {
    let invalid = |why: &str| Err(format!("bootstrap token {id}: {why}"));
    let Some(found) = found.filter(|it| it.text("type") == SECRET_TYPE && it.deletion_timestamp().is_none()) else { return invalid("no such secret") };
    let is_same = |text: &str, own: &str| digest::digest(&digest::SHA256, text.as_bytes()).as_ref() == digest::digest(&digest::SHA256, own.as_bytes()).as_ref();
    if !is_same(secret, &data(found, "token-secret")) || data(found, "token-id") != id {
        return invalid("wrong secret");
    }
    if is_expired(found, now) {
        return invalid("expired");
    }
    if data(found, "usage-bootstrap-authentication") != "true" {
        return invalid("not for authentication");
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data(found, "auth-extra-groups").split(',').map(str::trim).filter(|it| !it.is_empty()) {
        if !is_extra_group(group) {
            return invalid("a group that is not of bootstrappers");
        }
        groups.push(group.to_owned());
    }
    groups.push(AUTHENTICATED.to_owned());
    Ok(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

/// `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`
fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let is_inner = |it: u8| LETTERS.contains(&it) || it == b':' || it == b'-';
    rest.len() <= 256 && rest.bytes().all(is_inner) && rest.bytes().last().is_some_and(|it| LETTERS.contains(&it))
}

fn data(secret: &Value, name: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(secret.text_at(&["data", name])).ok().and_then(|it| String::from_utf8(it).ok()).unwrap_or_default()
}

/// A time that cannot be read counts as past.
fn is_expired(secret: &Value, now: Timestamp) -> bool {
    let text = data(secret, "expiration");
    !text.is_empty() && !text.parse::<Timestamp>().is_ok_and(|it| it > now)
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_have_their_form() {
        let (id, secret) = generate();
        let made = format!("{id}.{secret}");
        for (token, is_good) in [(made.as_str(), true), ("abcdef.0123456789abcdef", true), ("abcdef.0123456789abcde", false), ("ABCDEF.0123456789abcdef", false), ("x", false)] {
            assert_eq!(split(token).is_some(), is_good, "{token}");
        }
    }

    #[test]
    fn a_token_is_good_as_its_secret_says() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let good = [("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-authentication", "true"), ("auth-extra-groups", "system:bootstrappers:a")];
        let check = |kind: &str, change: (&str, &str)| {
            let mut secret = json!({"type": kind});
            good.iter().chain([&change]).filter(|it| !it.0.is_empty()).for_each(|(key, value)| secret.set_at(&["data", key], STANDARD.encode(value)));
            super::check("abcdef", "0123456789abcdef", Some(&secret), now).map(|it| it.groups.join(" ")).ok()
        };
        let all = Some("system:bootstrappers system:bootstrappers:a system:authenticated".to_owned());
        let cases = [
            (SECRET_TYPE, ("", ""), all.clone()),
            (SECRET_TYPE, ("expiration", "2026-01-01T00:00:01Z"), all),
            (SECRET_TYPE, ("expiration", "2025-12-31T23:59:59Z"), None),
            (SECRET_TYPE, ("expiration", "soon"), None),
            (SECRET_TYPE, ("token-secret", "0123456789abcdee"), None),
            (SECRET_TYPE, ("usage-bootstrap-authentication", "false"), None),
            (SECRET_TYPE, ("auth-extra-groups", "system:masters"), None),
            ("Opaque", ("", ""), None),
        ];
        for (kind, change, expected) in cases {
            assert_eq!(check(kind, change), expected, "{kind} {change:?}");
        }
    }
}
