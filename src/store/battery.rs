//! What every engine must hold, with the whole store over it; and the properties of several stores over one journal.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::{
    memory::{Fault, Memory},
    postgres::Postgres,
    sqlite::Sqlite,
    *,
};
use crate::meta::Meta;

#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests and benches of the whole program")]
mod database;

fn extract() -> Extract {
    Arc::new(|_, object| Header {
        uid: object.uid().into(),
        labels: object.labels().map(|(key, value)| (key.into(), value.into())).collect(),
        fields: vec![("spec.nodeName".into(), object.text_at(&["spec", "nodeName"]).into())],
        schema: 0,
    })
}

fn put(name: &str, expect: Expect, node: &str) -> Transaction {
    let key = Key::new("pods", "default", name);
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "resourceVersion": "999"}, "spec": {"nodeName": node}});
    let draft = Draft::new(&object, extract()(&key, &object));
    Transaction { writes: vec![Write { key, expect, change: Change::Put(draft) }] }
}

fn delete(object: &Arc<Stored>) -> Transaction {
    let value: Value = serde_json::from_slice(&object.json).expect("JSON");
    let change = Change::Delete(Draft::new(&value, object.header.clone()));
    Transaction { writes: vec![Write { key: object.key.clone(), expect: Expect::At(object.revision), change }] }
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.list("pods", None, None).map(|it| format!("{}@{}", it.key.name, it.revision)).collect()
}

async fn open(engine: Arc<dyn Engine>) -> (Store, Tasks) {
    let tasks = Tasks::new();
    (Store::open(engine, extract(), &tasks).await.expect("opens"), tasks)
}

async fn writes_reads_and_watches(engine: Arc<dyn Engine>) {
    let (store, tasks) = open(engine).await;
    let mut all = store.watch(Scope::resource("pods"), 0).expect("a watch from the start");
    let a = store.submit(put("a", Expect::Absent, "")).await.expect("created");
    let stored = a.objects[0].clone().expect("an object");
    assert_eq!(serde_json::from_slice::<Value>(&stored.json).expect("JSON").resource_version(), "1");
    assert!(matches!(store.submit(put("a", Expect::Absent, "")).await, Err(Rejected::Exists(_))));
    assert!(matches!(store.submit(put("a", Expect::At(7), "")).await, Err(Rejected::Changed { current: Some(_), .. })));
    assert!(matches!(store.submit(put("b", Expect::At(1), "")).await, Err(Rejected::Changed { current: None, .. })));

    let on_node = Scope { field: Some(("spec.nodeName".into(), "n1".into())), ..Scope::resource("pods") };
    let mut node = store.watch(on_node, 1).expect("a watch");
    store.submit(put("a", Expect::At(1), "n1")).await.expect("bound");
    store.submit(put("b", Expect::Absent, "n2")).await.expect("created");
    let bound = store.snapshot().get(&Key::new("pods", "default", "a")).expect("a");
    store.submit(delete(&bound)).await.expect("deleted");
    assert_eq!(names(&store.snapshot()), ["b@3"]);
    assert_eq!(names_of(&store.exact("pods", 2).expect("kept")), ["a@2"]);
    assert_eq!(names_of(&store.exact("pods", 3).expect("kept")), ["a@2", "b@3"]);

    let kinds = |events: Vec<Arc<Event>>| events.iter().map(|it| (it.kind, it.revision)).collect::<Vec<_>>();
    use EventKind::{Added, Deleted, Modified};
    assert_eq!(kinds(all.next().await.expect("events")), [(Added, 1), (Modified, 2), (Added, 3), (Deleted, 4)]);
    assert_eq!(kinds(node.next().await.expect("events")), [(Modified, 2), (Deleted, 4)]);
    assert_eq!(node.ready().expect("a bookmark"), (Vec::new(), 4));
    assert!(matches!(store.watch(Scope::resource("pods"), 99), Err(ReadError::Future(4))));
    assert!(tasks.stop(Duration::from_secs(5)).await);
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
    }
}

fn names_of(page: &[Arc<Stored>]) -> Vec<String> {
    page.iter().map(|it| format!("{}@{}", it.key.name, it.revision)).collect()
}

#[tokio::test]
async fn the_battery_holds_in_memory() {
    writes_reads_and_watches(Arc::new(Memory::new())).await;
}

#[tokio::test]
async fn the_battery_holds_on_sqlite_and_a_restart_finds_it_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("howdah.db");
    writes_reads_and_watches(Sqlite::open(&path).await.expect("opens")).await;
    let (store, tasks) = open(Sqlite::open(&path).await.expect("opens again")).await;
    assert_eq!((names(&store.snapshot()), store.revision()), (vec!["b@3".to_owned()], 4));
    assert!(matches!(Sqlite::open(&path).await, Err(engine::Error::InUse(_))));
    store.submit(put("c", Expect::Absent, "")).await.expect("created");
    assert_eq!(names(&store.snapshot()), ["b@3", "c@5"]);
    tasks.stop(Duration::from_secs(5)).await;
}

/// An engine on a schema of its own.
async fn postgres(server: &database::Server, schema: &str, tasks: &Tasks) -> Arc<dyn Engine> {
    Postgres::open(server.url(schema).parse().expect("an address"), tasks).await.expect("opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_battery_holds_on_postgres_and_a_restart_finds_it_all() {
    let Some(server) = database::Server::shared() else { return };
    let tasks = Tasks::new();
    writes_reads_and_watches(postgres(&server, "battery", &tasks).await).await;
    let (store, stored) = open(postgres(&server, "battery", &tasks).await).await;
    assert_eq!((names(&store.snapshot()), store.revision()), (vec!["b@3".to_owned()], 4));
    store.submit(put("c", Expect::Absent, "")).await.expect("created");
    assert_eq!(names(&store.snapshot()), ["b@3", "c@5"]);
    assert!(stored.stop(Duration::from_secs(5)).await);
    assert_eq!(server.psql("SELECT string_agg(name || '@' || rev, ' ' ORDER BY name) FROM battery.object").as_deref(), Some("b@3 c@5"));
    tasks.stop(Duration::from_secs(5)).await;
}

/// Without a fold or a clean end, the journal alone brings back what was acknowledged.
#[tokio::test]
async fn a_crash_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("howdah.db");
    let (store, _tasks) = open(Sqlite::open(&path).await.expect("opens")).await;
    for at in 0..50 {
        store.submit(put(&format!("pod-{at:02}"), Expect::Absent, "")).await.expect("created");
    }
    let before = names(&store.snapshot());
    // What a kill leaves: the files as they are now, with the log not yet in the main file.
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).expect("a folder");
    for name in ["howdah.db", "howdah.db-wal"] {
        std::fs::copy(folder.path().join(name), copy.join(name)).expect("a copy");
    }
    let (store, tasks) = open(Sqlite::open(&copy.join("howdah.db")).await.expect("opens")).await;
    assert_eq!(names(&store.snapshot()), before);
    tasks.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_lost_or_ambiguous_append_is_neither_lost_nor_doubled() {
    let memory = Arc::new(Memory::new());
    let (store, tasks) = open(memory.clone()).await;
    for (at, fault) in [Fault::Ambiguous, Fault::Lost, Fault::Ambiguous].into_iter().enumerate() {
        memory.fail([fault]);
        store.submit(put(&format!("pod-{at}"), Expect::Absent, "")).await.expect("created");
    }
    assert_eq!(names(&store.snapshot()), ["pod-0@1", "pod-1@2", "pod-2@3"]);
    assert_eq!(memory.journal().len(), 3);
    tasks.stop(Duration::from_secs(5)).await;
}

#[derive(Clone, Debug)]
enum Step {
    Create { server: usize, name: u8 },
    Update { server: usize, name: u8 },
    Delete { server: usize, name: u8 },
    Fail(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..3usize, 0..5u8);
    prop_oneof![
        place.clone().prop_map(|(server, name)| Step::Create { server, name }),
        place.clone().prop_map(|(server, name)| Step::Update { server, name }),
        place.prop_map(|(server, name)| Step::Delete { server, name }),
        any::<bool>().prop_map(Step::Fail),
    ]
}

/// Runs `steps` on three stores over one journal, some at the same time, and checks the invariants.
async fn check(steps: Vec<Step>) {
    let memory = Arc::new(Memory::shared());
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(open(memory.clone()).await);
    }
    let mut watcher = servers[0].0.watch(Scope::resource("pods"), 0).expect("a watch");
    let mut acknowledged = 0;
    for group in steps.chunks(4) {
        let submits = group.iter().filter_map(|step| {
            let (server, name, update) = match step {
                Step::Fail(is_lost) => {
                    memory.fail([if *is_lost { Fault::Lost } else { Fault::Ambiguous }]);
                    return None;
                }
                Step::Create { server, name } => (*server, *name, None),
                Step::Update { server, name } => (*server, *name, Some(false)),
                Step::Delete { server, name } => (*server, *name, Some(true)),
            };
            let store = &servers[server].0;
            let name = format!("pod-{name}");
            let current = store.snapshot().get(&Key::new("pods", "default", &name));
            let transaction = match (update, current) {
                (None, _) => put(&name, Expect::Absent, ""),
                (Some(true), Some(current)) => delete(&current),
                (_, current) => put(&name, Expect::At(current.map_or(1, |it| it.revision)), "n"),
            };
            Some(store.submit(transaction))
        });
        let results = futures::future::join_all(submits.collect::<Vec<_>>()).await;
        acknowledged += results.iter().filter(|it| it.is_ok()).count();
    }
    let journal = memory.journal();
    let entries: Vec<_> = journal.iter().flat_map(|it| &it.entries).collect();
    assert_eq!(entries.len(), acknowledged, "every acknowledged write is there once");
    assert!(journal.windows(2).all(|it| it[0].last == it[1].prev), "the chain is whole");
    assert!(entries.iter().zip(1..).all(|(entry, revision)| entry.revision == revision), "revisions are contiguous");
    let mut model = BTreeMap::new();
    for entry in &entries {
        match entry.is_delete {
            true => _ = model.remove(&entry.key),
            false => _ = model.insert(entry.key.clone(), entry.revision),
        }
    }
    let expected: Vec<String> = model.iter().map(|(key, revision)| format!("{}@{revision}", key.name)).collect();
    for (store, _) in &servers {
        assert_eq!(names(&store.consistent().await.expect("reads")), expected, "every server sees the same");
    }
    let mut seen = Vec::new();
    while seen.len() < entries.len() {
        seen.extend(watcher.next().await.expect("events").iter().map(|it| it.revision));
    }
    assert!(seen.iter().copied().eq(1..=entries.len() as u64), "the watcher saw each event once, in order");
    for (_, tasks) in servers {
        tasks.cancel();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn several_servers_on_one_journal_lose_and_double_nothing(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(check(steps));
    }
}
