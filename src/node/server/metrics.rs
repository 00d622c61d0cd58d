//! What Prometheus and metrics-server read of a node: `/metrics/resource`, and how much runs on it at `/metrics`.
//! Source: kubelet `pkg/kubelet/metrics/collectors/resource_metrics.go`, `pkg/kubelet/metrics/metrics.go`.

use std::{collections::HashMap, fmt::Write, sync::Arc};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::Context;
use crate::{
    base::tasks,
    node::{
        agent::Agent,
        environment::Machine,
        runtime::{Container, cgroup},
    },
};

/// The text format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Samples of one name; labels are written as they are shown.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    samples: Vec<(String, f64)>,
}

impl Family {
    fn new(name: &'static str, kind: &'static str, help: &'static str) -> Self {
        Self { name, help, kind, samples: Vec::new() }
    }

    fn write(&self, at: Option<Timestamp>, into: &mut String) {
        let Self { name, help, kind, samples } = self;
        let at = at.map(|it| format!(" {}", it.as_millisecond())).unwrap_or_default();
        let _ = writeln!(into, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(into, "{name}{labels} {value}{at}");
        }
    }
}

/// Nothing of a name needs to be escaped: names are DNS labels.
fn labels(pod: &Pod, container: Option<&str>) -> String {
    let container = container.map(|it| format!("container=\"{it}\",")).unwrap_or_default();
    format!("{{{container}namespace=\"{}\",pod=\"{}\"}}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn node_memory() -> i64 {
    let of = |name: &str| Machine::memory_kib(name).unwrap_or(0);
    (of("MemTotal:") - of("MemAvailable:")) * 1024
}

/// The running containers by the uid of their pod.
fn running(agent: &Agent) -> HashMap<String, Vec<Container>> {
    let mut all = HashMap::<String, Vec<Container>>::new();
    for it in agent.runtime.containers().into_iter().filter(Container::is_running) {
        all.entry(it.spec.pod_uid.clone()).or_default().push(it);
    }
    all
}

fn used(agent: &Agent) -> String {
    const CPU: &str = "Cumulative cpu time consumed in core-seconds";
    const MEMORY: &str = "Current working set in bytes";
    let mut node = [Family::new("node_cpu_usage_seconds_total", "counter", CPU), Family::new("node_memory_working_set_bytes", "gauge", MEMORY)];
    node[0].samples.push((String::new(), cgroup::cpu_seconds("")));
    node[1].samples.push((String::new(), node_memory() as f64));
    let mut pods = [Family::new("pod_cpu_usage_seconds_total", "counter", CPU), Family::new("pod_memory_working_set_bytes", "gauge", MEMORY)];
    let mut containers = [
        Family::new("container_cpu_usage_seconds_total", "counter", CPU),
        Family::new("container_memory_working_set_bytes", "gauge", MEMORY),
        Family::new("container_start_time_seconds", "gauge", "Start time since unix epoch in seconds"),
    ];
    let mut running = running(agent);
    for (pod, of_pod) in agent.pods().iter().filter_map(|pod| Some((pod, running.remove(pod.metadata.uid.as_deref()?)?))) {
        for it in &of_pod {
            let (labels, group) = (labels(pod, Some(&it.spec.name)), &it.spec.cgroup);
            let began = it.started.as_ref().and_then(|it| it.at.parse::<Timestamp>().ok()).map_or(0.0, |it| it.as_second() as f64);
            let values = [cgroup::cpu_seconds(group), cgroup::memory_used(group) as f64, began];
            containers.iter_mut().zip(values).for_each(|(family, value)| family.samples.push((labels.clone(), value)));
        }
        let group = agent.group_of(pod);
        let values = [cgroup::cpu_seconds(&group), cgroup::memory_used(&group) as f64];
        pods.iter_mut().zip(values).for_each(|(family, value)| family.samples.push((labels(pod, None), value)));
    }
    let mut scraped = Family::new("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise");
    scraped.samples.push((String::new(), 0.0));
    let (now, mut text) = (Timestamp::now(), String::new());
    containers.iter().chain(&node).chain(&pods).for_each(|it| it.write(Some(now), &mut text));
    scraped.write(None, &mut text);
    text
}

fn counts(agent: &Agent) -> String {
    let running = running(agent);
    let mut pods = Family::new("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    pods.samples.push((String::new(), running.len() as f64));
    let mut containers = Family::new("kubelet_running_containers", "gauge", "Number of containers currently running");
    containers.samples.push(("{container_state=\"running\"}".to_owned(), running.values().map(Vec::len).sum::<usize>() as f64));
    let mut text = String::new();
    [pods, containers].iter().for_each(|it| it.write(None, &mut text));
    text
}

async fn answer(agent: Arc<Agent>, of: fn(&Agent) -> String) -> Response {
    let text = tasks::blocking(move || of(&agent)).await.unwrap_or_default();
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}

pub async fn resource(State(context): State<Context>) -> Response {
    answer(context.agent, used).await
}

pub async fn own(State(context): State<Context>) -> Response {
    answer(context.agent, counts).await
}
