//! What may be a name, a label, an annotation key. Each check returns upstream's sentences, none when the text is fine.
//! Source: apimachinery `pkg/util/validation/validation.go`, `pkg/api/validation/path/name.go`.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

pub type Problems = Vec<Cow<'static, str>>;

pub const LABEL_MAX: usize = 63;
pub const SUBDOMAIN_MAX: usize = 253;
/// `totalAnnotationSizeLimitB`: keys and values of all annotations, in bytes.
pub const ANNOTATIONS_MAX: usize = 256 << 10;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const UNDERSCORED: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn anchored(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("a constant pattern")
}

macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| anchored($pattern));
    };
}

pattern!(DNS1123_LABEL, LABEL);
pattern!(DNS1123_SUBDOMAIN, &format!(r"{LABEL}(\.{LABEL})*"));
pattern!(UNDERSCORED_SUBDOMAIN, &format!(r"{UNDERSCORED}(\.{UNDERSCORED})*"));
pattern!(WILDCARD_SUBDOMAIN, &format!(r"\*\.{LABEL}(\.{LABEL})*"));
pattern!(DNS1035_LABEL, "[a-z]([-a-z0-9]*[a-z0-9])?");
pattern!(QUALIFIED_NAME, QUALIFIED);
pattern!(LABEL_VALUE, &format!("({QUALIFIED})?"));
pattern!(C_IDENTIFIER, "[A-Za-z_][A-Za-z0-9_]*");
pattern!(CONFIG_MAP_KEY, "[-._a-zA-Z0-9]+");
pattern!(PORT_NAME_CHARS, "[-a-z0-9]+");
pattern!(HTTP_HEADER, "[-A-Za-z0-9]+");

const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const UNDERSCORED_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
const WILDCARD_MSG: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
const DNS1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const QUALIFIED_MSG: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// `MaxLenError`, as `pkg/util/validation` has it. Keys and values of labels count bytes (`pkg/api/validate/content`).
pub fn max_len(most: usize) -> Cow<'static, str> {
    format!("must be no more than {most} characters").into()
}

fn max_bytes(most: usize) -> Cow<'static, str> {
    format!("must be no more than {most} bytes").into()
}

/// What is wrong with the length of a text, and with its form.
fn of(text: &str, most: usize, pattern: &Regex, why: impl FnOnce() -> Cow<'static, str>) -> Problems {
    let long = (text.len() > most).then(|| max_len(most));
    long.into_iter().chain((!pattern.is_match(text)).then(why)).collect()
}

/// `RegexError`.
fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> Cow<'static, str> {
    let quoted: Vec<String> = examples.iter().map(|it| format!("'{it}'")).collect();
    let shown = match quoted.split_first() {
        None => String::new(),
        Some((first, rest)) => rest.iter().fold(format!("e.g. {first}"), |text, it| format!("{text}, or {it}")) + ", ",
    };
    // Upstream writes ",  or" between examples: the comma, the space of the join and one more.
    let shown = shown.replace(", or '", ",  or '");
    format!("{message} ({shown}regex used for validation is '{pattern}')").into()
}

pub fn dns1123_label(text: &str) -> Problems {
    of(text, LABEL_MAX, &DNS1123_LABEL, || {
        if DNS1123_SUBDOMAIN.is_match(text) { "must not contain dots".into() } else { regex_error(LABEL_MSG, LABEL, &["my-name", "123-abc"]) }
    })
}

pub fn dns1123_subdomain(text: &str) -> Problems {
    of(text, SUBDOMAIN_MAX, &DNS1123_SUBDOMAIN, subdomain_error)
}

fn subdomain_error() -> Cow<'static, str> {
    regex_error(SUBDOMAIN_MSG, &format!(r"{LABEL}(\.{LABEL})*"), &["example.com"])
}

/// `IsDNS1123SubdomainWithUnderscore`.
pub fn underscored_subdomain(text: &str) -> Problems {
    of(text, SUBDOMAIN_MAX, &UNDERSCORED_SUBDOMAIN, || regex_error(UNDERSCORED_MSG, &format!(r"{UNDERSCORED}(\.{UNDERSCORED})*"), &["example.com"]))
}

/// `IsWildcardDNS1123Subdomain`: `*.` and a subdomain.
pub fn wildcard_subdomain(text: &str) -> Problems {
    of(text, SUBDOMAIN_MAX, &WILDCARD_SUBDOMAIN, || regex_error(WILDCARD_MSG, &format!(r"\*\.{LABEL}(\.{LABEL})*"), &["*.example.com"]))
}

/// A network in CIDR form: address and length of the prefix. Go's `net.ParseCIDR` is as strict, but for leading zeros.
pub fn cidr(text: &str) -> Option<(core::net::IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (core::net::IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
    let is_fine = length <= if address.is_ipv4() { 32 } else { 128 };
    is_fine.then_some((address, length))
}

pub fn dns1035_label(text: &str) -> Problems {
    of(text, LABEL_MAX, &DNS1035_LABEL, || regex_error(DNS1035_MSG, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]))
}

/// Names that only must fit into a path: RBAC's.
pub fn path_segment(text: &str) -> Problems {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'").into()];
    }
    ["/", "%"].iter().filter(|it| text.contains(**it)).map(|it| format!("may not contain '{it}'").into()).collect()
}

/// The key of a label or an annotation: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Problems {
    let mut problems = Problems::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".into());
            } else {
                problems.extend((prefix.len() > SUBDOMAIN_MAX).then(|| format!("prefix part {}", max_bytes(SUBDOMAIN_MAX)).into()));
                problems.extend((!DNS1123_SUBDOMAIN.is_match(prefix)).then(|| format!("prefix part {}", subdomain_error()).into()));
            }
            name
        }
        _ => {
            let message = format!("a qualified name {QUALIFIED_MSG}");
            let error = regex_error(&message, QUALIFIED, &["MyName", "my.name", "123-abc"]);
            problems.push(format!("{error} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')").into());
            return problems;
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part {}", max_bytes(LABEL_MAX)).into());
    }
    if !QUALIFIED_NAME.is_match(name) {
        let error = regex_error(QUALIFIED_MSG, QUALIFIED, &["MyName", "my.name", "123-abc"]);
        problems.push(format!("name part {error}").into());
    }
    problems
}

pub fn label_value(text: &str) -> Problems {
    let long = (text.len() > LABEL_MAX).then(|| max_bytes(LABEL_MAX));
    let error = || regex_error(LABEL_VALUE_MSG, &format!("({QUALIFIED})?"), &["MyValue", "my_value", "12345"]);
    long.into_iter().chain((!LABEL_VALUE.is_match(text)).then(error)).collect()
}

/// A key of a ConfigMap or a Secret.
pub fn config_map_key(text: &str) -> Problems {
    let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
    let mut problems = of(text, SUBDOMAIN_MAX, &CONFIG_MAP_KEY, || regex_error(message, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    problems.extend(dots(text));
    problems
}

fn dots(text: &str) -> Option<Cow<'static, str>> {
    match text {
        "." => Some("must not be '.'".into()),
        ".." => Some("must not be '..'".into()),
        _ if text.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

/// `IsRelaxedEnvVarName`: printable ASCII without `=`.
pub fn env_var_name(text: &str) -> Problems {
    let is_fine = !text.is_empty() && text.chars().all(|it| (' '..='~').contains(&it) && it != '=');
    if is_fine {
        return Problems::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

pub fn c_identifier(text: &str) -> Problems {
    if C_IDENTIFIER.is_match(text) {
        return Problems::new();
    }
    let message = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_error(message, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// `IsValidPortName`: an IANA service name.
pub fn port_name(text: &str) -> Problems {
    let mut problems = of(text, 15, &PORT_NAME_CHARS, || "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    if !text.bytes().any(|it| it.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        problems.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        problems.push("must not begin or end with a hyphen".into());
    }
    problems
}

pub fn port_number(port: i64) -> Problems {
    if (1..=65535).contains(&port) { Problems::new() } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

pub fn http_header_name(text: &str) -> Problems {
    if HTTP_HEADER.is_match(text) {
        return Problems::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_pass_and_the_sentences_for_those_that_do_not() {
        type Check = fn(&str) -> Problems;
        let cases: &[(Check, &str, &[&str])] = &[
            (dns1123_label, "web-1", &[]),
            (dns1123_label, "a.b", &["must not contain dots"]),
            (dns1123_subdomain, "a.b-c", &[]),
            (dns1123_subdomain, "Web", &["a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"]),
            (dns1123_label, "A", &["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]),
            (qualified_name, "app.kubernetes.io/name", &[]),
            (qualified_name, "/x", &["prefix part must be non-empty"]),
            (label_value, "", &[]),
            (path_segment, "system:node", &[]),
            (path_segment, "a/b", &["may not contain '/'"]),
            (config_map_key, "..x", &["must not start with '..'"]),
            (port_name, "8080", &["must contain at least one letter (a-z)"]),
        ];
        for (check, text, problems) in cases {
            assert_eq!(&check(text), problems, "{text}");
        }
    }
}
