//! `/metrics`: what the server counts of its requests, its store and its process, under upstream's names.
//! Source: apiserver `pkg/endpoints/metrics/metrics.go`, `pkg/storage/etcd3/metrics`, `pkg/util/flowcontrol/metrics`; prometheus `process_collector.go`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};

use super::{Response, Server, body, http::GIT_VERSION, identity::Attributes};
use crate::store::Condition;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// In what Linux tells programs of time.
const USER_HZ: f64 = 100.0;
const DURATIONS: [f64; 23] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];

/// What a request was, as all of its metrics label it.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Labels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: String,
}

type One = [(&'static str, String); 1];
type Two = [(&'static str, String); 2];

/// What is told of the store, by the name of its engine.
const STORE: [(&str, &str, fn(&Condition) -> u64); 5] = [
    ("apiserver_storage_size_bytes", "The bytes of all stored objects", |it| it.bytes as u64),
    ("howdah_store_quota_bytes", "The bytes that all objects may take; beyond it nothing is created", |it| it.quota as u64),
    ("howdah_store_revision", "The newest revision that is known here", |it| it.revision),
    ("howdah_store_folded_revision", "The revision up to which the database's table of objects is current", |it| it.folded),
    ("howdah_store_up", "Whether the database answered when it was last asked", |it| it.answers.into()),
];

/// All that is counted as it happens; the rest is looked up when somebody asks.
pub struct Metrics {
    registry: Registry,
    requests: Family<(Labels, One), Counter>,
    durations: Family<Labels, Histogram>,
    /// `mutating` and `readOnly`.
    inflight: Family<One, Gauge>,
    started: f64,
    /// By the name of a check and where it was asked for: what service levels are judged by (component-base `metrics/prometheus/slis`).
    last_checks: Family<Two, Gauge>,
    checks: Family<(Two, One), Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (requests, inflight) = (Family::default(), Family::default());
        let durations = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(DURATIONS));
        registry.register("apiserver_request", "Requests by verb, resource, scope and the code of their answer", requests.clone());
        registry.register("apiserver_request_duration_seconds", "How long requests took until their answer began", durations.clone());
        registry.register("apiserver_current_inflight_requests", "Requests that are being answered, by kind", inflight.clone());
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { registry, requests, durations, inflight, started, last_checks: Family::default(), checks: Family::default() }
    }
}

impl Metrics {
    /// Begins to count a request; it ends with the answer.
    pub fn begin(&self, labels: Labels) -> Running<'_> {
        let is_mutating = matches!(labels.verb.as_str(), "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" | "DELETECOLLECTION");
        let inflight = self.inflight.get_or_create_owned(&[("request_kind", if is_mutating { "mutating" } else { "readOnly" }.to_owned())]);
        inflight.inc();
        Running { metrics: self, labels, inflight, began: Instant::now() }
    }

    /// The document, with what is only looked up when it is asked for.
    pub fn serve(&self, server: &Server) -> Response {
        let mut looked_up = Registry::default();
        look_at_server(server, &mut looked_up);
        look_at_process(self.started, &mut looked_up);
        told(&[&self.registry, &looked_up])
    }

    /// Counts a check of health.
    pub fn checked(&self, name: &str, root: &'static str, is_well: bool) {
        let labels = [("name", name.to_owned()), ("type", root.to_owned())];
        self.last_checks.get_or_create(&labels).set(i64::from(is_well));
        self.checks.get_or_create(&(labels, [("status", if is_well { "success" } else { "error" }.to_owned())])).inc();
    }

    /// Answers `/metrics/slis`.
    pub fn serve_slis(&self) -> Response {
        let mut registry = Registry::default();
        registry.register("kubernetes_healthcheck", "The last result of each check of health", self.last_checks.clone());
        registry.register("kubernetes_healthchecks", "The results of all checks of health", self.checks.clone());
        told(&[&registry])
    }
}

fn told(registries: &[&Registry]) -> Response {
    let mut text = String::new();
    match registries.iter().try_for_each(|it| text::encode_registry(&mut text, it)).and_then(|()| text::encode_eof(&mut text)) {
        Ok(()) => body::respond(200, CONTENT_TYPE, body::full(text)),
        Err(why) => body::text(500, why.to_string()),
    }
}

/// What is stored, and what runs and waits in each priority level.
fn look_at_server(server: &Server, into: &mut Registry) {
    let mut gauge = |name: &str, help: &str, label: &'static str, values: Vec<(String, u64)>| {
        let family = Family::<One, Gauge>::default();
        values.into_iter().for_each(|(it, value)| _ = family.get_or_create(&[(label, it)]).set(i64::try_from(value).unwrap_or(i64::MAX)));
        into.register(name, help, family);
    };
    let (snapshot, registry) = (server.store.snapshot(), server.registry.load());
    let kinds = registry.iter().filter(|it| it.storage.is_none());
    let objects = kinds.map(|it| (it.group_resource().to_string(), snapshot.count(&it.resource()) as u64)).collect();
    gauge("apiserver_storage_objects", "Stored objects by resource", "resource", objects);
    let condition = server.store.condition();
    STORE.iter().for_each(|(name, help, value)| gauge(name, help, "storage_cluster_id", vec![(condition.engine.to_owned(), value(&condition))]));
    let levels = server.fairness.state();
    let helps = [
        ("apiserver_flowcontrol_nominal_limit_seats", "How many requests of a priority level may run at a time"),
        ("apiserver_flowcontrol_current_executing_requests", "Requests that run in a priority level"),
        ("apiserver_flowcontrol_current_inqueue_requests", "Requests that wait in a priority level"),
    ];
    for (at, (name, help)) in helps.into_iter().enumerate() {
        gauge(name, help, "priority_level", levels.iter().map(|(level, counts, _)| (level.clone(), counts[at] as u64)).collect());
    }
    let refused = Family::<Two, Counter>::default();
    levels.into_iter().for_each(|(level, _, count)| _ = refused.get_or_create(&[("priority_level", level), ("reason", "queue-full".to_owned())]).inc_by(count));
    into.register("apiserver_flowcontrol_rejected_requests", "Requests that a priority level refused", refused);
}

/// The process' own numbers, and what it is.
fn look_at_process(started: f64, into: &mut Registry) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything, stand numbers: the times of user and system are the eleventh and the twelfth after the state.
    let fields: Vec<u32> = stat.rsplit_once(") ").map_or("", |it| it.1).split(' ').skip(1).map(|it| it.parse().unwrap_or_default()).collect();
    let ticks = fields.get(10..12).map_or(0, |it| it.iter().sum::<u32>());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name: &str| {
        let line = status.lines().find_map(|it| it.strip_prefix(name)?.strip_suffix("kB"));
        ConstGauge::new(line.and_then(|it| it.trim().parse::<i64>().ok()).unwrap_or_default() << 10)
    };
    let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, |it| it.count()) as i64;
    into.register("process_cpu_seconds", "User and system time of the process", ConstCounter::new(f64::from(ticks) / USER_HZ));
    into.register("process_resident_memory_bytes", "Resident memory of the process", bytes("VmRSS:"));
    into.register("process_virtual_memory_bytes", "Virtual memory of the process", bytes("VmSize:"));
    into.register("process_open_fds", "Open file descriptors of the process", ConstGauge::new(open_files));
    into.register("process_start_time_seconds", "When the process began, since the epoch", ConstGauge::new(started));
    let platform = format!("{}/{}", std::env::consts::OS, super::http::arch());
    let build = Family::<[(&'static str, String); 3], Gauge>::default();
    build.get_or_create(&[("git_version", GIT_VERSION.to_owned()), ("platform", platform), ("compiler", "rustc".to_owned())]).set(1);
    into.register("kubernetes_build_info", "What this program is", build);
}

/// A request that is being answered.
pub struct Running<'a> {
    metrics: &'a Metrics,
    labels: Labels,
    inflight: Gauge,
    began: Instant,
}

impl Running<'_> {
    /// Counts the answer. What nobody serves is not labelled: clients could make up names without end.
    pub fn end(self, code: u16) {
        let is_known = code != 404 || !self.labels.scope.is_empty();
        let request = if is_known { self.labels.clone() } else { Labels { verb: self.labels.verb.clone(), component: "apiserver".to_owned(), ..Labels::default() } };
        self.metrics.requests.get_or_create(&(request.clone(), [("code", code.to_string())])).inc();
        if request.verb != "WATCH" && request.verb != "CONNECT" {
            self.metrics.durations.get_or_create(&request).observe(self.began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.inflight.dec();
    }
}

impl Labels {
    /// `is_served` says whether there is such a resource.
    pub fn of(info: &Attributes, method: &http::Method, is_apply: bool, is_dry_run: bool, is_served: bool) -> Self {
        let verb = match info.verb.as_str() {
            _ if matches!(info.subresource.as_str(), "attach" | "exec" | "portforward" | "proxy") => "CONNECT",
            "create" => "POST",
            "update" => "PUT",
            "patch" if is_apply => "APPLY",
            "list" | "watch" | "deletecollection" | "patch" | "delete" | "get" => &info.verb.to_ascii_uppercase(),
            _ => method.as_str(),
        };
        let base = Self { verb: verb.to_owned(), component: "apiserver".to_owned(), ..Self::default() };
        if !info.is_resource() || !is_served {
            return Self { subresource: info.path.clone(), ..base };
        }
        let scope = match (info.name.as_str(), info.namespace.as_str()) {
            (name, _) if !name.is_empty() || verb == "POST" => "resource",
            (_, "") => "cluster",
            _ => "namespace",
        };
        Self {
            dry_run: if is_dry_run { "All" } else { "" }.to_owned(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            scope: scope.to_owned(),
            ..base
        }
    }
}
