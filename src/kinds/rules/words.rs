//! The tests that a rule may name: each looks at one value.

use core::net::IpAddr;
use std::collections::HashMap;

use super::{Run, Site, Test, is_zero};
use crate::{
    kinds::{check, metadata},
    meta::{FieldError, FieldErrors, Meta, Path, Quantity, Value, names},
};

/// The function for a word of the table.
pub fn find(name: &str) -> Option<Run> {
    WORDS.iter().chain(NAMES).find(|it| it.0 == name).map(|it| it.1)
}

const WORDS: &[(&str, Run)] = &[
    ("required", |site, test, errors| push_if(site.is_whole() || is_zero(site.value), FieldError::required(site.path(), site.say(test)), errors)),
    ("needed", |site, test, errors| push_if(site.value.is_null(), FieldError::required(site.path(), site.say(test)), errors)),
    ("missing", |site, test, errors| errors.push(FieldError::required(site.path(), site.say(test)))),
    ("forbidden", |site, test, errors| errors.push(FieldError::forbidden(site.path(), site.say(test)))),
    ("invalid", |site, test, errors| errors.push(FieldError::invalid(site.path(), site.value.clone(), site.say(test)))),
    ("unsupported", |site, test, errors| errors.push(FieldError::not_supported(site.path(), site.value.clone(), &test.argument.split(',').collect::<Vec<_>>()))),
    ("notfound", |site, test, errors| errors.push(FieldError { detail: site.say(test), ..FieldError::not_found(site.path(), site.value.clone()) })),
    ("duplicate", |site, test, errors| errors.push(FieldError { detail: site.say(test), ..FieldError::duplicate(site.path(), site.value.clone()) })),
    ("untold", |site, test, errors| errors.push(FieldError::invalid(site.path(), Value::Null, site.say(test)).untold())),
    ("bare", |site, test, errors| errors.push(FieldError::invalid(site.path(), Value::Null, site.say(test)))),
    ("oneof", |site, test, errors| {
        let words: Vec<&str> = test.argument.split(',').collect();
        push_if(!words.contains(&text(site.value)), FieldError::not_supported(site.path(), text(site.value), &words), errors);
    }),
    ("nonneg", |site, _, errors| push_if(is_negative(site.value), FieldError::invalid(site.path(), site.value.clone(), NOT_NEGATIVE), errors)),
    ("positive", |site, _, errors| {
        let is_fine = !is_zero(site.value) && !is_negative(site.value) && quantity(site.value).is_none_or(|it| !it.is_zero());
        push_if(!is_fine, FieldError::invalid(site.path(), number(site.value), "must be greater than zero"), errors);
    }),
    ("range", |site, test, errors| {
        let (least, most) = test.argument.split_once(',').unwrap_or_default();
        let is_fine = int(site.value) >= least.parse().unwrap_or(i64::MIN) && int(site.value) <= most.parse().unwrap_or(i64::MAX);
        let message = site.say_or(test, || format!("must be between {least} and {most}, inclusive"));
        push_if(!is_fine, FieldError::invalid(site.path(), number(site.value), message), errors);
    }),
    ("min", |site, test, errors| {
        let is_low = test.argument.parse().is_ok_and(|it: i64| int(site.value) < it);
        let message = site.say_or(test, || format!("must be greater than or equal to {}", test.argument));
        push_if(is_low, FieldError::invalid(site.path(), number(site.value), message), errors);
    }),
    ("max", |site, test, errors| {
        let is_high = test.argument.parse().is_ok_and(|it: i64| int(site.value) > it);
        push_if(is_high, FieldError::invalid(site.path(), number(site.value), site.say(test)), errors);
    }),
    ("zero", |site, test, errors| errors.push(FieldError::invalid(site.path(), "", site.say(test)))),
    ("short", |site, test, errors| {
        let is_long = test.argument.parse().is_ok_and(|it: usize| text(site.value).len() > it);
        push_if(is_long, FieldError::invalid(site.path(), "", format!("can have at most {} characters", test.argument)), errors);
    }),
    ("maxlen", |site, test, errors| {
        let most = test.argument.parse().unwrap_or(usize::MAX);
        push_if(text(site.value).len() > most, FieldError::too_long(site.path(), most), errors);
    }),
    ("maxitems", |site, test, errors| {
        let (count, most) = (length(site.value), test.argument.parse().unwrap_or(usize::MAX));
        push_if(count > most, FieldError::too_many(site.path(), count, most), errors);
    }),
    ("immutable", |site, _, errors| {
        push_if(is_changed(site), FieldError::invalid(site.path(), site.value.clone(), metadata::IMMUTABLE), errors);
    }),
    ("fixed", |site, test, errors| push_if(is_changed(site), FieldError::forbidden(site.path(), site.say(test)), errors)),
    ("labels", |site, _, errors| metadata::labels(site.value.as_object(), site.path(), errors)),
    ("annotations", |site, _, errors| metadata::annotations(site.value.as_object(), site.path(), errors)),
    ("portornum", |site, _, errors| match site.value {
        Value::String(name) => check::all(names::port_name(name), name, site.path(), errors),
        other => check::all_of(names::port_number(int(other)), number(other), site.path(), errors),
    }),
    ("port", |site, _, errors| check::all_of(names::port_number(int(site.value)), number(site.value), site.path(), errors)),
    ("percent", |site, _, errors| check::percent(site.value, site.path(), errors)),
    ("nosteps", |site, _, errors| no_steps(site, errors)),
    ("relative", relative),
    ("inside", |site, test, errors| {
        relative(site, test, errors);
        let path = text(site.value);
        push_if(path.starts_with("..") && !path.starts_with("../") && path != "..", FieldError::invalid(site.path(), path, "must not start with '..'"), errors);
    }),
    ("matches", |site, test, errors| {
        let is_fine = crate::meta::pattern::compiled(test.argument).is_ok_and(|it| it.is_match(text(site.value)));
        push_if(!is_fine, FieldError::invalid(site.path(), text(site.value), site.say(test)), errors);
    }),
    ("ip", |site, _, errors| legacy_ip(site, errors)),
    ("address", |site, _, errors| errors.extend(ip_problem(text(site.value)).map(|it| FieldError::invalid(site.path(), text(site.value), it)))),
    ("fqdn", |site, _, errors| fqdn(text(site.value), site.path(), errors)),
    ("endpoint", |site, _, errors| endpoint_ip(text(site.value), site.path(), errors)),
    ("cidr", |site, _, errors| {
        let old = site.old.map_or("", text);
        if text(site.value) != old && crate::meta::names::cidr(text(site.value)).is_none() {
            errors.push(FieldError::invalid(site.path(), text(site.value), "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
        }
    }),
    // Of an object only these fields may change.
    ("but", |site, test, errors| {
        let is_kept = |it: &(&String, &Value)| !it.1.is_null() && !test.argument.split(',').any(|name| it.0 == name);
        let rest = |value: &Value| value.as_object().into_iter().flatten().filter(is_kept).map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>();
        push_if(site.old.is_some_and(|old| rest(site.value) != rest(old)), FieldError::forbidden(site.path(), site.say(test)), errors);
    }),
    ("one", one),
    ("cel", |site, test, errors| errors.extend(site.complaint(test.argument).map(|it| FieldError::invalid(site.path(), text(site.value), it)))),
];

/// Words for what a text must be, by upstream's sentences.
const NAMES: &[(&str, Run)] = &[
    ("label", |site, test, errors| named(names::dns1123_label, test, site, errors)),
    ("subdomain", |site, test, errors| named(names::dns1123_subdomain, test, site, errors)),
    ("underscored", |site, test, errors| named(names::underscored_subdomain, test, site, errors)),
    ("dns1035", |site, test, errors| named(names::dns1035_label, test, site, errors)),
    ("qualified", |site, test, errors| named(names::qualified_name, test, site, errors)),
    ("labelvalue", |site, test, errors| named(names::label_value, test, site, errors)),
    ("joinedvalue", |site, _, errors| {
        let problems = names::label_value(text(site.value));
        push_if(!problems.is_empty(), FieldError::invalid(site.path(), text(site.value), problems.join(";")), errors);
    }),
    ("joinedsubdomain", |site, _, errors| {
        let problems = names::dns1123_subdomain(text(site.value));
        push_if(!problems.is_empty(), FieldError::invalid(site.path(), text(site.value), problems.join(",")), errors);
    }),
    ("joined1035", |site, test, errors| {
        let name = text(site.value);
        let problems = names::dns1035_label(&if test.argument == "lower" { name.to_lowercase() } else { name.to_owned() });
        let before = site.say(test);
        let before = if before.is_empty() { String::new() } else { format!("{before}: ") };
        push_if(!problems.is_empty(), FieldError::invalid(site.path(), name, before + &problems.join(",")), errors);
    }),
    ("portname", |site, test, errors| named(names::port_name, test, site, errors)),
    ("key", |site, test, errors| named(names::config_map_key, test, site, errors)),
    ("env", |site, test, errors| named(names::env_var_name, test, site, errors)),
    ("segment", |site, test, errors| named(names::path_segment, test, site, errors)),
    ("header", |site, test, errors| named(names::http_header_name, test, site, errors)),
    ("identifier", |site, test, errors| named(names::c_identifier, test, site, errors)),
    ("driver", |site, _, errors| {
        push_if(text(site.value).len() > names::LABEL_MAX, FieldError::too_long(site.path(), names::LABEL_MAX), errors);
        check::all(names::dns1123_subdomain(&text(site.value).to_lowercase()), text(site.value), site.path(), errors);
    }),
    ("host", |site, _, errors| {
        let name = text(site.value);
        let check = if name.contains('*') { names::wildcard_subdomain } else { names::dns1123_subdomain };
        check::all(check(name), name, site.path(), errors);
    }),
];

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

pub fn push_if(is_wrong: bool, error: FieldError, errors: &mut FieldErrors) {
    if is_wrong {
        errors.push(error);
    }
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// A value as Go would print it: an absent number is 0.
fn number(value: &Value) -> Value {
    if value.is_null() { 0.into() } else { value.clone() }
}

pub fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

fn length(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

fn is_negative(value: &Value) -> bool {
    value.as_i64().is_some_and(|it| it < 0) || quantity(value).is_some_and(Quantity::is_negative)
}

fn is_changed(site: &Site<'_>) -> bool {
    let old = site.old.unwrap_or(&Value::Null);
    site.old_object.is_some() && *site.value != *old && !(is_zero(site.value) && is_zero(old) && site.value.is_null() != old.is_null() && !old.is_boolean() && !site.value.is_boolean())
}

/// What is wrong with a name; the rule's words stand before it.
fn named(check: fn(&str) -> names::Problems, test: &Test, site: &Site<'_>, errors: &mut FieldErrors) {
    let name = text(site.value);
    for problem in check(name) {
        let before = site.say(test);
        let detail = if before.is_empty() { problem } else { format!("{before} {problem}").into() };
        errors.push(FieldError::invalid(site.path(), name, detail));
    }
}

fn no_steps(site: &Site<'_>, errors: &mut FieldErrors) {
    let path = text(site.value);
    push_if(path.split('/').any(|it| it == ".."), FieldError::invalid(site.path(), path, "must not contain '..'"), errors);
}

fn relative(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let path = text(site.value);
    push_if(path.starts_with('/'), FieldError::invalid(site.path(), path, "must be a relative path"), errors);
    no_steps(site, errors);
}

/// `IsValidIPForLegacyField`: what was there before may stay. Leading zeros and IPv4-mapped addresses are refused.
pub fn legacy_ip(site: &Site<'_>, errors: &mut FieldErrors) {
    let ip = text(site.value);
    if site.old.map(text) == Some(ip) && !ip.is_empty() {
        return;
    }
    errors.extend(ip_problem(ip).map(|it| FieldError::invalid(site.path(), ip, it)));
}

pub fn ip_problem(ip: &str) -> Option<&'static str> {
    match ip.parse::<IpAddr>() {
        Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        Ok(IpAddr::V6(it)) if it.to_ipv4_mapped().is_some() => Some("must not be an IPv4-mapped IPv6 address"),
        Ok(_) => None,
    }
}

/// `ValidateEndpointIP`.
pub fn endpoint_ip(ip: &str, path: &Path, errors: &mut FieldErrors) {
    let mut wrong = |detail: String| errors.push(FieldError::invalid(path, ip, detail));
    let Ok(address) = ip.parse::<IpAddr>() else { return wrong("must be a valid IP address".to_owned()) };
    let (is_link_local, is_group) = match address {
        IpAddr::V4(it) => (it.is_link_local(), it.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(it) => (it.segments()[0] & 0xffc0 == 0xfe80, it.segments()[0] & 0xff0f == 0xff02),
    };
    if address.is_unspecified() {
        wrong(format!("may not be unspecified ({ip})"));
    }
    if address.is_loopback() {
        wrong("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    if is_link_local {
        wrong("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if is_group {
        wrong("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    }
}

/// `IsFullyQualifiedDomainName`.
fn fqdn(name: &str, path: &Path, errors: &mut FieldErrors) {
    if name.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let problems = names::dns1123_subdomain(name);
    if !problems.is_empty() {
        return check::all(problems, name, path, errors);
    }
    push_if(!name.contains('.'), FieldError::invalid(path, name, "should be a domain with at least two segments separated by dots"), errors);
    for label in name.split('.') {
        check::all(names::dns1123_label(label), label, path, errors);
    }
}

/// Of the fields named, one is set: none is an error of the object, each beyond the first one of its own. The message has both texts.
fn one(site: &Site<'_>, test: &Test, errors: &mut FieldErrors) {
    let message = site.say(test);
    let (none, many) = message.split_once("; ").unwrap_or((&message, &message));
    // Some are called otherwise in upstream's errors: `field:shown`.
    let fields = test.argument.split(',').map(|it| it.split_once(':').unwrap_or((it, it)));
    let mut set = fields.filter(|it| site.value.get(it.0).is_some_and(|it| !it.is_null()));
    if set.next().is_none() {
        errors.push(FieldError::required(site.path(), none.to_owned()));
    }
    errors.extend(set.map(|it| FieldError::forbidden(&site.path().child(it.1), many.to_owned())));
}

/// The quantities of a map by name.
pub fn quantities<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a str, Quantity, &'a Value)> {
    let map = object.map_at(path).into_iter().flatten();
    map.filter_map(|(name, value)| Some((name.as_str(), quantity(value)?, value)))
}

/// What containers ask for, all together.
pub fn requested(containers: &[Value]) -> HashMap<&str, Quantity> {
    let mut sums = HashMap::new();
    for (name, amount, _) in containers.iter().flat_map(|it| quantities(it, &["resources", "requests"])) {
        sums.entry(name).and_modify(|it: &mut Quantity| *it = it.add(amount)).or_insert(amount);
    }
    sums
}
