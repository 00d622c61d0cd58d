//! Admission by the Pod Security Standards that a namespace's labels ask for: pods are refused, what makes pods is warned of.
//! Source: pod-security-admission `admission/admission.go`.

use std::collections::{BTreeMap, HashSet};

use super::admission::Context;
use crate::{
    kinds::podsecurity::{Level, Policy, Standard, details, reasons, violations},
    meta::{Meta, Result, Value},
    store::Key,
};

/// Pods that are looked at when a namespace becomes stricter (`defaultNamespaceMaxPodsToCheck`).
const PODS_MAX: usize = 3000;
/// What of a pod is neither its specification nor its images.
const IGNORED: [&str; 8] = ["attach", "binding", "eviction", "exec", "log", "portforward", "proxy", "status"];
/// What makes pods, and where their template stands.
const TEMPLATES: [(&str, &str, &[&str]); 8] = [
    ("", "replicationcontrollers", &["spec", "template"]),
    ("", "podtemplates", &["template"]),
    ("apps", "daemonsets", &["spec", "template"]),
    ("apps", "deployments", &["spec", "template"]),
    ("apps", "replicasets", &["spec", "template"]),
    ("apps", "statefulsets", &["spec", "template"]),
    ("batch", "jobs", &["spec", "template"]),
    ("batch", "cronjobs", &["spec", "jobTemplate", "spec", "template"]),
];

pub fn check(context: &Context<'_>, object: &Value) -> Result<()> {
    let kind = &context.target.kind;
    if context.is("", "namespaces") {
        return namespace(context, object);
    }
    if kind.group.is_empty() && kind.plural == "pods" && !IGNORED.contains(&context.target.subresource_name()) {
        return match context.old {
            Some(old) if !is_significant(old, object) => Ok(()),
            _ => evaluate(context, object, true),
        };
    }
    let made = TEMPLATES.iter().find(|(group, plural, _)| context.is(group, plural));
    match made.and_then(|(.., place)| object.at(place)) {
        Some(template) => evaluate(context, template, false),
        None => Ok(()),
    }
}

/// Images are what of a pod can change and matters here.
fn is_significant(old: &Value, new: &Value) -> bool {
    let images = |pod: &Value, field: &str| -> BTreeMap<String, String> {
        pod.items_at(&["spec", field]).iter().map(|it| (it.text("name").to_owned(), it.text("image").to_owned())).collect()
    };
    ["initContainers", "containers", "ephemeralContainers"].iter().any(|it| images(old, it) != images(new, it))
}

fn evaluate(context: &Context<'_>, pod: &Value, is_enforced: bool) -> Result<()> {
    let Some(namespace) = context.snapshot.get(&Key::new("namespaces", "", &context.target.namespace)) else { return Ok(()) };
    let (policy, _) = Policy::of(&namespace.value());
    if policy.is_fully_privileged() {
        return Ok(());
    }
    if is_enforced {
        let broken = violations(policy.enforce, pod);
        if !broken.is_empty() {
            let why = format!("violates PodSecurity {:?}: {}", policy.enforce.to_string(), details(&broken));
            return Err(context.forbid(pod, why));
        }
    }
    let broken = violations(policy.warn, pod);
    if !broken.is_empty() {
        context.requester.warn(&format!("would violate PodSecurity {:?}: {}", policy.warn.to_string(), details(&broken)));
    }
    Ok(())
}

/// Labels must be right when they are set; a namespace that becomes stricter is told which of its pods would not be let in now.
fn namespace(context: &Context<'_>, namespace: &Value) -> Result<()> {
    let (policy, errors) = Policy::of(namespace);
    let before = context.old.map(Policy::of);
    let is_known = before.as_ref().is_some_and(|(_, before)| before.iter().map(ToString::to_string).eq(errors.iter().map(ToString::to_string)));
    if !errors.is_empty() && !is_known {
        return Err(context.target.kind.invalid(namespace.name(), errors));
    }
    let Some((before, _)) = before else { return Ok(()) };
    let (now, was) = (policy.enforce, before.enforce);
    let is_stricter = now != was && now.level != Level::Privileged && !(now.minor == was.minor && now.level <= was.level);
    if is_stricter {
        warn_of_pods(context, namespace.name(), now);
    }
    Ok(())
}

fn warn_of_pods(context: &Context<'_>, namespace: &str, enforced: Standard) {
    let all: Vec<Value> = context.snapshot.list("pods", Some(namespace), None).map(|it| it.value()).collect();
    // Of a controller's pods one is as good as all; the others come last.
    let mut seen = HashSet::new();
    let controller = |pod: &Value| pod.items_at(&["metadata", "ownerReferences"]).iter().find(|it| it["controller"] == true).map(|it| it.text("uid").to_owned());
    let (first, rest): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|it| controller(it).is_none_or(|uid| seen.insert(uid)));
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in first.into_iter().chain(rest).take(PODS_MAX) {
        let broken = violations(enforced, pod);
        if !broken.is_empty() {
            found.entry(reasons(&broken)).or_default().push(pod.name());
        }
    }
    let warn = |text: String| context.requester.warn(&text);
    if all.len() > PODS_MAX {
        warn(format!("new PodSecurity enforce level only checked against the first {PODS_MAX} of {} existing pods", all.len()));
    }
    if !found.is_empty() {
        warn(format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}", enforced.to_string()));
    }
    let mut lines: Vec<String> = found.into_iter().map(|(why, pods)| pods_line(&why, &pods)).collect();
    lines.sort();
    lines.into_iter().for_each(warn);
}

fn pods_line(why: &str, pods: &[&str]) -> String {
    let name = pods.iter().min().copied().unwrap_or_default();
    match pods.len() {
        1 => format!("{name}: {why}"),
        2 => format!("{name} (and 1 other pod): {why}"),
        count => format!("{name} (and {} other pods): {why}", count - 1),
    }
}
