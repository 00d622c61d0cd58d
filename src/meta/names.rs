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

/// A pattern, and what is said of what does not match it.
struct Form {
    regex: Regex,
    error: String,
}

impl Form {
    /// `RegexError`, which writes two spaces between examples.
    fn new(pattern: &str, message: &str, examples: &[&str]) -> Self {
        let regex = Regex::new(&format!("^(?:{pattern})$")).expect("a constant pattern");
        let examples: Vec<String> = examples.iter().map(|it| format!("'{it}'")).collect();
        Self { regex, error: format!("{message} (e.g. {}, regex used for validation is '{pattern}')", examples.join(",  or ")) }
    }

    fn error(&self, text: &str) -> Option<Cow<'static, str>> {
        (!self.regex.is_match(text)).then(|| self.error.clone().into())
    }

    /// What is wrong with the length of a text, and with its form.
    fn problems(&self, text: &str, most: usize) -> Problems {
        let long = (text.len() > most).then(|| max_len(most));
        long.into_iter().chain(self.error(text)).collect()
    }
}

macro_rules! form {
    ($name:ident, $pattern:expr, $message:expr, $examples:expr) => {
        static $name: LazyLock<Form> = LazyLock::new(|| Form::new($pattern, $message, &$examples));
    };
}

form!(DNS1123_LABEL, LABEL, "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character", ["my-name", "123-abc"]);
form!(DNS1123_SUBDOMAIN, &format!(r"{LABEL}(\.{LABEL})*"), "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character", ["example.com"]);
form!(UNDERSCORED_SUBDOMAIN, &format!(r"{UNDERSCORED}(\.{UNDERSCORED})*"), "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character", ["example.com"]);
form!(WILDCARD_SUBDOMAIN, &format!(r"\*\.{LABEL}(\.{LABEL})*"), "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character", ["*.example.com"]);
form!(DNS1035_LABEL, "[a-z]([-a-z0-9]*[a-z0-9])?", "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character", ["my-name", "abc-123"]);
form!(QUALIFIED_NAME, QUALIFIED, "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character", ["MyName", "my.name", "123-abc"]);
form!(LABEL_VALUE, &format!("({QUALIFIED})?"), "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character", ["MyValue", "my_value", "12345"]);
form!(C_IDENTIFIER, "[A-Za-z_][A-Za-z0-9_]*", "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'", ["my_name", "MY_NAME", "MyName"]);
form!(CONFIG_MAP_KEY, "[-._a-zA-Z0-9]+", "a valid config key must consist of alphanumeric characters, '-', '_' or '.'", ["key.name", "KEY_NAME", "key-name"]);
form!(HTTP_HEADER, "[-A-Za-z0-9]+", "a valid HTTP header must consist of alphanumeric characters or '-'", ["X-Header-Name"]);

/// `MaxLenError`, as `pkg/util/validation` has it. Keys and values of labels count bytes (`pkg/api/validate/content`).
pub fn max_len(most: usize) -> Cow<'static, str> {
    format!("must be no more than {most} characters").into()
}

fn max_bytes(most: usize) -> Cow<'static, str> {
    format!("must be no more than {most} bytes").into()
}

/// A prefix of a name, as it is checked: what follows a dash at its end is not known (`maskTrailingDash`).
pub fn masked(prefix: &str) -> Cow<'_, str> {
    match prefix.strip_suffix('-').filter(|it| !it.is_empty()) {
        Some(rest) => format!("{}a", &rest[..rest.floor_char_boundary(rest.len() - 1)]).into(),
        None => prefix.into(),
    }
}

pub fn dns1123_label(text: &str) -> Problems {
    let mut problems = DNS1123_LABEL.problems(text, LABEL_MAX);
    if DNS1123_SUBDOMAIN.regex.is_match(text)
        && let Some(form) = problems.iter_mut().find(|it| **it == DNS1123_LABEL.error)
    {
        *form = "must not contain dots".into();
    }
    problems
}

pub fn dns1123_subdomain(text: &str) -> Problems {
    DNS1123_SUBDOMAIN.problems(text, SUBDOMAIN_MAX)
}

/// `IsDNS1123SubdomainWithUnderscore`.
pub fn underscored_subdomain(text: &str) -> Problems {
    UNDERSCORED_SUBDOMAIN.problems(text, SUBDOMAIN_MAX)
}

/// `IsWildcardDNS1123Subdomain`: `*.` and a subdomain.
pub fn wildcard_subdomain(text: &str) -> Problems {
    WILDCARD_SUBDOMAIN.problems(text, SUBDOMAIN_MAX)
}

/// A network in CIDR form: address and length of the prefix. Go's `net.ParseCIDR` is as strict, but for leading zeros.
pub fn cidr(text: &str) -> Option<(core::net::IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (core::net::IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
    let is_fine = length <= if address.is_ipv4() { 32 } else { 128 };
    is_fine.then_some((address, length))
}

pub fn dns1035_label(text: &str) -> Problems {
    DNS1035_LABEL.problems(text, LABEL_MAX)
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
            let long = (prefix.len() > SUBDOMAIN_MAX).then(|| max_bytes(SUBDOMAIN_MAX));
            match *prefix {
                "" => problems.push("prefix part must be non-empty".into()),
                _ => problems.extend(long.into_iter().chain(DNS1123_SUBDOMAIN.error(prefix)).map(|it| format!("prefix part {it}").into())),
            }
            name
        }
        _ => {
            let error = &QUALIFIED_NAME.error;
            return vec![format!("a valid label key {error} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')").into()];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part {}", max_bytes(LABEL_MAX)).into());
    }
    problems.extend(QUALIFIED_NAME.error(name).map(|it| format!("name part {it}").into()));
    problems
}

pub fn label_value(text: &str) -> Problems {
    let long = (text.len() > LABEL_MAX).then(|| max_bytes(LABEL_MAX));
    long.into_iter().chain(LABEL_VALUE.error(text)).collect()
}

/// A key of a ConfigMap or a Secret.
pub fn config_map_key(text: &str) -> Problems {
    let mut problems = CONFIG_MAP_KEY.problems(text, SUBDOMAIN_MAX);
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
    C_IDENTIFIER.error(text).into_iter().collect()
}

/// `IsValidPortName`: an IANA service name.
pub fn port_name(text: &str) -> Problems {
    let mut problems: Problems = (text.len() > 15).then(|| max_len(15)).into_iter().collect();
    if text.is_empty() || !text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
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
    HTTP_HEADER.error(text).into_iter().collect()
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
