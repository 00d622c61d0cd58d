//! Kubernetes' own values: quantities, addresses, URLs, versions, formats. Follows apiserver `pkg/cel/library/{quantity,ip,cidr,urls,semverlib,format}.go`.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ipnet::IpNet;

use super::{
    strings,
    value::{Eval, Key, Map, Val, fail, no_overload, or_fail},
};
use crate::meta::{Quantity, names, quantity};

#[derive(Clone, Debug, PartialEq)]
pub enum Kube {
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpNet),
    Url(Url),
    Semver(Semver),
    Format(&'static Format),
}

impl Kube {
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// For costs: the bytes of an address.
    pub fn size(&self) -> u64 {
        match self {
            Self::Ip(IpAddr::V4(_)) => 4,
            Self::Ip(IpAddr::V6(_)) => 16,
            Self::Cidr(it) => u64::from(it.prefix_len().div_ceil(8)),
            _ => 1,
        }
    }

    fn order(&self, other: &Self) -> Eval<Ordering> {
        match (self, other) {
            (Self::Quantity(a), Self::Quantity(b)) => Ok(a.cmp(b)),
            (Self::Semver(a), Self::Semver(b)) => Ok(a.order(b)),
            _ => no_overload(),
        }
    }
}

impl fmt::Display for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity(it) => it.fmt(f),
            Self::Ip(it) => it.fmt(f),
            Self::Cidr(it) => it.fmt(f),
            Self::Url(it) => f.write_str(&it.text),
            Self::Semver(it) => write!(f, "{}.{}.{}", it.numbers[0], it.numbers[1], it.numbers[2]),
            Self::Format(it) => f.write_str(it.name),
        }
    }
}

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Eval<Val<'a>> {
    match args {
        [Val::Kube(it), rest @ ..] => method(function, it, rest),
        [Val::String(text)] => from_text(function, text, false),
        [Val::String(text), Val::Bool(is_lenient)] => from_text(function, text, *is_lenient),
        [] => FORMATS.iter().find(|it| it.function == function).map_or_else(no_overload, |it| Ok(Val::kube(Kube::Format(it)))),
        _ => no_overload(),
    }
}

/// `ip('::1')`, and `isIP('::1')`, which says whether that makes one.
fn from_text<'a>(function: &str, text: &str, is_lenient: bool) -> Eval<Val<'a>> {
    let made = match function {
        "quantity" | "isQuantity" => text.parse().map(Kube::Quantity).map_err(|why: quantity::ParseError| why.to_string()),
        "ip" | "isIP" => parse_ip(text).map(Kube::Ip),
        "ip.isCanonical" => return parse_ip(text).map_or_else(fail, |it| Ok(Val::Bool(it.to_string() == text))),
        "cidr" | "isCIDR" => parse_cidr(text).map(Kube::Cidr),
        "url" | "isURL" => Url::parse(text).map(Kube::Url).map_err(|why| format!("URL parse error during conversion from string: {why}")),
        "semver" | "isSemver" => Semver::parse(text, is_lenient).map(Kube::Semver),
        "format.named" => {
            let named = FORMATS.iter().find(|it| it.function.strip_prefix("format.") == Some(text));
            return Ok(named.map_or_else(Val::none, |it| Val::some(Val::kube(Kube::Format(it)))));
        }
        _ => return no_overload(),
    };
    if function.starts_with("is") { Ok(Val::Bool(made.is_ok())) } else { made.map_or_else(fail, |it| Ok(Val::kube(it))) }
}

fn method<'a>(function: &str, it: &Kube, rest: &[Val<'a>]) -> Eval<Val<'a>> {
    use Val::{Bool, Int, String as Text};
    Ok(match (function, it, rest) {
        ("sign", Kube::Quantity(it), []) => Int(it.cmp(&Quantity::ZERO) as i64),
        ("asApproximateFloat", Kube::Quantity(it), []) => Val::Double(it.approximate()),
        ("isInteger", Kube::Quantity(it), []) => Bool(it.is_whole()),
        ("asInteger", Kube::Quantity(it), []) => Int(or_fail(it.is_whole().then(|| it.units()), "cannot convert value to integer")?),
        ("isGreaterThan", it, [Val::Kube(other)]) => Bool(it.order(other)?.is_gt()),
        ("isLessThan", it, [Val::Kube(other)]) => Bool(it.order(other)?.is_lt()),
        ("compareTo", it, [Val::Kube(other)]) => Int(it.order(other)? as i64),
        ("add", Kube::Quantity(it), [other]) => Val::kube(Kube::Quantity(it.add(addend(other)?))),
        ("sub", Kube::Quantity(it), [other]) => Val::kube(Kube::Quantity(it.sub(addend(other)?))),
        ("family", Kube::Ip(it), []) => Int(if it.is_ipv4() { 4 } else { 6 }),
        ("isUnspecified", Kube::Ip(it), []) => Bool(it.is_unspecified()),
        ("isLoopback", Kube::Ip(it), []) => Bool(it.is_loopback()),
        ("isLinkLocalMulticast", Kube::Ip(IpAddr::V4(it)), []) => Bool(it.octets()[..3] == [224, 0, 0]),
        ("isLinkLocalMulticast", Kube::Ip(IpAddr::V6(it)), []) => Bool(it.segments()[0] & 0xff0f == 0xff02),
        ("isLinkLocalUnicast", Kube::Ip(it), []) => Bool(is_link_local(*it)),
        ("isGlobalUnicast", Kube::Ip(it), []) => {
            let is_broadcast = *it == IpAddr::V4(Ipv4Addr::BROADCAST);
            Bool(!(it.is_unspecified() || it.is_loopback() || it.is_multicast() || is_link_local(*it) || is_broadcast))
        }
        ("ip", Kube::Cidr(it), []) => Val::kube(Kube::Ip(it.addr())),
        ("prefixLength", Kube::Cidr(it), []) => Int(it.prefix_len().into()),
        ("masked", Kube::Cidr(it), []) => Val::kube(Kube::Cidr(it.trunc())),
        ("containsIP", Kube::Cidr(it), [Text(ip)]) => parse_ip(ip).map_or_else(fail, |ip| Ok(Bool(it.contains(&ip))))?,
        ("containsCIDR", Kube::Cidr(it), [Text(net)]) => parse_cidr(net).map_or_else(fail, |net| Ok(Bool(it.contains(&net))))?,
        (_, Kube::Cidr(it), [Val::Kube(other)]) => match (function, other.as_ref()) {
            ("containsIP", Kube::Ip(ip)) => Bool(it.contains(ip)),
            ("containsCIDR", Kube::Cidr(net)) => Bool(it.contains(net)),
            _ => return no_overload(),
        },
        ("getScheme", Kube::Url(it), []) => Val::text(&*it.scheme),
        ("getHost", Kube::Url(it), []) => Val::text(&*it.host),
        ("getHostname", Kube::Url(it), []) => Val::text(it.split_host().0),
        ("getPort", Kube::Url(it), []) => Val::text(it.split_host().1),
        ("getEscapedPath", Kube::Url(it), []) => Val::text(&*it.path),
        ("getQuery", Kube::Url(it), []) => it.query_map(),
        ("major", Kube::Semver(it), []) => Int(it.numbers[0] as i64),
        ("minor", Kube::Semver(it), []) => Int(it.numbers[1] as i64),
        ("patch", Kube::Semver(it), []) => Int(it.numbers[2] as i64),
        ("validate", Kube::Format(format), [Text(text)]) => match (format.check)(text) {
            problems if problems.is_empty() => Val::none(),
            problems => Val::some(Val::list(problems.into_iter().map(Val::text).collect())),
        },
        _ => return no_overload(),
    })
}

fn addend(value: &Val<'_>) -> Eval<Quantity> {
    match value {
        Val::Int(units) => Ok(Quantity::from_units(*units, quantity::Format::DecimalExponent)),
        Val::Kube(it) if let Kube::Quantity(it) = it.as_ref() => Ok(*it),
        _ => no_overload(),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(it) => it.is_link_local(),
        IpAddr::V6(it) => it.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// Neither a zone nor an IPv4 address in IPv6's clothes.
fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let (address, zone) = text.split_once('%').unwrap_or((text, ""));
    let parsed = address.parse::<IpAddr>().map_err(|_| {
        let why = ip_problem(text);
        format!("IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): {why}")
    })?;
    if !zone.is_empty() {
        return Err(format!("IP address {text:?} with zone value is not allowed"));
    }
    match parsed {
        IpAddr::V6(it) if it.to_ipv4_mapped().is_some() => Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed")),
        _ => Ok(parsed),
    }
}

/// What Go's `netip` would say.
fn ip_problem(text: &str) -> &'static str {
    if text.contains(':') {
        return "unexpected character, want colon";
    }
    let fields: Vec<&str> = text.split('.').collect();
    match fields.as_slice() {
        [_] => "unable to parse IP",
        fields if fields.iter().any(|it| it.len() > 1 && it.starts_with('0')) => "IPv4 field has octet with leading zero",
        fields if fields.iter().any(|it| it.parse::<u32>().is_ok_and(|it| it > 255)) => "IPv4 field has value >255",
        fields if fields.iter().any(|it| it.chars().any(|it| !it.is_ascii_digit())) => "unexpected character",
        fields if fields.len() < 4 => "IPv4 address too short",
        _ => "IPv4 address too long",
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, String> {
    const FAILED: &str = "network address parse error during conversion from string";
    let refuse = |why: &str| Err(format!("{FAILED}: {FAILED}: netip.ParsePrefix({text:?}): {why}"));
    let Some((address, bits)) = text.rsplit_once('/') else { return refuse("no '/'") };
    let Ok(ip) = address.parse::<IpAddr>() else { return refuse(&format!("ParseAddr({address:?}): {}", ip_problem(address))) };
    let is_plain = bits.chars().all(|it| it.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
    let Some(length) = bits.parse::<u8>().ok().filter(|_| is_plain) else { return refuse(&format!("bad bits after slash: {bits:?}")) };
    match (ip, IpNet::new(ip, length)) {
        (_, Err(_)) => refuse("prefix length out of range"),
        (IpAddr::V6(it), _) if it.to_ipv4_mapped().is_some() => Err(format!("{FAILED}: IPv4-mapped IPv6 address {text:?} is not allowed")),
        (_, Ok(net)) => Ok(net),
    }
}

/// A URL as Go's `url.ParseRequestURI` takes it: absolute, or an absolute path.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        let refuse = |why: String| Err(format!("parse {text:?}: {why}"));
        if text.is_empty() {
            return refuse("empty url".to_owned());
        }
        if text.chars().any(|it| it.is_ascii_control()) {
            return refuse("net/url: invalid control character in URL".to_owned());
        }
        let is_scheme = |it: &&str| it.starts_with(|it: char| it.is_ascii_alphabetic()) && it.chars().all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it));
        let (scheme, rest) = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).unwrap_or(("", text));
        if !rest.starts_with('/') && scheme.is_empty() {
            return refuse("invalid URI for request".to_owned());
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///")) {
            Some(after) => after.split_at(after.find('/').unwrap_or(after.len())),
            None => ("", rest),
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if let Some(bad) = host.chars().find(|it| " \"<>\\^`{|}".contains(*it)) {
            return refuse(format!("invalid character \"{bad}\" in host name"));
        }
        let port = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map(|(_, port)| port);
        if let Some(port) = port.filter(|it| !it.chars().all(|it| it.is_ascii_digit())) {
            return refuse(format!("invalid port \":{port}\" after host"));
        }
        if let Some(bad) = bad_escape(path) {
            return refuse(format!("invalid URL escape {bad:?}"));
        }
        let owned = str::to_owned;
        Ok(Self { text: owned(text), scheme: scheme.to_ascii_lowercase(), host: owned(host), path: escaped_path(path), query: owned(query) })
    }

    fn split_host(&self) -> (&str, &str) {
        let (name, port) = match self.host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (self.host.as_str(), ""),
        };
        (name.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(name), port)
    }

    fn query_map<'a>(&self) -> Val<'a> {
        let mut all: BTreeMap<String, Vec<Val<'a>>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|it| !it.contains(';') && bad_escape(it).is_none()) {
            for (key, value) in form_urlencoded::parse(pair.as_bytes()).into_owned() {
                all.entry(key).or_default().push(Val::text(value));
            }
        }
        let made = all.into_iter().map(|(key, values)| (Key::Text(key.clone()), (Val::text(key), Val::list(values)))).collect();
        Val::Map(Map::Made(Arc::new(made)))
    }
}

/// Characters that a path may not show are escaped; what is escaped already stays so.
fn escaped_path(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*%[]".contains(&byte);
    path.bytes().map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A percent sign that no two digits follow, and what does.
fn bad_escape(text: &str) -> Option<String> {
    let is_digit = |it: Option<char>| it.is_some_and(|it| it.is_ascii_hexdigit());
    let escapes = text.match_indices('%').map(|(at, _)| &text[at..]);
    escapes.map(|it| it.chars().take(3)).find(|it| !(is_digit(it.clone().nth(1)) && is_digit(it.clone().nth(2)))).map(Iterator::collect)
}

/// A semantic version 2.0.0; what stands after `+` does not count.
#[derive(Clone, Debug)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
}

impl PartialEq for Semver {
    fn eq(&self, other: &Self) -> bool {
        self.order(other).is_eq()
    }
}

impl Semver {
    /// With `is_lenient` a leading `v`, leading zeros and missing numbers are mended first.
    fn parse(text: &str, is_lenient: bool) -> Result<Self, String> {
        if is_lenient { Self::strict(&mended(text)?) } else { Self::strict(text) }
    }

    fn strict(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts[..] else { return Err("No Major.Minor.Patch elements found".to_owned()) };
        let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
        let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
        let numbers = [number(major, "Major")?, number(minor, "Minor")?, number(patch, "Patch")?];
        let pre: Vec<String> = pre.map(|it| it.split('.').map(str::to_owned).collect()).unwrap_or_default();
        for part in &pre {
            identifier(part, "Prerelease is empty", "Invalid character(s) found in prerelease")?;
            if part.len() > 1 && part.starts_with('0') && part.chars().all(|it| it.is_ascii_digit()) {
                return Err(format!("Numeric PreRelease version must not contain leading zeroes {part:?}"));
            }
        }
        for part in build.map(|it| it.split('.')).into_iter().flatten() {
            identifier(part, "Build meta data is empty", "Invalid character(s) found in build meta data")?;
        }
        Ok(Self { numbers, pre })
    }

    fn order(&self, other: &Self) -> Ordering {
        let part = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            _ => a.cmp(b),
        };
        let release = |it: &Self| it.pre.is_empty();
        let parts = || self.pre.iter().zip(&other.pre).map(|(a, b)| part(a, b)).find(|it| it.is_ne()).unwrap_or(self.pre.len().cmp(&other.pre.len()));
        self.numbers.cmp(&other.numbers).then(release(self).cmp(&release(other))).then_with(parts)
    }
}

fn number(text: &str, name: &str) -> Result<u64, String> {
    if text.is_empty() || !text.chars().all(|it| it.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {} number {text:?}", name.to_ascii_lowercase()));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(format!("{name} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))
}

fn identifier(text: &str, empty: &str, invalid: &str) -> Result<(), String> {
    match text {
        "" => Err(empty.to_owned()),
        text if text.chars().all(|it| it.is_ascii_alphanumeric() || it == '-') => Ok(()),
        text => Err(format!("{invalid} {text:?}")),
    }
}

fn mended(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
    if parts.len() < 3 && parts.last().is_some_and(|it| it.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".to_owned());
    }
    parts.resize(3, "0".to_owned());
    Ok(parts.join("."))
}

fn without_zeros(part: &str) -> String {
    let trimmed = part.trim_start_matches('0');
    match part.len() {
        0 | 1 => part.to_owned(),
        _ if trimmed.starts_with(|it: char| it.is_ascii_digit()) => trimmed.to_owned(),
        _ => format!("0{trimmed}"),
    }
}

/// A named format and its check.
#[derive(Debug)]
pub struct Format {
    function: &'static str,
    name: &'static str,
    check: fn(&str) -> Vec<String>,
    /// What costs are reckoned by (`MaxRegexSize`).
    pub regex_size: u64,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

const fn named(function: &'static str, name: &'static str, regex_size: u64, check: fn(&str) -> Vec<String>) -> Format {
    Format { function, name, check, regex_size }
}

const UUID: &str = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";

static FORMATS: [Format; 13] = [
    named("format.dns1123Label", "DNS1123Label", 30, |it| owned(names::dns1123_label(it))),
    named("format.dns1123Subdomain", "DNS1123Subdomain", 60, |it| owned(names::dns1123_subdomain(it))),
    named("format.dns1035Label", "DNS1035Label", 30, |it| owned(names::dns1035_label(it))),
    named("format.qualifiedName", "QualifiedName", 60, |it| owned(names::qualified_name(it))),
    named("format.dns1123LabelPrefix", "DNS1123LabelPrefix", 30, |it| owned(names::dns1123_label(&without_dash(it)))),
    named("format.dns1123SubdomainPrefix", "DNS1123SubdomainPrefix", 60, |it| owned(names::dns1123_subdomain(&without_dash(it)))),
    named("format.dns1035LabelPrefix", "DNS1035LabelPrefix", 30, |it| owned(names::dns1035_label(&without_dash(it)))),
    named("format.labelValue", "LabelValue", 40, |it| owned(names::label_value(it))),
    named("format.uri", "URI", 1103, |it| Url::parse(it).err().into_iter().collect()),
    named("format.uuid", "uuid", 70, |it| unless(strings::regex(UUID).is_ok_and(|uuid| uuid.is_match(it)), "does not match the UUID format")),
    named("format.byte", "byte", 84, |it| unless(!it.is_empty() && BASE64.decode(it).is_ok(), "invalid base64")),
    named("format.date", "date", 71, |it| unless(it.len() == 10 && it.parse::<jiff::civil::Date>().is_ok(), "invalid date")),
    named("format.datetime", "datetime", 71, |it| unless(it.contains(['T', 't']) && it.parse::<jiff::Timestamp>().is_ok(), "invalid datetime")),
];

fn owned(problems: names::Problems) -> Vec<String> {
    problems.into_iter().map(|it| it.to_string()).collect()
}

fn unless(is_fine: bool, problem: &str) -> Vec<String> {
    if is_fine { Vec::new() } else { vec![problem.to_owned()] }
}

/// A prefix may end with a dash, as names are made of it (`maskTrailingDash`).
fn without_dash(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => text.to_owned(),
    }
}
