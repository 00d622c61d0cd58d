//! The Pod Security Standards: what a pod may not ask for at the levels `baseline` and `restricted`, by version. Pure.
//! Source: pod-security-admission `policy/check_*.go`, `api/helpers.go`.

use std::{collections::BTreeSet, fmt};

use self::Level::{Baseline, Privileged, Restricted};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value};

/// How strict, from the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level and the minor version of Kubernetes whose rules count; `None` is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub minor: Option<u32>,
}

/// What the labels of a namespace ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

const PREFIX: &str = "pod-security.kubernetes.io/";

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}:v1.{minor}", self.level),
            None => write!(f, "{}:latest", self.level),
        }
    }
}

impl Standard {
    fn holds_from(self, minor: u32) -> bool {
        self.minor.is_none_or(|it| it >= minor)
    }
}

impl Policy {
    /// What a namespace asks for, and what is wrong with its labels. A level that is none is taken for `restricted` where it is enforced.
    pub fn of(namespace: &Value) -> (Self, FieldErrors) {
        let mut errors = FieldErrors::new();
        let mut read = |mode: &str| {
            let level = label(namespace, mode, parse_level, "must be one of privileged, baseline, restricted", &mut errors);
            let minor = label(namespace, &format!("{mode}-version"), parse_version, "must be \"latest\" or \"v1.x\"", &mut errors);
            (level, minor.map(Option::flatten))
        };
        let (enforced, audited, warned) = (read("enforce"), read("audit"), read("warn"));
        let level = |read: Option<Option<Level>>, fallback: Level| read.map_or(Privileged, |it| it.unwrap_or(fallback));
        let enforce = Standard { level: level(enforced.0, Restricted), minor: enforced.1.flatten() };
        let audit = Standard { level: level(audited.0, Privileged), minor: audited.1.flatten() };
        let mut warn = Standard { level: level(warned.0, Privileged), minor: warned.1.flatten() };
        // Who is not told otherwise is warned of what is enforced.
        if warned.0.is_none() && enforced.0.flatten().is_some_and(|it| it > warn.level) {
            warn = Standard { level: enforce.level, minor: warned.1.unwrap_or(enforce.minor) };
        }
        (Self { enforce, audit, warn }, errors)
    }

    pub fn is_fully_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|it| it.level == Privileged)
    }
}

/// What a label says, where it is there; what cannot be read is told and no value.
fn label<T>(namespace: &Value, name: &str, parse: fn(&str) -> Option<T>, why: &'static str, errors: &mut FieldErrors) -> Option<Option<T>> {
    let key = format!("{PREFIX}{name}");
    let text = namespace.at(&["metadata", "labels", &key])?.as_str()?;
    let parsed = parse(text);
    if parsed.is_none() {
        errors.push(FieldError::invalid(&Path::new("metadata").child("labels").key(&key), text, why));
    }
    Some(parsed)
}

fn parse_level(text: &str) -> Option<Level> {
    [Privileged, Baseline, Restricted].into_iter().find(|it| it.to_string() == text)
}

/// `latest` is `Some(None)`.
fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let digits = text.strip_prefix("v1.")?;
    let is_canonical = digits == "0" || !digits.starts_with('0');
    digits.parse().ok().filter(|_| is_canonical && digits.bytes().all(|it| it.is_ascii_digit())).map(Some)
}

/// A rule that a pod breaks.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: &'static str,
    pub detail: String,
}

/// `host namespaces (hostNetwork=true), privileged (container "c" must not …)`.
pub fn details(violations: &[Violation]) -> String {
    violations.iter().map(|it| format!("{} ({})", it.reason, it.detail)).collect::<Vec<_>>().join(", ")
}

/// The reasons alone.
pub fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|it| it.reason).collect::<Vec<_>>().join(", ")
}

/// What `pod` (its metadata and spec, of a pod or a template) breaks, in upstream's order: the rules of `baseline` by name, then those of `restricted`.
pub fn violations(standard: Standard, pod: &Value) -> Vec<Violation> {
    let pod = Pod::of(pod, standard);
    let is_replaced = |from: Option<u32>| standard.level == Restricted && from.is_some_and(|it| standard.holds_from(it));
    let rules = RULES.iter().filter(|(level, since, until, ..)| *level <= standard.level && standard.holds_from(*since) && !is_replaced(*until));
    rules.filter_map(|(.., reason, check)| Some(Violation { reason, detail: check(&pod)? })).collect()
}

/// What breaks a rule, in words.
type Check = fn(&Pod<'_>) -> Option<String>;

/// The level of a rule, the version that brought it, the one from which on `restricted` has a stricter rule in its place, the reason, the test.
const RULES: [(Level, u32, Option<u32>, &str, Check); 20] = [
    (Baseline, 0, None, "forbidden AppArmor profile", |pod| pod.app_armor(|count| count == 1)),
    (Baseline, 0, None, "forbidden AppArmor profiles", |pod| pod.app_armor(|count| count > 1)),
    (Baseline, 0, Some(22), "non-default capabilities", |pod| pod.added_capabilities(&CAPABILITIES)),
    (Baseline, 0, None, "host namespaces", |pod| pod.host_namespaces()),
    (Baseline, 0, Some(0), "hostPath volumes", |pod| pod.host_paths()),
    (Baseline, 0, None, "hostPort", |pod| pod.host_ports()),
    (Baseline, 34, None, "probe or lifecycle host", |pod| pod.host_probes()),
    (Baseline, 0, None, "privileged", |pod| {
        pod.must(false, "not set securityContext.privileged=true", |it| is(it, &["privileged"], true))
    }),
    (Baseline, 0, Some(35), "procMount", |pod| if pod.has_own_users() { None } else { pod.proc_mount() }),
    (Baseline, 0, None, "seLinuxOptions", |pod| pod.selinux()),
    (Baseline, 0, Some(19), "seccompProfile", |pod| pod.seccomp()),
    (Baseline, 0, None, "forbidden sysctls", |pod| pod.sysctls()),
    (Baseline, 0, None, "hostProcess", |pod| {
        pod.must(true, "not set securityContext.windowsOptions.hostProcess=true", |it| is(it, &["windowsOptions", "hostProcess"], true))
    }),
    (Restricted, 8, None, "allowPrivilegeEscalation != false", |pod| {
        let is_free = |it: &Value| !pod.is_windows() && !is(it, &["allowPrivilegeEscalation"], false);
        pod.must(false, "set securityContext.allowPrivilegeEscalation=false", is_free)
    }),
    (Restricted, 22, None, "unrestricted capabilities", |pod| pod.restricted_capabilities()),
    (Restricted, 35, None, "procMount", |pod| pod.proc_mount()),
    (Restricted, 0, None, "restricted volume types", |pod| pod.restricted_volumes()),
    (Restricted, 0, None, "runAsNonRoot != true", |pod| pod.run_as_non_root()),
    (Restricted, 23, None, "runAsUser=0", |pod| pod.must(true, "not set runAsUser=0", |it| !pod.has_own_users() && is(it, &["runAsUser"], 0))),
    (Restricted, 19, None, "seccompProfile", |pod| pod.restricted_seccomp()),
];

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
];
/// Sysctls that are harmless, by the version since which that is known.
const SYSCTLS: [(u32, &[&str]); 4] = [
    (0, &["kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start"]),
    (27, &["net.ipv4.ip_local_reserved_ports"]),
    (29, &["net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"]),
    (32, &["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]),
];
const VOLUMES: [&str; 9] = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"];
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

struct Pod<'a> {
    pod: &'a Value,
    spec: &'a Value,
    /// Init, common and ephemeral ones.
    containers: Vec<&'a Value>,
    standard: Standard,
}

fn joined<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|it| it.as_ref().to_owned()).collect::<Vec<_>>().join(", ")
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    joined(items.into_iter().map(|it| format!("\"{}\"", it.as_ref())))
}

/// The word for so many: with an `s` unless it is one.
fn plural(word: &str, count: usize) -> String {
    format!("{word}{}", if count == 1 { "" } else { "s" })
}

fn uses(count: usize) -> &'static str {
    if count == 1 { "uses" } else { "use" }
}

/// A field of the security context of a pod or a container.
fn context<'a>(place: &'a Value, field: &str) -> Option<&'a Value> {
    place.at(&["securityContext", field])
}

fn is(place: &Value, path: &[&str], value: impl Into<Value>) -> bool {
    place["securityContext"].at(path) == Some(&value.into())
}

/// Who sets something bad, and to what.
#[derive(Default)]
struct Found<'a> {
    is_pod: bool,
    names: Vec<&'a str>,
    values: BTreeSet<String>,
}

impl Found<'_> {
    /// `pod and container "c"`; nothing where nobody does.
    fn who(&self) -> String {
        let names = (!self.names.is_empty()).then(|| format!("{} {}", plural("container", self.names.len()), quoted(&self.names)));
        let all: Vec<String> = self.is_pod.then(|| "pod".to_owned()).into_iter().chain(names).collect();
        all.join(" and ")
    }
}

impl<'a> Pod<'a> {
    fn of(pod: &'a Value, standard: Standard) -> Self {
        let spec = &pod["spec"];
        let containers = ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|it| spec.items_at(&[it])).collect();
        Self { pod, spec, containers, standard }
    }

    /// Those among the containers, and the pod where it is asked too, at which `read` finds something bad.
    fn found(&self, with_pod: bool, read: impl Fn(&'a Value) -> Option<Vec<String>>) -> Option<Found<'a>> {
        let mut values = BTreeSet::new();
        let mut is_bad = |place: &'a Value| {
            let found = read(place);
            let is_bad = found.is_some();
            values.extend(found.into_iter().flatten());
            is_bad
        };
        let is_pod = with_pod && is_bad(self.spec);
        let names: Vec<&str> = self.containers.iter().filter(|it| is_bad(it)).map(|it| it.text("name")).collect();
        (is_pod || !names.is_empty()).then_some(Found { is_pod, names, values })
    }

    /// The containers that have any of what `list` says.
    fn listed<I: Iterator<Item = String>>(&self, list: impl Fn(&'a Value) -> I) -> Option<Found<'a>> {
        self.found(false, |it| Some(list(it).collect::<Vec<_>>()).filter(|it| !it.is_empty()))
    }

    /// What those at which something is bad must do.
    fn must(&self, with_pod: bool, what: &str, is_bad: impl Fn(&'a Value) -> bool) -> Option<String> {
        Some(format!("{} must {what}", self.found(with_pod, |it| is_bad(it).then(Vec::new))?.who()))
    }

    /// A pod of Windows is spared what only Linux has.
    fn is_windows(&self) -> bool {
        self.spec.text_at(&["os", "name"]) == "windows" && self.standard.holds_from(25)
    }

    /// A pod in a user namespace of its own may be what it likes in there.
    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false && self.standard.holds_from(35)
    }

    /// Profiles whose type is none of `allowed`.
    fn profiles(&self, field: &str, allowed: &[&str]) -> Option<Found<'a>> {
        self.found(true, |it| context(it, field).map(|it| it.text("type")).filter(|it| !allowed.contains(it)).map(|it| vec![it.to_owned()]))
    }

    /// Where so many profiles are forbidden as `is_meant` says.
    fn app_armor(&self, is_meant: fn(usize) -> bool) -> Option<String> {
        let found = self.profiles("appArmorProfile", &["RuntimeDefault", "Localhost"]).unwrap_or_default();
        let is_fine = |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        let annotations = self.pod.annotations().filter(|(key, value)| key.starts_with(APP_ARMOR) && !is_fine(value));
        let annotations: BTreeSet<String> = annotations.map(|(key, value)| format!("{key}={value:?}")).collect();
        let told = (!annotations.is_empty()).then(|| plural("annotation", annotations.len()));
        let who: Vec<String> = [found.who()].into_iter().chain(told).filter(|it| !it.is_empty()).collect();
        let values: Vec<String> = found.values.into_iter().chain(annotations).collect();
        is_meant(values.len()).then(|| format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)))
    }

    fn added_capabilities(&self, allowed: &[&str]) -> Option<String> {
        let added = |it: &'a Value| it.texts_at(&["securityContext", "capabilities", "add"]).filter(|it| !allowed.contains(it)).map(str::to_owned);
        let found = self.listed(added)?;
        Some(format!("{} must not include {} in securityContext.capabilities.add", found.who(), quoted(&found.values)))
    }

    fn host_namespaces(&self) -> Option<String> {
        let set = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|it| self.spec[**it] == true).map(|it| format!("{it}=true"));
        Some(joined(set)).filter(|it| !it.is_empty())
    }

    fn host_paths(&self) -> Option<String> {
        let volumes: Vec<&str> = self.spec.items_at(&["volumes"]).iter().filter(|it| it.get("hostPath").is_some()).map(|it| it.text("name")).collect();
        (!volumes.is_empty()).then(|| format!("{} {}", plural("volume", volumes.len()), quoted(&volumes)))
    }

    fn host_ports(&self) -> Option<String> {
        let ports = |it: &'a Value| it.items_at(&["ports"]).iter().filter_map(|it| it.int_at(&["hostPort"])).filter(|it| *it != 0).map(|it| it.to_string());
        let found = self.listed(ports)?;
        Some(format!("{} {} {} {}", found.who(), uses(found.names.len()), plural("hostPort", found.values.len()), joined(&found.values)))
    }

    fn host_probes(&self) -> Option<String> {
        const PLACES: [&[&str]; 5] = [&["livenessProbe"], &["readinessProbe"], &["startupProbe"], &["lifecycle", "postStart"], &["lifecycle", "preStop"]];
        let mut found = self.listed(|it| {
            let handlers = PLACES.iter().filter_map(|place| it.at(place));
            handlers.flat_map(|it| ["httpGet", "tcpSocket"].map(|kind| it.text_at(&[kind, "host"]))).filter(|it| !it.is_empty()).map(str::to_owned)
        })?;
        found.names.sort_unstable();
        let what = plural("probe or lifecycle host", found.values.len());
        Some(format!("{} {} {what} {}", found.who(), uses(found.names.len()), quoted(&found.values)))
    }

    fn proc_mount(&self) -> Option<String> {
        let found = self.found(false, |it| context(it, "procMount")?.as_str().filter(|it| *it != "Default").map(|it| vec![it.to_owned()]))?;
        Some(format!("{} must not set securityContext.procMount to {}", found.who(), quoted(&found.values)))
    }

    fn selinux(&self) -> Option<String> {
        let mut allowed = vec!["", "container_t", "container_init_t", "container_kvm_t"];
        allowed.extend(self.standard.holds_from(31).then_some("container_engine_t"));
        let options = |it: &'a Value, field: &str| context(it, "seLinuxOptions").map_or("", |it| it.text(field));
        let sets = |field: &str| self.must(true, "", |it| !options(it, field).is_empty()).is_some();
        let found = self.found(true, |it| {
            let kind = options(it, "type");
            let is_bad = !allowed.contains(&kind) || ["user", "role"].iter().any(|field| !options(it, field).is_empty());
            is_bad.then(|| (!allowed.contains(&kind)).then(|| kind.to_owned()).into_iter().collect())
        })?;
        let kinds = (!found.values.is_empty()).then(|| format!("{} {}", plural("type", found.values.len()), quoted(&found.values)));
        let rest = ["user", "role"].into_iter().filter(|it| sets(it)).map(|it| format!("{it} may not be set"));
        let what: Vec<String> = kinds.into_iter().chain(rest).collect();
        Some(format!("{} set forbidden securityContext.seLinuxOptions: {}", found.who(), what.join("; ")))
    }

    fn seccomp(&self) -> Option<String> {
        if !self.standard.holds_from(19) {
            return self.seccomp_annotations();
        }
        let found = self.profiles("seccompProfile", &["Localhost", "RuntimeDefault"])?;
        Some(format!("{} must not set securityContext.seccompProfile.type to {}", found.who(), quoted(&found.values)))
    }

    /// Before profiles were fields.
    fn seccomp_annotations(&self) -> Option<String> {
        let is_fine = |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
        let names = self.containers.iter().map(|it| format!("{SECCOMP_CONTAINER}{}", it.text("name")));
        let keys: BTreeSet<String> = [SECCOMP_POD.to_owned()].into_iter().chain(names).collect();
        let bad: BTreeSet<String> =
            self.pod.annotations().filter(|(key, value)| keys.contains(*key) && !is_fine(value)).map(|(key, value)| format!("{key}={value:?}")).collect();
        (!bad.is_empty()).then(|| format!("forbidden {} {}", plural("annotation", bad.len()), joined(&bad)))
    }

    fn sysctls(&self) -> Option<String> {
        let is_fine = |name: &str| SYSCTLS.iter().any(|(since, names)| names.contains(&name) && self.standard.holds_from(*since));
        let bad: Vec<&str> = self.spec.items_at(&["securityContext", "sysctls"]).iter().map(|it| it.text("name")).filter(|it| !is_fine(it)).collect();
        (!bad.is_empty()).then(|| joined(bad))
    }

    fn restricted_capabilities(&self) -> Option<String> {
        if self.is_windows() {
            return None;
        }
        let keeps = |it: &Value| it.texts_at(&["securityContext", "capabilities", "drop"]).all(|it| it != "ALL");
        let kept = self.must(false, "set securityContext.capabilities.drop=[\"ALL\"]", keeps);
        let all: Vec<String> = kept.into_iter().chain(self.added_capabilities(&["NET_BIND_SERVICE"])).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn restricted_volumes(&self) -> Option<String> {
        let is_fine = |it: &Value| VOLUMES.iter().any(|kind| it.get(kind).is_some());
        let volumes: Vec<&Value> = self.spec.items_at(&["volumes"]).iter().filter(|it| !is_fine(it)).collect();
        let source = |it: &&Value| it.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).find(|it| *it != "name").unwrap_or("unknown").to_owned();
        let kinds: BTreeSet<String> = volumes.iter().map(source).collect();
        let names = quoted(volumes.iter().map(|it| it.text("name")));
        let (what, uses) = (plural("volume", volumes.len()), uses(volumes.len()));
        (!volumes.is_empty()).then(|| format!("{what} {names} {uses} {} {}", plural("restricted volume type", kinds.len()), quoted(kinds)))
    }

    fn run_as_non_root(&self) -> Option<String> {
        if self.has_own_users() {
            return None;
        }
        let of = |it: &Value| context(it, "runAsNonRoot").and_then(Value::as_bool);
        let wrong = self.must(true, "not set securityContext.runAsNonRoot=false", |it| of(it) == Some(false));
        let silent = || self.must(false, "set securityContext.runAsNonRoot=true", |it| of(it).is_none() && of(self.spec) != Some(true));
        wrong.or_else(|| Some(format!("pod or {}", silent()?)))
    }

    fn restricted_seccomp(&self) -> Option<String> {
        if self.is_windows() {
            return None;
        }
        let is_silent = |it: &Value| context(it, "seccompProfile").or(context(self.spec, "seccompProfile")).is_none();
        let silent = || self.must(false, "set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", is_silent);
        self.seccomp().or_else(|| Some(format!("pod or {}", silent()?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LATEST: Option<u32> = None;

    fn told(level: Level, minor: Option<u32>, spec: Value) -> String {
        details(&violations(Standard { level, minor }, &json!({"metadata": {"annotations": {"container.seccomp.security.alpha.kubernetes.io/c": "unconfined"}}, "spec": spec})))
    }

    #[test]
    fn pods_are_told_what_they_break() {
        let one = |container: Value| {
            let mut container = container;
            container["name"] = "c".into();
            json!({"containers": [container]})
        };
        let good = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
        let cases = [
            (Level::Privileged, LATEST, json!({"hostNetwork": true}), ""),
            (Level::Baseline, LATEST, json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
            (Level::Baseline, LATEST, one(json!({"securityContext": {"privileged": true}})), "privileged (container \"c\" must not set securityContext.privileged=true)"),
            (
                Level::Baseline,
                LATEST,
                one(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}}, "ports": [{"hostPort": 80}]})),
                "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add), hostPort (container \"c\" uses hostPort 80)",
            ),
            (Level::Baseline, LATEST, json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
            (Level::Baseline, LATEST, json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}), ""),
            (Level::Baseline, Some(31), json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}), "forbidden sysctls (net.ipv4.tcp_rmem)"),
            (Level::Baseline, Some(33), one(json!({"livenessProbe": {"httpGet": {"host": "h"}}})), ""),
            (
                Level::Baseline,
                LATEST,
                one(json!({"livenessProbe": {"httpGet": {"host": "h"}}})),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")",
            ),
            (
                Level::Baseline,
                Some(18),
                one(json!({})),
                "seccompProfile (forbidden annotation container.seccomp.security.alpha.kubernetes.io/c=\"unconfined\")",
            ),
            (
                Level::Baseline,
                LATEST,
                json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}, "containers": [{"name": "c", "securityContext": {"seLinuxOptions": {"role": "r"}}}]}),
                "seLinuxOptions (pod and container \"c\" set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set; role may not be set)",
            ),
            (
                Level::Restricted,
                LATEST,
                one(json!({})),
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
                 securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or \
                 container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ),
            (Level::Restricted, LATEST, one(json!({"securityContext": good.clone()})), ""),
            (
                Level::Restricted,
                LATEST,
                json!({"securityContext": {"runAsUser": 0}, "containers": [{"name": "c", "securityContext": good.clone()}], "volumes": [{"name": "v", "hostPath": {}}, {"name": "w", "nfs": {}}]}),
                "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\"), runAsUser=0 (pod must not set runAsUser=0)",
            ),
            (Level::Restricted, LATEST, json!({"hostUsers": false, "securityContext": {"runAsUser": 0}, "containers": [{"name": "c", "securityContext": good.clone()}]}), ""),
        ];
        for (level, minor, spec, expected) in cases {
            assert_eq!(told(level, minor, spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn labels_make_the_policy() {
        // (labels, enforce, audit, warn, errors)
        let cases = [
            (json!({}), "privileged:latest privileged:latest privileged:latest", 0),
            (json!({"pod-security.kubernetes.io/enforce": "baseline"}), "baseline:latest privileged:latest baseline:latest", 0),
            (json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.20"}), "baseline:v1.20 privileged:latest baseline:v1.20", 0),
            (json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}), "baseline:latest privileged:latest restricted:latest", 0),
            (json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/warn-version": "v1.01"}), "restricted:latest privileged:latest privileged:latest", 2),
        ];
        for (labels, expected, count) in cases {
            let (policy, errors) = Policy::of(&json!({"metadata": {"labels": labels}}));
            assert_eq!(format!("{} {} {}", policy.enforce, policy.audit, policy.warn), expected);
            assert_eq!(errors.len(), count, "{errors:?}");
        }
    }
}
