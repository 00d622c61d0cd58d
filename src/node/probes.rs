//! Startup, readiness and liveness: a task for each probe of a running container. Source: kubelet `pkg/kubelet/prober/{prober_manager,worker}.go`.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, Probe};
use parking_lot::Mutex;

use super::{
    agent::Agent,
    handlers::{Action, Target},
    runtime::Container,
};
use crate::client::EventType;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    fn probe(self, spec: &ContainerSpec) -> Option<&Probe> {
        match self {
            Self::Startup => spec.startup_probe.as_ref(),
            Self::Readiness => spec.readiness_probe.as_ref(),
            Self::Liveness => spec.liveness_probe.as_ref(),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What probes have found, by container. No entry: nothing yet.
#[derive(Default)]
pub struct Results(Mutex<HashMap<(String, Kind), bool>>);

impl Results {
    fn of(&self, id: &str, kind: Kind) -> Option<bool> {
        self.0.lock().get(&(id.to_owned(), kind)).copied()
    }

    /// Stores a result; whether it is another than before.
    fn set(&self, id: &str, kind: Kind, is_good: bool) -> bool {
        self.0.lock().insert((id.to_owned(), kind), is_good) != Some(is_good)
    }

    pub fn forget(&self, id: &str) {
        self.0.lock().retain(|(of, _), _| of != id);
    }

    /// Whether the container's startup probe, if it has one, has passed.
    pub fn is_started(&self, spec: &ContainerSpec, id: &str) -> bool {
        spec.startup_probe.is_none() || self.of(id, Kind::Startup) == Some(true)
    }

    pub fn is_ready(&self, spec: &ContainerSpec, id: &str) -> bool {
        self.is_started(spec, id) && (spec.readiness_probe.is_none() || self.of(id, Kind::Readiness) == Some(true))
    }

    /// The probe for whose failure the container is to be ended.
    pub fn failed(&self, id: &str) -> Option<Kind> {
        [Kind::Startup, Kind::Liveness].into_iter().find(|it| self.of(id, *it) == Some(false))
    }
}

/// Counts results in a row (`worker.resultRun`).
struct Run {
    last: Option<bool>,
    length: i32,
}

impl Run {
    /// The verdict, once enough results agree.
    fn add(&mut self, is_good: bool, probe: &Probe) -> Option<bool> {
        self.length = if self.last == Some(is_good) { self.length + 1 } else { 1 };
        self.last = Some(is_good);
        let needed = if is_good { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        (self.length >= needed).then_some(is_good)
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0).unwrap_or(default))
}

/// Starts the probes of a container that has just been seen to run.
pub fn start(agent: &Arc<Agent>, pod: &Arc<Pod>, spec: &ContainerSpec, container: &Container, address: Option<IpAddr>) {
    for kind in Kind::ALL {
        let Some(probe) = kind.probe(spec) else { continue };
        let Some(action) = Action::of_probe(probe) else { continue };
        let worker = Worker { agent: agent.clone(), pod: pod.clone(), spec: spec.clone(), container: container.clone(), address, kind, probe: probe.clone(), action };
        agent.tasks.spawn("probe", worker.run());
    }
}

struct Worker {
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    spec: ContainerSpec,
    container: Container,
    address: Option<IpAddr>,
    kind: Kind,
    probe: Probe,
    action: Action,
}

impl Worker {
    async fn run(self) {
        let results = &self.agent.probes;
        let mut run = Run { last: None, length: 0 };
        tokio::time::sleep(Duration::from_secs(self.probe.initial_delay_seconds.and_then(|it| u64::try_from(it).ok()).unwrap_or(0))).await;
        let mut ticks = tokio::time::interval(seconds(self.probe.period_seconds, 10));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.agent.runtime.container(&self.container.id).is_some_and(|it| it.is_running()) {
                return results.forget(&self.container.id);
            }
            // The others wait for the startup probe, which ends with its success.
            if self.kind != Kind::Startup && !results.is_started(&self.spec, &self.container.id) {
                ticks.reset_after(Duration::from_millis(100));
                continue;
            }
            let Some(is_good) = run.add(self.probe_once().await, &self.probe) else { continue };
            if results.set(&self.container.id, self.kind, is_good) {
                self.agent.wake(&self.container.spec.pod_uid);
            }
            if self.kind == Kind::Startup && is_good || results.failed(&self.container.id).is_some() {
                return;
            }
        }
    }

    async fn probe_once(&self) -> bool {
        let within = seconds(self.probe.timeout_seconds, 1);
        let target = Target { runtime: &self.agent.runtime, tasks: &self.agent.tasks, container: &self.container, spec: &self.spec, address: self.address, within };
        let outcome = target.act(&self.action).await;
        let warn = |reason, what, why: &str| self.agent.recorder.event(&*self.pod, EventType::Warning, reason, format!("{} probe {what}: {why}", self.kind.name()));
        match &outcome {
            Err(why) => warn("Unhealthy", "failed", why),
            Ok(Some(why)) => warn("ProbeWarning", "warning", why),
            Ok(None) => (),
        }
        outcome.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_wait_for_their_thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut run = Run { last: None, length: 0 };
        let cases = [(true, None), (true, Some(true)), (false, None), (false, None), (true, None), (false, None), (false, None), (false, Some(false)), (false, Some(false))];
        for (result, verdict) in cases {
            assert_eq!(run.add(result, &probe), verdict);
        }
    }

    #[test]
    fn readiness_follows_startup() {
        let spec = ContainerSpec { startup_probe: Some(Probe::default()), readiness_probe: Some(Probe::default()), ..ContainerSpec::default() };
        let results = Results::default();
        assert!(!results.is_started(&spec, "a"));
        results.set("a", Kind::Readiness, true);
        assert!(!results.is_ready(&spec, "a"));
        results.set("a", Kind::Startup, true);
        assert!(results.is_ready(&spec, "a"));
        results.set("a", Kind::Liveness, false);
        assert_eq!(results.failed("a"), Some(Kind::Liveness));
    }
}
