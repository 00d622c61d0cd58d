//! Events: what a component tells the user about an object. Alike events become one with a count, floods are cut off.
//! Follows client-go `tools/record/{event,events_cache}.go`.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Result, writes};
use crate::base::{Tasks, clock};

/// `maxQueuedEvents`: more than these waiting are dropped.
const QUEUED_MOST: usize = 1000;
/// `maxLruCacheEntries`: so many event keys are remembered; then the memory starts afresh.
const REMEMBERED_MOST: usize = 4096;
/// `defaultAggregateMaxEvents` within `defaultAggregateIntervalInSeconds`: beyond, alike events share one text.
const ALIKE_MOST: usize = 10;
const ALIKE_WITHIN: Duration = Duration::from_secs(600);
/// `defaultSpamBurst` and `defaultSpamQPS`: 25 events about one object at once, then one in five minutes.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Takes events without waiting; one task writes them. Clones share it.
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<Draft>,
}

#[derive(Clone, Debug)]
struct Draft {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl EventRecorder {
    /// Events come from `component` and, on a node, from `host`.
    pub fn start(client: kube::Client, component: &str, host: &str, tasks: &Tasks) -> Self {
        let (sender, mut drafts) = mpsc::channel(QUEUED_MOST);
        let mut writer = Writer { client, component: component.to_owned(), host: host.to_owned(), correlator: Correlator::default() };
        tasks.spawn("events", async move {
            while let Some(draft) = drafts.recv().await {
                writer.write(draft).await;
            }
        });
        Self { sender }
    }

    /// An event about `object`.
    pub fn event<K: Resource<DynamicType = ()>>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut about = object.object_ref(&());
        about.resource_version = object.resource_version();
        self.event_about(about, kind, reason, message);
    }

    /// An event about the object (or the part of it, by `fieldPath`) that `about` names.
    pub fn event_about(&self, about: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let draft = Draft { about, kind, reason: reason.to_owned(), message: message.into(), at: clock::now() };
        if self.sender.try_send(draft).is_err() {
            tracing::debug!(reason, "an event was dropped, too many are waiting");
        }
    }
}

struct Writer {
    client: kube::Client,
    component: String,
    host: String,
    correlator: Correlator,
}

impl Writer {
    async fn write(&mut self, draft: Draft) {
        let Some(step) = self.correlator.correlate(&draft) else { return };
        let result = match &step.name {
            None => self.create(&draft, &step).await,
            Some(name) => match self.repeat(name, &draft, &step).await {
                Err(error) if error.is_not_found() => self.create(&draft, &step).await,
                other => other,
            },
        };
        if let Err(error) = result {
            tracing::debug!(%error, reason = draft.reason, "an event was not written");
        }
    }

    async fn create(&mut self, draft: &Draft, step: &Step) -> Result<()> {
        let created = writes::create(&self.client, &self.event(draft, step)).await?;
        self.correlator.written(&step.key, created.name_any());
        Ok(())
    }

    async fn repeat(&self, name: &str, draft: &Draft, step: &Step) -> Result<()> {
        let patch = json!({"count": step.count, "message": step.message, "lastTimestamp": clock::rfc3339(draft.at)});
        writes::api::<Event>(&self.client, namespace_of(&draft.about)).patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(())
    }

    fn event(&self, draft: &Draft, step: &Step) -> Event {
        let name = format!("{}.{:x}", draft.about.name.as_deref().unwrap_or_default(), step.first.as_nanosecond());
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace_of(&draft.about).to_owned()), ..ObjectMeta::default() },
            involved_object: draft.about.clone(),
            reason: Some(draft.reason.clone()),
            message: Some(step.message.clone()),
            type_: Some(draft.kind.name().to_owned()),
            count: Some(step.count),
            first_timestamp: Some(Time(step.first)),
            last_timestamp: Some(Time(draft.at)),
            source: Some(EventSource { component: Some(self.component.clone()), host: Some(self.host.clone()).filter(|it| !it.is_empty()) }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }
}

/// Events about cluster-scoped objects live in `default`.
fn namespace_of(about: &ObjectReference) -> &str {
    about.namespace.as_deref().filter(|it| !it.is_empty()).unwrap_or("default")
}

/// What to write about an event.
#[derive(Debug, PartialEq)]
struct Step {
    key: String,
    message: String,
    /// Of those that count as one.
    first: Timestamp,
    count: i32,
    /// The object that tells of them so far.
    name: Option<String>,
}

/// `EventCorrelator`: spam filter, then aggregation, then counting.
#[derive(Default)]
struct Correlator {
    budgets: HashMap<String, Budget>,
    alike: HashMap<String, Alike>,
    counted: HashMap<String, Counted>,
}

struct Budget {
    left: f64,
    at: Timestamp,
}

struct Alike {
    texts: HashSet<String>,
    at: Timestamp,
}

struct Counted {
    count: i32,
    first: Timestamp,
    name: Option<String>,
}

impl Correlator {
    fn correlate(&mut self, draft: &Draft) -> Option<Step> {
        self.bound();
        let object = object_key(draft);
        if !self.is_within_budget(&object, draft.at) {
            return None;
        }
        let group = format!("{object}/{}/{}", draft.kind.name(), draft.reason);
        let is_many = self.is_many_alike(&group, draft);
        let message = if is_many { format!("(combined from similar events): {}", draft.message) } else { draft.message.clone() };
        let key = if is_many { group } else { format!("{group}/{}", draft.message) };
        Some(self.count(key, message, draft.at))
    }

    fn written(&mut self, key: &str, name: String) {
        if let Some(counted) = self.counted.get_mut(key) {
            counted.name = Some(name);
        }
    }

    fn is_within_budget(&mut self, object: &str, now: Timestamp) -> bool {
        let budget = self.budgets.entry(object.to_owned()).or_insert(Budget { left: BURST, at: now });
        let passed = now.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed * REFILL_PER_SECOND).min(BURST);
        budget.at = now;
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }

    fn is_many_alike(&mut self, group: &str, draft: &Draft) -> bool {
        let alike = self.alike.entry(group.to_owned()).or_insert_with(|| Alike { texts: HashSet::new(), at: draft.at });
        if draft.at.duration_since(alike.at).as_secs_f64() > ALIKE_WITHIN.as_secs_f64() {
            alike.texts.clear();
        }
        alike.at = draft.at;
        alike.texts.insert(draft.message.clone());
        alike.texts.len() >= ALIKE_MOST
    }

    fn count(&mut self, key: String, message: String, at: Timestamp) -> Step {
        let counted = self.counted.entry(key.clone()).or_insert(Counted { count: 0, first: at, name: None });
        counted.count += 1;
        Step { key, message, first: counted.first, count: counted.count, name: counted.name.clone() }
    }

    fn bound(&mut self) {
        if self.counted.len() >= REMEMBERED_MOST || self.budgets.len() >= REMEMBERED_MOST {
            *self = Self::default();
        }
    }
}

fn object_key(draft: &Draft) -> String {
    let about = &draft.about;
    let parts = [&about.kind, &about.namespace, &about.name, &about.uid, &about.field_path];
    parts.map(|it| it.as_deref().unwrap_or_default()).join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(message: &str, second: i64) -> Draft {
        let about = ObjectReference { kind: Some("ReplicaSet".into()), name: Some("web".into()), uid: Some("u".into()), ..Default::default() };
        let at = Timestamp::from_second(1_700_000_000 + second).unwrap();
        Draft { about, kind: EventType::Normal, reason: "SuccessfulCreate".into(), message: message.into(), at }
    }

    #[test]
    fn the_same_event_counts_up() {
        let mut correlator = Correlator::default();
        let first = correlator.correlate(&draft("Created pod: a", 0)).unwrap();
        assert_eq!((first.name, first.count), (None, 1));
        correlator.written(&first.key, "web.1".into());
        let second = correlator.correlate(&draft("Created pod: a", 1)).unwrap();
        assert_eq!((second.name.as_deref(), second.count, second.first), (Some("web.1"), 2, first.first));
    }

    #[test]
    fn alike_events_are_combined_and_a_flood_is_cut_off() {
        let mut correlator = Correlator::default();
        let steps: Vec<_> = (0..40).map(|it| correlator.correlate(&draft(&format!("Created pod: {it}"), 0))).collect();
        let combined = |step: &Option<Step>| step.as_ref().is_some_and(|it| it.message.starts_with("(combined from similar events): "));
        assert_eq!(steps.iter().position(combined), Some(9));
        assert_eq!(steps.iter().filter(|it| it.is_some()).count(), 25);
    }
}
