//! Kubernetes' own values: quantities, addresses, URLs, versions, formats. Follows apiserver `pkg/cel/library/{quantity,ip,cidr,urls,semverlib,format}.go`.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
};

use super::{
    functions::Native,
    value::{Eval, Key, Map, Val, fail, no_overload},
};
use crate::meta::{Quantity, names};

#[derive(Clone, Debug, PartialEq)]
pub enum Kube {
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Url),
    Semver(Semver),
    Format(&'static Format),
}

impl Kube {
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
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
            Self::Cidr(_, bits) => u64::from(bits.div_ceil(8)),
            _ => 1,
        }
    }
}

impl fmt::Display for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity(it) => it.fmt(f),
            Self::Ip(it) => it.fmt(f),
            Self::Cidr(address, bits) => write!(f, "{address}/{bits}"),
            Self::Url(it) => f.write_str(&it.text),
            Self::Semver(it) => write!(f, "{}.{}.{}", it.numbers[0], it.numbers[1], it.numbers[2]),
            Self::Format(it) => f.write_str(it.name),
        }
    }
}

#[rustfmt::skip]
pub const TABLE: &[(&str, Native)] = &[
    ("quantity", |a| text(a)?.parse().map(|it| Val::kube(Kube::Quantity(it))).or_else(|why: crate::meta::quantity::ParseError| fail(why.to_string()))),
    ("isQuantity", |a| Ok(Val::Bool(text(a)?.parse::<Quantity>().is_ok()))),
    ("sign", |a| quantity(a).map(|it| Val::Int(it.cmp(&Quantity::ZERO) as i64))),
    ("asApproximateFloat", |a| quantity(a).map(|it| Val::Double(it.approximate()))),
    ("isInteger", |a| quantity(a).map(|it| Val::Bool(it.is_whole()))),
    ("asInteger", |a| quantity(a).and_then(|it| if it.is_whole() { Ok(Val::Int(it.units())) } else { fail("cannot convert value to integer") })),
    ("isGreaterThan", |a| compare(a).map(|it| Val::Bool(it.is_gt()))),
    ("isLessThan", |a| compare(a).map(|it| Val::Bool(it.is_lt()))),
    ("compareTo", |a| compare(a).map(|it| Val::Int(it as i64))),
    ("add", |a| Ok(Val::kube(Kube::Quantity(quantity(a)?.add(addend(a)?))))),
    ("sub", |a| Ok(Val::kube(Kube::Quantity(quantity(a)?.sub(addend(a)?))))),
    ("ip", |a| match kube(a) {
        Some(Kube::Cidr(address, _)) => Ok(Val::kube(Kube::Ip(*address))),
        _ => parse_ip(text(a)?).map_or_else(fail, |it| Ok(Val::kube(Kube::Ip(it)))),
    }),
    ("isIP", |a| Ok(Val::Bool(parse_ip(text(a)?).is_ok()))),
    ("ip.isCanonical", |a| parse_ip(text(a)?).map_or_else(fail, |it| Ok(Val::Bool(it.to_string() == text(a).unwrap_or_default())))),
    ("family", |a| address(a).map(|it| Val::Int(if it.is_ipv4() { 4 } else { 6 }))),
    ("isUnspecified", |a| address(a).map(|it| Val::Bool(it.is_unspecified()))),
    ("isLoopback", |a| address(a).map(|it| Val::Bool(it.is_loopback()))),
    ("isLinkLocalMulticast", |a| address(a).map(|it| Val::Bool(match it { IpAddr::V4(it) => it.octets()[..3] == [224, 0, 0], IpAddr::V6(it) => it.segments()[0] & 0xff0f == 0xff02 }))),
    ("isLinkLocalUnicast", |a| address(a).map(|it| Val::Bool(is_link_local(it)))),
    ("isGlobalUnicast", |a| address(a).map(|it| {
        let is_broadcast = it == IpAddr::V4(Ipv4Addr::BROADCAST);
        Val::Bool(!(it.is_unspecified() || it.is_loopback() || it.is_multicast() || is_link_local(it) || is_broadcast))
    })),
    ("cidr", |a| parse_cidr(text(a)?).map_or_else(|why| fail(format!("network address parse error during conversion from string: {why}")), |it| Ok(Val::kube(it)))),
    ("isCIDR", |a| Ok(Val::Bool(parse_cidr(text(a)?).is_ok()))),
    ("prefixLength", |a| match kube(a) { Some(Kube::Cidr(_, bits)) => Ok(Val::Int(i64::from(*bits))), _ => no_overload() }),
    ("masked", |a| match kube(a) { Some(Kube::Cidr(address, bits)) => Ok(Val::kube(Kube::Cidr(masked(*address, *bits), *bits))), _ => no_overload() }),
    ("containsIP", |a| match (kube(a), kube(&a[1..]), &a[1]) {
        (Some(Kube::Cidr(net, bits)), Some(Kube::Ip(ip)), _) => Ok(Val::Bool(holds(*net, *bits, *ip))),
        (Some(Kube::Cidr(net, bits)), None, Val::String(ip)) => parse_ip(ip).map_or_else(fail, |ip| Ok(Val::Bool(holds(*net, *bits, ip)))),
        _ => no_overload(),
    }),
    ("containsCIDR", |a| {
        let other = match (kube(&a[1..]), &a[1]) {
            (Some(Kube::Cidr(net, bits)), _) => (*net, *bits),
            (None, Val::String(text)) => match parse_cidr(text) {
                Ok(Kube::Cidr(net, bits)) => (net, bits),
                Ok(_) => return no_overload(),
                Err(why) => return fail(format!("network address parse error during conversion from string: {why}")),
            },
            _ => return no_overload(),
        };
        match kube(a) { Some(Kube::Cidr(net, bits)) => Ok(Val::Bool(*bits <= other.1 && holds(*net, *bits, other.0))), _ => no_overload() }
    }),
    ("url", |a| Url::parse(text(a)?).map_or_else(|why| fail(format!("URL parse error during conversion from string: {why}")), |it| Ok(Val::kube(Kube::Url(it))))),
    ("isURL", |a| Ok(Val::Bool(Url::parse(text(a)?).is_ok()))),
    ("getScheme", |a| url(a, |it| it.scheme.clone())),
    ("getHost", |a| url(a, |it| it.host.clone())),
    ("getHostname", |a| url(a, |it| it.split_host().0.to_owned())),
    ("getPort", |a| url(a, |it| it.split_host().1.to_owned())),
    ("getEscapedPath", |a| url(a, |it| it.path.clone())),
    ("getQuery", |a| match kube(a) { Some(Kube::Url(it)) => Ok(it.query_map()), _ => no_overload() }),
    ("semver", |a| Semver::parse(text(a)?, is_true(a.get(1))).map_or_else(fail, |it| Ok(Val::kube(Kube::Semver(it))))),
    ("isSemver", |a| Ok(Val::Bool(Semver::parse(text(a)?, is_true(a.get(1))).is_ok()))),
    ("major", |a| semver(a, 0)),
    ("minor", |a| semver(a, 1)),
    ("patch", |a| semver(a, 2)),
    ("format.named", |a| {
        let name = text(a)?;
        Ok(FORMATS.iter().find(|it| it.function.strip_prefix("format.") == Some(name)).map_or_else(Val::none, |it| Val::some(Val::kube(Kube::Format(it)))))
    }),
    ("format.dns1123Label", |_| Ok(Val::kube(Kube::Format(&FORMATS[0])))),
    ("format.dns1123Subdomain", |_| Ok(Val::kube(Kube::Format(&FORMATS[1])))),
    ("format.dns1035Label", |_| Ok(Val::kube(Kube::Format(&FORMATS[2])))),
    ("format.qualifiedName", |_| Ok(Val::kube(Kube::Format(&FORMATS[3])))),
    ("format.dns1123LabelPrefix", |_| Ok(Val::kube(Kube::Format(&FORMATS[4])))),
    ("format.dns1123SubdomainPrefix", |_| Ok(Val::kube(Kube::Format(&FORMATS[5])))),
    ("format.dns1035LabelPrefix", |_| Ok(Val::kube(Kube::Format(&FORMATS[6])))),
    ("format.labelValue", |_| Ok(Val::kube(Kube::Format(&FORMATS[7])))),
    ("format.uri", |_| Ok(Val::kube(Kube::Format(&FORMATS[8])))),
    ("format.uuid", |_| Ok(Val::kube(Kube::Format(&FORMATS[9])))),
    ("format.byte", |_| Ok(Val::kube(Kube::Format(&FORMATS[10])))),
    ("format.date", |_| Ok(Val::kube(Kube::Format(&FORMATS[11])))),
    ("format.datetime", |_| Ok(Val::kube(Kube::Format(&FORMATS[12])))),
    ("validate", |a| match (kube(a), &a[1]) {
        (Some(Kube::Format(format)), Val::String(text)) => {
            let problems = (format.check)(text);
            Ok(if problems.is_empty() { Val::none() } else { Val::some(Val::list(problems.into_iter().map(Val::text).collect())) })
        }
        _ => no_overload(),
    }),
];

fn text<'v>(args: &'v [Val<'_>]) -> Eval<&'v str> {
    match args.first() {
        Some(Val::String(text)) => Ok(text),
        _ => no_overload(),
    }
}

fn is_true(value: Option<&Val<'_>>) -> bool {
    matches!(value, Some(Val::Bool(true)))
}

fn kube<'v>(args: &'v [Val<'_>]) -> Option<&'v Kube> {
    match args.first() {
        Some(Val::Kube(it)) => Some(it),
        _ => None,
    }
}

fn quantity(args: &[Val<'_>]) -> Eval<Quantity> {
    match kube(args) {
        Some(Kube::Quantity(it)) => Ok(*it),
        _ => no_overload(),
    }
}

fn addend(args: &[Val<'_>]) -> Eval<Quantity> {
    match args.get(1) {
        Some(Val::Int(units)) => Ok(Quantity::from_units(*units, crate::meta::quantity::Format::DecimalExponent)),
        _ => quantity(&args[1..]),
    }
}

fn compare(args: &[Val<'_>]) -> Eval<Ordering> {
    match (kube(args), kube(&args[1..])) {
        (Some(Kube::Quantity(a)), Some(Kube::Quantity(b))) => Ok(a.cmp(b)),
        (Some(Kube::Semver(a)), Some(Kube::Semver(b))) => Ok(a.order(b)),
        _ => no_overload(),
    }
}

fn address(args: &[Val<'_>]) -> Eval<IpAddr> {
    match kube(args) {
        Some(Kube::Ip(it)) => Ok(*it),
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

fn parse_cidr(text: &str) -> Result<Kube, String> {
    let refuse = |why: &str| Err(format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"));
    let Some((address, bits)) = text.rsplit_once('/') else { return refuse("no '/'") };
    let Ok(ip) = address.parse::<IpAddr>() else { return refuse(&format!("ParseAddr({address:?}): {}", ip_problem(address))) };
    let is_plain = !bits.is_empty() && bits.chars().all(|it| it.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
    let Some(length) = bits.parse::<u8>().ok().filter(|_| is_plain) else { return refuse(&format!("bad bits after slash: {bits:?}")) };
    if length > if ip.is_ipv4() { 32 } else { 128 } {
        return refuse("prefix length out of range");
    }
    match ip {
        IpAddr::V6(it) if it.to_ipv4_mapped().is_some() => Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed")),
        _ => Ok(Kube::Cidr(ip, length)),
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(it) => Ipv4Addr::from(u32::from(it) & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)).into(),
        IpAddr::V6(it) => Ipv6Addr::from(u128::from(it) & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)).into(),
    }
}

fn holds(net: IpAddr, bits: u8, ip: IpAddr) -> bool {
    net.is_ipv4() == ip.is_ipv4() && masked(net, bits) == masked(ip, bits)
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
        if let Some(at) = path.find('%').filter(|at| path.get(at + 1..at + 3).is_none_or(|it| !it.chars().all(|it| it.is_ascii_hexdigit()))) {
            return refuse(format!("invalid URL escape {:?}", path[at..].chars().take(3).collect::<String>()));
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
        for pair in self.query.split('&').filter(|it| !it.is_empty() && !it.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let (Some(key), Some(value)) = (unescaped(key), unescaped(value)) {
                all.entry(key).or_default().push(Val::text(value));
            }
        }
        let made = all.into_iter().map(|(key, values)| (Key::Text(key.clone()), (Val::text(key), Val::list(values)))).collect();
        Val::Map(Map::Made(Rc::new(made)))
    }
}

/// Characters that a path may not show are escaped; what is escaped already stays so.
fn escaped_path(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*%[]".contains(&byte);
    path.bytes().map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                rest = &after[2..];
                u8::from_str_radix(digits, 16).ok()?
            }
            other => *other,
        });
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn url<'a>(args: &[Val<'a>], read: fn(&Url) -> String) -> Eval<Val<'a>> {
    match kube(args) {
        Some(Kube::Url(it)) => Ok(Val::text(read(it))),
        _ => no_overload(),
    }
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

fn semver<'a>(args: &[Val<'a>], at: usize) -> Eval<Val<'a>> {
    match kube(args) {
        Some(Kube::Semver(it)) => Ok(Val::Int(it.numbers[at] as i64)),
        _ => no_overload(),
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
    named("format.uuid", "uuid", 70, |it| unless(is_uuid(it), "does not match the UUID format")),
    named("format.byte", "byte", 84, |it| unless(!it.is_empty() && base64::Engine::decode(&base64::engine::general_purpose::STANDARD, it).is_ok(), "invalid base64")),
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

fn is_uuid(text: &str) -> bool {
    let groups = [8, 4, 4, 4, 12];
    let plain: String = text.chars().filter(|it| *it != '-').collect();
    let dashes: Vec<usize> = text.char_indices().filter(|(_, it)| *it == '-').map(|(at, _)| at).collect();
    let allowed: Vec<usize> = groups[..4].iter().scan((0, 0), |(sum, seen), size| {
        *sum += size;
        let at = *sum + *seen;
        *seen += usize::from(dashes.contains(&at));
        Some(at)
    }).collect();
    plain.len() == 32 && plain.chars().all(|it| it.is_ascii_hexdigit()) && dashes.iter().all(|it| allowed.contains(it))
}
