//! Priority and fairness: a flood from one user does not starve the others. FlowSchemas sort requests into priority levels, each with its share of
//! the server's seats; within a level the flows (of a user, of a namespace) take turns, and each has a queue with an end.
//! Source: apiserver `pkg/util/flowcontrol`, KEP-1040. Unlike there, idle levels lend no seats, and queues are not shuffle-sharded: a flow has its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use tokio::{sync::oneshot, time::timeout};

use super::{
    derived::Derived,
    identity::{Attributes, User},
};
use crate::{
    meta::{Meta, Result, Status, Value},
    store::Snapshot,
};

const SCHEMAS: &str = "flowcontrol.apiserver.k8s.io/flowschemas";
const LEVELS: &str = "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations";
/// Requests at the same time, of all levels that are limited (`--max-requests-inflight` and `--max-mutating-requests-inflight`).
const SEATS: usize = 600;
/// A request that got no seat for so long is refused: a quarter of the time that requests have.
const WAIT: Duration = Duration::from_secs(15);
/// Requests that last are not counted; what they start with is quickly done.
const LASTING: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

/// Gives out the seats.
#[derive(Default)]
pub struct Fairness {
    config: Derived<Config>,
}

/// What the stored objects say.
#[derive(Default)]
struct Config {
    /// In the order in which they are tried.
    schemas: Vec<Arc<Schema>>,
    levels: HashMap<String, Arc<Level>>,
}

struct Schema {
    uid: String,
    name: String,
    level: Arc<Level>,
    /// `ByUser`, `ByNamespace` or none.
    distinguisher: String,
    rules: Vec<Value>,
}

/// One priority level.
pub struct Level {
    pub name: String,
    uid: String,
    is_exempt: bool,
    seats: AtomicUsize,
    /// How many may wait of one flow; 0 refuses at once.
    queue_max: AtomicUsize,
    queues: Mutex<Queues>,
    refused: AtomicU64,
}

#[derive(Default)]
struct Queues {
    running: usize,
    waiting: HashMap<String, VecDeque<oneshot::Sender<Seat>>>,
    /// Flows with somebody waiting, the next first.
    turns: VecDeque<String>,
}

/// The right to run; given back when dropped. Empty where it was taken back before it was anybody's.
struct Seat(Option<Arc<Level>>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.iter().for_each(Level::free);
    }
}

/// What became of a request: which schema and level it fell under, and its seat while it runs.
pub struct Ticket {
    schema: Arc<Schema>,
    _seat: Option<Seat>,
}

impl Ticket {
    /// Tells the client what its request fell under.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for (name, uid) in [("x-kubernetes-pf-flowschema-uid", &self.schema.uid), ("x-kubernetes-pf-prioritylevel-uid", &self.schema.level.uid)] {
            headers.extend(uid.parse().ok().map(|it| (HeaderName::from_static(name), it)));
        }
    }
}

impl Fairness {
    /// Waits for a seat; 429 where too many wait already, or for too long. `None` for what is not sorted: there are no schemas yet.
    pub async fn admit(&self, user: &User, attributes: &Attributes, snapshot: &Snapshot) -> Result<Option<Ticket>> {
        let config = self.config.get(snapshot, &[SCHEMAS, LEVELS], |before| Config::read(snapshot, before));
        let Some(schema) = config.schemas.iter().find(|it| it.matches(user, attributes)) else { return Ok(None) };
        let lasts = attributes.verb == "watch" || LASTING.contains(&attributes.subresource.as_str());
        let seat = match lasts || schema.level.is_exempt {
            true => None,
            false => Some(schema.level.seat(schema.flow(user, attributes)).await?),
        };
        Ok(Some(Ticket { schema: schema.clone(), _seat: seat }))
    }

    /// The levels with their seats, and what runs, waits and was refused in them.
    pub fn state(&self) -> Vec<(String, [usize; 3], u64)> {
        let told = |it: &Arc<Level>| {
            let queues = it.queues();
            (it.name.clone(), [it.seats.load(Ordering::Relaxed), queues.running, queues.waiting.values().map(VecDeque::len).sum()], it.refused.load(Ordering::Relaxed))
        };
        self.config.last().levels.values().map(told).collect()
    }
}

impl Config {
    /// A level that was there before keeps who runs and waits in it.
    fn read(snapshot: &Snapshot, before: &Self) -> Self {
        let objects = |resource: &str| snapshot.list(resource, None, None).map(|it| it.value()).collect::<Vec<_>>();
        let stored = objects(LEVELS);
        let shares = |it: &Value| it.int_at(&["spec", "limited", "nominalConcurrencyShares"]).unwrap_or(30).max(0) as usize;
        let all: usize = stored.iter().filter(|it| it.text_at(&["spec", "type"]) == "Limited").map(shares).sum();
        let level = |it: &Value| {
            let level = before.levels.get(it.name()).filter(|level| level.uid == it.uid()).cloned().unwrap_or_else(|| Arc::new(Level::new(it)));
            level.seats.store((SEATS * shares(it)).div_ceil(all.max(1)), Ordering::Relaxed);
            let queues = it.text_at(&["spec", "limited", "limitResponse", "type"]) == "Queue";
            let length = it.int_at(&["spec", "limited", "limitResponse", "queuing", "queueLengthLimit"]).unwrap_or(50).max(1) as usize;
            level.queue_max.store(if queues { length } else { 0 }, Ordering::Relaxed);
            (it.name().to_owned(), level)
        };
        let levels: HashMap<String, Arc<Level>> = stored.iter().map(level).collect();
        let mut schemas = objects(SCHEMAS);
        schemas.sort_by_key(|it| (it.int_at(&["spec", "matchingPrecedence"]).unwrap_or(1000), it.name().to_owned()));
        let schemas = schemas.iter().filter_map(|it| Schema::read(it, &levels).map(Arc::new)).collect();
        Self { schemas, levels }
    }
}

impl Schema {
    fn read(object: &Value, levels: &HashMap<String, Arc<Level>>) -> Option<Self> {
        Some(Self {
            uid: object.uid().to_owned(),
            name: object.name().to_owned(),
            level: levels.get(object.text_at(&["spec", "priorityLevelConfiguration", "name"]))?.clone(),
            distinguisher: object.text_at(&["spec", "distinguisherMethod", "type"]).to_owned(),
            rules: object.items_at(&["spec", "rules"]).to_vec(),
        })
    }

    fn flow(&self, user: &User, attributes: &Attributes) -> String {
        let own = match self.distinguisher.as_str() {
            "ByUser" => &user.name,
            "ByNamespace" => &attributes.namespace,
            _ => "",
        };
        format!("{}/{own}", self.name)
    }

    fn matches(&self, user: &User, attributes: &Attributes) -> bool {
        self.rules.iter().any(|rule| {
            let asks = if attributes.is_resource() { "resourceRules" } else { "nonResourceRules" };
            rule.items_at(&["subjects"]).iter().any(|it| is_subject(it, user)) && rule.items_at(&[asks]).iter().any(|it| is_asked(it, attributes))
        })
    }
}

fn is_subject(subject: &Value, user: &User) -> bool {
    let is = |name: &str, found: &str| name == "*" || name == found;
    match subject.text("kind") {
        "User" => is(subject.text_at(&["user", "name"]), &user.name),
        "Group" => matches!(subject.text_at(&["group", "name"]), name if name == "*" || user.is_in(name)),
        _ => {
            let Some((namespace, name)) = user.name.strip_prefix("system:serviceaccount:").and_then(|it| it.split_once(':')) else { return false };
            subject.text_at(&["serviceAccount", "namespace"]) == namespace && is(subject.text_at(&["serviceAccount", "name"]), name)
        }
    }
}

fn is_asked(rule: &Value, attributes: &Attributes) -> bool {
    let lists = |field: &str, wanted: &str| rule.items_at(&[field]).iter().any(|it| it == "*" || it == wanted);
    if !lists("verbs", &attributes.verb) {
        return false;
    }
    if !attributes.is_resource() {
        let covers = |it: &str| it == attributes.path || it.strip_suffix('*').is_some_and(|prefix| attributes.path.starts_with(prefix));
        return rule.texts_at(&["nonResourceURLs"]).any(covers);
    }
    let resource = match attributes.subresource.as_str() {
        "" => attributes.resource.clone(),
        part => format!("{}/{part}", attributes.resource),
    };
    let is_placed = match attributes.namespace.as_str() {
        "" => rule["clusterScope"] == true,
        namespace => lists("namespaces", namespace),
    };
    lists("apiGroups", &attributes.group) && lists("resources", &resource) && is_placed
}

impl Level {
    fn new(object: &Value) -> Self {
        Self {
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            is_exempt: object.text_at(&["spec", "type"]) == "Exempt",
            seats: AtomicUsize::new(0),
            queue_max: AtomicUsize::new(0),
            queues: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// No code panics while it holds the lock, so that a poisoned one is still whole.
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn seat(self: &Arc<Self>, flow: String) -> Result<Seat> {
        let Some(waiting) = self.sit_or_wait(flow)? else { return Ok(Seat(Some(self.clone()))) };
        match timeout(WAIT, waiting).await {
            Ok(Ok(seat)) => Ok(seat),
            _ => Err(self.refuse()),
        }
    }

    /// Takes a free seat (`None`), or a place in the flow's queue.
    fn sit_or_wait(&self, flow: String) -> Result<Option<oneshot::Receiver<Seat>>> {
        let mut queues = self.queues();
        if queues.running < self.seats.load(Ordering::Relaxed) && queues.turns.is_empty() {
            queues.running += 1;
            return Ok(None);
        }
        let queue = queues.waiting.entry(flow.clone()).or_default();
        if queue.len() >= self.queue_max.load(Ordering::Relaxed) {
            if queue.is_empty() {
                queues.waiting.remove(&flow);
            }
            drop(queues);
            return Err(self.refuse());
        }
        let (sender, receiver) = oneshot::channel();
        queue.push_back(sender);
        if queue.len() == 1 {
            queues.turns.push_back(flow);
        }
        Ok(Some(receiver))
    }

    fn refuse(&self) -> Status {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Status::too_many_requests("Too many requests, please try again later.", 1)
    }

    /// A seat is free: the next flow's next request gets it, if that still waits.
    fn free(self: &Arc<Self>) {
        let mut queues = self.queues();
        while queues.running <= self.seats.load(Ordering::Relaxed)
            && let Some(next) = queues.next()
        {
            match next.send(Seat(Some(self.clone()))) {
                Ok(()) => return,
                // It has gone away: dropped as it is, the seat would be freed a second time.
                Err(mut seat) => seat.0 = None,
            }
        }
        queues.running -= 1;
    }
}

impl Queues {
    fn next(&mut self) -> Option<oneshot::Sender<Seat>> {
        let flow = self.turns.pop_front()?;
        let queue = self.waiting.get_mut(&flow)?;
        let next = queue.pop_front();
        match queue.is_empty() {
            true => _ = self.waiting.remove(&flow),
            false => self.turns.push_back(flow),
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn level(seats: usize, queue: usize) -> Arc<Level> {
        let level = Level::new(&json!({"metadata": {"name": "l"}, "spec": {"type": "Limited"}}));
        level.seats.store(seats, Ordering::Relaxed);
        level.queue_max.store(queue, Ordering::Relaxed);
        Arc::new(level)
    }

    #[tokio::test]
    async fn flows_take_turns_and_queues_have_an_end() {
        let level = level(1, 3);
        let first = level.seat("flood".to_owned()).await.expect("a free seat");
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for flow in ["flood", "flood", "flood", "quiet"] {
            let (level, order) = (level.clone(), order.clone());
            let Some(waiting) = level.sit_or_wait(flow.to_owned()).expect("a place") else { panic!("no seat is free") };
            tasks.push(async move {
                let seat = waiting.await.expect("a seat");
                order.lock().expect("whole").push(flow);
                drop(seat);
            });
        }
        let refused = level.seat("flood".to_owned()).await.err().expect("the queue is full");
        assert_eq!((refused.code, refused.details.expect("details").retry_after_seconds), (429, 1));
        drop(first);
        futures::future::join_all(tasks).await;
        assert_eq!(*order.lock().expect("whole"), ["flood", "quiet", "flood", "flood"]);
        assert_eq!(level.queues().running, 0);
    }

    #[tokio::test]
    async fn who_goes_away_gives_up_the_place() {
        let level = level(1, 3);
        let first = level.seat("a".to_owned()).await.expect("a free seat");
        drop(level.sit_or_wait("b".to_owned()).expect("a place"));
        let waiting = level.sit_or_wait("c".to_owned()).expect("a place").expect("no seat is free");
        drop(first);
        // The seat was sent and nobody takes it: it is free again.
        drop(waiting);
        assert!(level.sit_or_wait("d".to_owned()).expect("a seat").is_none());
    }

    #[test]
    fn rules_say_who_asks_for_what() {
        let user = User { name: "system:serviceaccount:ns:bot".into(), groups: vec!["g".into()], ..User::default() };
        let subject = |it: Value| is_subject(&it, &user);
        assert!(subject(json!({"kind": "Group", "group": {"name": "g"}})) && !subject(json!({"kind": "Group", "group": {"name": "h"}})));
        assert!(subject(json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": "*"}})));
        assert!(!subject(json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "other", "name": "*"}})));
        let pods = |namespace: &str, part: &str| Attributes { verb: "get".into(), resource: "pods".into(), subresource: part.into(), namespace: namespace.into(), ..Attributes::default() };
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["ns"]});
        let cases = [(pods("ns", ""), true), (pods("ns", "status"), false), (pods("", ""), false), (pods("other", ""), false)];
        for (attributes, expected) in cases {
            assert_eq!(is_asked(&rule, &attributes), expected, "{attributes:?}");
        }
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        let urls = json!({"verbs": ["*"], "nonResourceURLs": ["/healthz", "/api/*"]});
        assert!(is_asked(&urls, &path("/healthz")) && is_asked(&urls, &path("/api/v1")) && !is_asked(&urls, &path("/healthz/log")));
    }
}
