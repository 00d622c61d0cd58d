//! The Pod Security Standards: what a pod may not ask for at the levels `baseline` and `restricted`, by version. Pure.
//! Source: pod-security-admission `policy/check_*.go`, `api/helpers.go`.

use std::collections::BTreeSet;

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

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

impl Standard {
    const NONE: Self = Self { level: Level::Privileged, minor: None };

    fn holds_from(self, minor: u32) -> bool {
        self.minor.is_none_or(|it| it >= minor)
    }
}

impl Policy {
    /// What a namespace asks for, and what is wrong with its labels. A level that is none is taken for `restricted` where it is enforced.
    pub fn of(namespace: &Value) -> (Self, FieldErrors) {
        let mut errors = FieldErrors::new();
        let label = |name: &str| namespace.labels().find(|(key, _)| key.strip_prefix(PREFIX) == Some(name)).map(|(_, value)| value.to_owned());
        let mut read = |mode: &str, fallback: Level| {
            let mut fail = |name: &str, value: String, why: &'static str| {
                errors.push(FieldError::invalid(&Path::new("metadata").child("labels").key(&format!("{PREFIX}{name}")), value, why));
            };
            let level = label(mode).map(|text| {
                parse_level(&text).ok_or_else(|| fail(mode, text, "must be one of privileged, baseline, restricted"))
            });
            let name = format!("{mode}-version");
            let minor = label(&name).map(|text| {
                parse_version(&text).unwrap_or_else(|| {
                    fail(&name, text, "must be \"latest\" or \"v1.x\"");
                    None
                })
            });
            let is_told = (level.is_some(), minor.is_some(), matches!(level, Some(Ok(_))));
            let level = level.map_or(Level::Privileged, |it| it.unwrap_or(fallback));
            (Standard { level, minor: minor.flatten() }, is_told)
        };
        let (enforce, (.., is_enforced)) = read("enforce", Level::Restricted);
        let (audit, _) = read("audit", Level::Privileged);
        let (mut warn, (has_warn_level, has_warn_version, _)) = read("warn", Level::Privileged);
        if !has_warn_level && is_enforced && enforce.level > warn.level {
            warn.level = enforce.level;
            warn.minor = if has_warn_version { warn.minor } else { enforce.minor };
        }
        (Self { enforce, audit, warn }, errors)
    }

    pub fn is_fully_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|it| it.level == Standard::NONE.level)
    }
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
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
    if standard.level == Level::Privileged {
        return Vec::new();
    }
    let pod = Pod::of(pod, standard);
    let is_restricted = standard.level == Level::Restricted;
    let since = |minor| standard.holds_from(minor);
    let baseline = [
        pod.app_armor(),
        (!(is_restricted && since(22))).then(|| pod.capabilities()).flatten(),
        pod.host_namespaces(),
        (!is_restricted).then(|| pod.host_paths()).flatten(),
        pod.host_ports(),
        since(34).then(|| pod.host_probes()).flatten(),
        pod.privileged(),
        (!(is_restricted && since(35))).then(|| pod.proc_mount()).flatten(),
        pod.selinux(),
        (!(is_restricted && since(19))).then(|| pod.seccomp()).flatten(),
        pod.sysctls(),
        pod.windows_host_process(),
    ];
    let restricted = [
        since(8).then(|| pod.privilege_escalation()).flatten(),
        since(22).then(|| pod.restricted_capabilities()).flatten(),
        since(35).then(|| pod.restricted_proc_mount()).flatten(),
        pod.restricted_volumes(),
        pod.run_as_non_root(),
        since(23).then(|| pod.run_as_user()).flatten(),
        since(19).then(|| pod.restricted_seccomp()).flatten(),
    ];
    let restricted = restricted.into_iter().filter(|_| is_restricted);
    baseline.into_iter().chain(restricted).flatten().collect()
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
];
/// Sysctls that are harmless, and since which version that is known.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
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

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|it| format!("\"{}\"", it.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural(singular: &'static str, plural: &'static str, count: usize) -> &'static str {
    if count == 1 { singular } else { plural }
}

fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

fn broken(reason: &'static str, detail: String) -> Option<Violation> {
    Some(Violation { reason, detail })
}

/// A field of the security context of a pod or a container.
fn context<'a>(place: &'a Value, field: &str) -> Option<&'a Value> {
    place.at(&["securityContext", field])
}

/// Bad without a value that would be told.
fn bad(is_bad: bool) -> Option<Vec<String>> {
    is_bad.then(Vec::new)
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
        let pod = self.is_pod.then(|| "pod".to_owned());
        let all: Vec<String> = pod.into_iter().chain((!self.names.is_empty()).then(|| containers(&self.names))).collect();
        all.join(" and ")
    }

    fn uses(&self) -> &'static str {
        plural("uses", "use", self.names.len())
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

    fn app_armor(&self) -> Option<Violation> {
        let found = self.profiles("appArmorProfile", &["RuntimeDefault", "Localhost"]).unwrap_or_default();
        let is_fine = |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        let mut annotations: Vec<String> =
            self.pod.annotations().filter(|(key, value)| key.starts_with(APP_ARMOR) && !is_fine(value)).map(|(key, value)| format!("{key}={value:?}")).collect();
        annotations.sort();
        let told = (!annotations.is_empty()).then(|| plural("annotation", "annotations", annotations.len()).to_owned());
        let who: Vec<String> = [found.who()].into_iter().chain(told).filter(|it| !it.is_empty()).collect();
        let values: Vec<String> = found.values.into_iter().chain(annotations).collect();
        let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
        (!who.is_empty()).then(|| Violation { reason, detail: format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)) })
    }

    fn added_capabilities(&self, allowed: &[&str]) -> Option<String> {
        let found = self.found(false, |it| {
            let added = it.texts_at(&["securityContext", "capabilities", "add"]).filter(|it| !allowed.contains(it)).map(str::to_owned);
            Some(added.collect::<Vec<_>>()).filter(|it| !it.is_empty())
        })?;
        Some(format!("{} must not include {} in securityContext.capabilities.add", found.who(), quoted(&found.values)))
    }

    fn capabilities(&self) -> Option<Violation> {
        broken("non-default capabilities", self.added_capabilities(&CAPABILITIES)?)
    }

    fn host_namespaces(&self) -> Option<Violation> {
        let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|it| self.spec[**it] == true).map(|it| format!("{it}=true")).collect();
        (!set.is_empty()).then(|| Violation { reason: "host namespaces", detail: set.join(", ") })
    }

    fn host_paths(&self) -> Option<Violation> {
        let volumes: Vec<&str> = self.spec.items_at(&["volumes"]).iter().filter(|it| it.get("hostPath").is_some()).map(|it| it.text("name")).collect();
        let detail = || format!("{} {}", plural("volume", "volumes", volumes.len()), quoted(&volumes));
        (!volumes.is_empty()).then(|| Violation { reason: "hostPath volumes", detail: detail() })
    }

    fn host_ports(&self) -> Option<Violation> {
        let found = self.found(false, |it| {
            let ports = it.items_at(&["ports"]).iter().filter_map(|it| it.int_at(&["hostPort"])).filter(|it| *it != 0).map(|it| it.to_string());
            Some(ports.collect::<Vec<_>>()).filter(|it| !it.is_empty())
        })?;
        let listed = found.values.iter().cloned().collect::<Vec<_>>().join(", ");
        broken("hostPort", format!("{} {} {} {listed}", found.who(), found.uses(), plural("hostPort", "hostPorts", found.values.len())))
    }

    fn host_probes(&self) -> Option<Violation> {
        const PLACES: [&[&str]; 5] = [&["livenessProbe"], &["readinessProbe"], &["startupProbe"], &["lifecycle", "postStart"], &["lifecycle", "preStop"]];
        let mut found = self.found(false, |it| {
            let handlers = PLACES.iter().filter_map(|place| it.at(place));
            let hosts = handlers.flat_map(|it| ["httpGet", "tcpSocket"].map(|kind| it.text_at(&[kind, "host"]))).filter(|it| !it.is_empty()).map(str::to_owned);
            Some(hosts.collect::<Vec<_>>()).filter(|it| !it.is_empty())
        })?;
        found.names.sort_unstable();
        let what = plural("probe or lifecycle host", "probe or lifecycle hosts", found.values.len());
        broken("probe or lifecycle host", format!("{} {} {what} {}", found.who(), found.uses(), quoted(&found.values)))
    }

    fn privileged(&self) -> Option<Violation> {
        let found = self.found(false, |it| bad(context(it, "privileged") == Some(&Value::Bool(true))))?;
        broken("privileged", format!("{} must not set securityContext.privileged=true", found.who()))
    }

    fn proc_mount(&self) -> Option<Violation> {
        if self.has_own_users() { None } else { self.restricted_proc_mount() }
    }

    fn restricted_proc_mount(&self) -> Option<Violation> {
        let found = self.found(false, |it| context(it, "procMount")?.as_str().filter(|it| *it != "Default").map(|it| vec![it.to_owned()]))?;
        broken("procMount", format!("{} must not set securityContext.procMount to {}", found.who(), quoted(&found.values)))
    }

    fn selinux(&self) -> Option<Violation> {
        let mut allowed = vec!["", "container_t", "container_init_t", "container_kvm_t"];
        allowed.extend(self.standard.holds_from(31).then_some("container_engine_t"));
        let options = |it: &'a Value, field: &str| context(it, "seLinuxOptions").map_or("", |it| it.text(field));
        let sets = |field: &str| self.found(true, |it| bad(!options(it, field).is_empty())).is_some();
        let found = self.found(true, |it| {
            let kind = options(it, "type");
            let is_bad = !allowed.contains(&kind) || ["user", "role"].iter().any(|field| !options(it, field).is_empty());
            is_bad.then(|| (!allowed.contains(&kind)).then(|| kind.to_owned()).into_iter().collect())
        })?;
        let kinds = (!found.values.is_empty()).then(|| format!("{} {}", plural("type", "types", found.values.len()), quoted(&found.values)));
        let rest = ["user", "role"].into_iter().filter(|it| sets(it)).map(|it| format!("{it} may not be set"));
        let what: Vec<String> = kinds.into_iter().chain(rest).collect();
        broken("seLinuxOptions", format!("{} set forbidden securityContext.seLinuxOptions: {}", found.who(), what.join("; ")))
    }

    fn seccomp(&self) -> Option<Violation> {
        if !self.standard.holds_from(19) {
            return self.seccomp_annotations();
        }
        let found = self.profiles("seccompProfile", &["Localhost", "RuntimeDefault"])?;
        broken("seccompProfile", format!("{} must not set securityContext.seccompProfile.type to {}", found.who(), quoted(&found.values)))
    }

    /// Before profiles were fields.
    fn seccomp_annotations(&self) -> Option<Violation> {
        let is_fine = |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
        let names = self.containers.iter().map(|it| format!("{SECCOMP_CONTAINER}{}", it.text("name")));
        let keys: BTreeSet<String> = [SECCOMP_POD.to_owned()].into_iter().chain(names).collect();
        let bad: BTreeSet<String> =
            self.pod.annotations().filter(|(key, value)| keys.contains(*key) && !is_fine(value)).map(|(key, value)| format!("{key}={value:?}")).collect();
        let listed = || bad.iter().cloned().collect::<Vec<_>>().join(", ");
        let detail = || format!("forbidden {} {}", plural("annotation", "annotations", bad.len()), listed());
        (!bad.is_empty()).then(|| Violation { reason: "seccompProfile", detail: detail() })
    }

    fn sysctls(&self) -> Option<Violation> {
        let is_fine = |name: &str| SYSCTLS.iter().any(|(it, since)| *it == name && self.standard.holds_from(*since));
        let bad: Vec<&str> = self.spec.items_at(&["securityContext", "sysctls"]).iter().map(|it| it.text("name")).filter(|it| !is_fine(it)).collect();
        (!bad.is_empty()).then(|| Violation { reason: "forbidden sysctls", detail: bad.join(", ") })
    }

    fn windows_host_process(&self) -> Option<Violation> {
        let found = self.found(true, |it| bad(it.at(&["securityContext", "windowsOptions", "hostProcess"]) == Some(&Value::Bool(true))))?;
        broken("hostProcess", format!("{} must not set securityContext.windowsOptions.hostProcess=true", found.who()))
    }

    fn privilege_escalation(&self) -> Option<Violation> {
        let found = self.found(false, |it| bad(!self.is_windows() && context(it, "allowPrivilegeEscalation") != Some(&Value::Bool(false))))?;
        broken("allowPrivilegeEscalation != false", format!("{} must set securityContext.allowPrivilegeEscalation=false", found.who()))
    }

    fn restricted_capabilities(&self) -> Option<Violation> {
        if self.is_windows() {
            return None;
        }
        let keeping = self.found(false, |it| bad(it.texts_at(&["securityContext", "capabilities", "drop"]).all(|it| it != "ALL")));
        let kept = keeping.map(|it| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", it.who()));
        let all: Vec<String> = kept.into_iter().chain(self.added_capabilities(&["NET_BIND_SERVICE"])).collect();
        (!all.is_empty()).then(|| Violation { reason: "unrestricted capabilities", detail: all.join("; ") })
    }

    fn restricted_volumes(&self) -> Option<Violation> {
        let is_fine = |it: &Value| VOLUMES.iter().any(|kind| it.get(kind).is_some());
        let volumes: Vec<&Value> = self.spec.items_at(&["volumes"]).iter().filter(|it| !is_fine(it)).collect();
        if volumes.is_empty() {
            return None;
        }
        let source = |it: &&Value| it.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).find(|it| *it != "name").unwrap_or("unknown").to_owned();
        let kinds: BTreeSet<String> = volumes.iter().map(source).collect();
        let names = quoted(volumes.iter().map(|it| it.text("name")));
        let (what, uses) = (plural("volume", "volumes", volumes.len()), plural("uses", "use", volumes.len()));
        broken("restricted volume types", format!("{what} {names} {uses} {} {}", plural("restricted volume type", "restricted volume types", kinds.len()), quoted(kinds)))
    }

    fn run_as_non_root(&self) -> Option<Violation> {
        const REASON: &str = "runAsNonRoot != true";
        let of = |it: &Value| context(it, "runAsNonRoot").and_then(Value::as_bool);
        if self.has_own_users() {
            return None;
        }
        if let Some(found) = self.found(true, |it| bad(of(it) == Some(false))) {
            return broken(REASON, format!("{} must not set securityContext.runAsNonRoot=false", found.who()));
        }
        let silent = self.found(false, |it| bad(of(it).is_none() && of(self.spec) != Some(true)))?;
        broken(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", silent.who()))
    }

    fn run_as_user(&self) -> Option<Violation> {
        let found = self.found(true, |it| bad(!self.has_own_users() && it.int_at(&["securityContext", "runAsUser"]) == Some(0)))?;
        broken("runAsUser=0", format!("{} must not set runAsUser=0", found.who()))
    }

    fn restricted_seccomp(&self) -> Option<Violation> {
        if self.is_windows() {
            return None;
        }
        self.seccomp().or_else(|| {
            let silent = self.found(false, |it| bad(context(it, "seccompProfile").or(context(self.spec, "seccompProfile")).is_none()))?;
            broken("seccompProfile", format!("pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", silent.who()))
        })
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
