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
    loop {
        match Postgres::open(server.url(schema).parse().expect("an address"), tasks).await {
            Ok(engine) => return engine,
            // The backend was ended by a fault that was meant for another.
            Err(engine::Error::Database(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("opens: {error}"),
        }
    }
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
    Update { server: usize, name: u8, node: u8 },
    Delete { server: usize, name: u8 },
    Fail(Fault),
    /// A server ends and another takes its place.
    Restart { server: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..SERVERS, 0..5u8);
    prop_oneof![
        3 => place.clone().prop_map(|(server, name)| Step::Create { server, name }),
        6 => (place.clone(), 0..3u8).prop_map(|((server, name), node)| Step::Update { server, name, node }),
        3 => place.prop_map(|(server, name)| Step::Delete { server, name }),
        3 => prop_oneof![Just(Fault::Lost), Just(Fault::Ambiguous), Just(Fault::Unheard)].prop_map(Step::Fail),
        1 => (0..SERVERS).prop_map(|server| Step::Restart { server }),
    ]
}

const SERVERS: usize = 3;

/// Several servers over one journal.
struct World {
    servers: Vec<(Store, Tasks)>,
    open: Box<dyn Fn() -> futures::future::LocalBoxFuture<'static, Arc<dyn Engine>>>,
    /// Makes something go wrong with the next append.
    fail: Box<dyn Fn(Fault)>,
}

impl World {
    /// A fault may hit a server that starts; whoever runs it starts it again.
    async fn server(&self) -> (Store, Tasks) {
        loop {
            let tasks = Tasks::new();
            if let Ok(store) = Store::open((self.open)().await, extract(), &tasks).await {
                return (store, tasks);
            }
        }
    }

    async fn start(mut self) -> Self {
        for _ in 0..SERVERS {
            self.servers.push(self.server().await);
        }
        self
    }

    /// Runs steps at the same time; returns how many writes were acknowledged, and checks that each rejection was right.
    async fn run(&mut self, steps: &[Step]) -> usize {
        let mut submits = Vec::new();
        for step in steps {
            let (server, name, change) = match step {
                Step::Fail(fault) => {
                    (self.fail)(*fault);
                    continue;
                }
                Step::Restart { server } => {
                    // As a crash: nothing is waited for.
                    self.servers[*server].1.cancel();
                    self.servers[*server] = self.server().await;
                    continue;
                }
                Step::Create { server, name } => (*server, *name, None),
                Step::Update { server, name, node } => (*server, *name, Some(Some(node))),
                Step::Delete { server, name } => (*server, *name, Some(None)),
            };
            let store = self.servers[server].0.clone();
            let name = format!("pod-{name}");
            let current = store.snapshot().get(&Key::new("pods", "default", &name));
            let transaction = match (change, current) {
                (None, _) => put(&name, Expect::Absent, ""),
                (Some(None), Some(current)) => delete(&current),
                (Some(node), current) => put(&name, Expect::At(current.map_or(1, |it| it.revision)), &format!("n{}", node.unwrap_or(&0))),
            };
            submits.push(async move { store.submit(transaction).await });
        }
        let results = futures::future::join_all(submits).await;
        results.iter().filter(|it| it.as_ref().is_ok_and(|it| !it.objects.is_empty())).count()
    }
}

/// A watcher that goes to another server each time and takes a bookmark with it.
struct Wanderer {
    scope: Scope,
    after: Revision,
    seen: Vec<(EventKind, Revision)>,
}

impl Wanderer {
    fn new(field: Option<&str>) -> Self {
        let field = field.map(|it| ("spec.nodeName".into(), it.into()));
        Self { scope: Scope { field, ..Scope::resource("pods") }, after: 0, seen: Vec::new() }
    }

    async fn visit(&mut self, store: &Store) {
        store.at_least(self.after).await.expect("every server gets there");
        let mut cursor = store.watch(self.scope.clone(), self.after).expect("no list is needed anew");
        loop {
            let (events, reached) = cursor.ready().expect("nothing is missing");
            self.seen.extend(events.iter().map(|it| (it.kind, it.revision)));
            self.after = reached;
            if events.is_empty() {
                return;
            }
        }
    }
}

/// What the journal says: the events of a scope, and the state at each revision.
struct Model {
    entries: Vec<Entry>,
    states: Vec<BTreeMap<Key, Entry>>,
}

impl Model {
    fn of(journal: &[journal::Batch]) -> Self {
        assert!(journal.windows(2).all(|it| it[0].last == it[1].prev), "the chain is whole");
        let entries: Vec<Entry> = journal.iter().flat_map(|it| it.entries.clone()).collect();
        assert!(entries.iter().zip(1..).all(|(entry, revision)| entry.revision == revision), "revisions are contiguous");
        let mut states = vec![BTreeMap::new()];
        for entry in &entries {
            let mut state = states[states.len() - 1].clone();
            match entry.is_delete {
                true => assert!(state.remove(&entry.key).is_some(), "what is deleted was there"),
                false => _ = state.insert(entry.key.clone(), entry.clone()),
            }
            states.push(state);
        }
        Self { entries, states }
    }

    fn names(&self, revision: usize) -> Vec<String> {
        self.states[revision].values().map(|it| format!("{}@{}", it.key.name, it.revision)).collect()
    }

    /// The events that a watcher with this field must see.
    fn events(&self, field: Option<&str>) -> Vec<(EventKind, Revision)> {
        let is_in = |entry: &Entry| {
            let value: Value = serde_json::from_slice(&entry.json).expect("JSON");
            field.is_none_or(|it| value.text_at(&["spec", "nodeName"]) == it)
        };
        let event = |entry: &Entry| {
            let before = self.states[entry.revision as usize - 1].get(&entry.key);
            let kind = match (entry.is_delete, before) {
                (true, _) => EventKind::Deleted,
                (false, None) => EventKind::Added,
                (false, Some(_)) => EventKind::Modified,
            };
            (is_in(entry) || before.is_some_and(is_in)).then_some((kind, entry.revision))
        };
        self.entries.iter().filter_map(event).collect()
    }
}

/// Runs `steps` on three servers over one journal, some at the same time, and checks the invariants of the store.
async fn check(world: World, steps: Vec<Step>) {
    let mut world = world.start().await;
    let mut resident = world.servers[0].0.watch(Scope::resource("pods"), 0).expect("a watch");
    let mut wanderers = [Wanderer::new(None), Wanderer::new(Some("n1"))];
    let mut acknowledged = 0;
    for (at, group) in steps.chunks(4).enumerate() {
        acknowledged += world.run(group).await;
        for (server, wanderer) in (at..).zip(&mut wanderers) {
            wanderer.visit(&world.servers[server % SERVERS].0).await;
        }
    }
    let model = Model::of(&(world.open)().await.tail(0).await.expect("the journal"));
    let last = model.entries.len();
    assert_eq!(last, acknowledged, "every acknowledged write is there once, and no other");
    for (server, (store, _)) in world.servers.iter().enumerate() {
        assert_eq!(names(&store.consistent().await.expect("reads")), model.names(last), "every server sees the same");
        for revision in 0..=last {
            assert_eq!(names_of(&store.exact("pods", revision as u64).expect("kept")), model.names(revision), "at {revision} on server {server}");
        }
    }
    for (wanderer, field) in wanderers.iter_mut().zip([None, Some("n1")]) {
        wanderer.visit(&world.servers[0].0).await;
        assert_eq!(wanderer.seen, model.events(field), "each event once, in order, on whatever server");
    }
    if !steps.iter().any(|it| matches!(it, Step::Restart { server: 0 })) {
        let mut seen = Vec::new();
        while seen.len() < last {
            seen.extend(resident.next().await.expect("events").iter().map(|it| (it.kind, it.revision)));
        }
        assert_eq!(seen, model.events(None));
    }
    world.servers.iter().for_each(|(_, tasks)| tasks.cancel());
}

fn in_memory() -> World {
    let memory = Arc::new(Memory::shared());
    let failing = memory.clone();
    World {
        servers: Vec::new(),
        open: Box::new(move || {
            let engine: Arc<dyn Engine> = memory.clone();
            Box::pin(async { engine })
        }),
        fail: Box::new(move |fault| failing.fail([fault])),
    }
}

/// Servers on a schema of their own; a fault ends a backend whatever it does, all of them, or those that hear of appends.
fn on_postgres(database: Arc<database::Server>, tasks: Tasks) -> World {
    let schema = format!("s{}", uuid::Uuid::new_v4().simple());
    let (server, name) = (database.clone(), schema.clone());
    World {
        servers: Vec::new(),
        open: Box::new(move || {
            let (server, schema, tasks) = (server.clone(), schema.clone(), tasks.clone());
            Box::pin(async move { postgres(&server, &schema, &tasks).await })
        }),
        fail: Box::new(move |fault| {
            let chosen = match fault {
                Fault::Lost => "ORDER BY random() LIMIT 1",
                Fault::Ambiguous => "",
                Fault::Unheard => "AND query LIKE 'LISTEN%'",
            };
            let sql = format!("SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = 'howdah/{name}' {chosen}) chosen");
            // At the same time as the writes that follow.
            let mut psql = database.command("psql");
            psql.args(["-q", "-U", "postgres", "-h"]).arg(database.folder()).args(["-c", &sql, "postgres"]).stdout(std::process::Stdio::null());
            psql.spawn().expect("psql");
        }),
    }
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..most)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn several_servers_on_one_journal_lose_and_double_nothing(steps in steps(40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(check(in_memory(), steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 0, ..ProptestConfig::with_cases(4) })]
    #[test]
    fn several_servers_on_postgres_lose_and_double_nothing(steps in steps(24)) {
        let Some(database) = database::Server::shared() else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let tasks = Tasks::new();
        runtime.block_on(check(on_postgres(database, tasks.clone()), steps));
        tasks.cancel();
    }
}

#[tokio::test]
async fn a_quota_refuses_what_is_new_and_lets_deletions_through() {
    let (store, tasks) = open(Arc::new(Memory::new())).await;
    store.submit(put("a", Expect::Absent, "")).await.expect("created");
    store.set_quota(store.snapshot().bytes() + 10);
    assert!(matches!(store.submit(put("b", Expect::Absent, "")).await, Err(Rejected::Full(_))));
    let a = store.submit(put("a", Expect::At(1), "n")).await.expect("updated").objects[0].clone().expect("an object");
    store.submit(delete(&a)).await.expect("deleted");
    assert_eq!(store.snapshot().bytes(), 0);
    store.submit(put("b", Expect::Absent, "")).await.expect("created");
    tasks.cancel();
}

/// A database that was put back in time: no revision is given twice, and who watches must list again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_of_the_database_leaves_revisions_out() {
    let Some(server) = database::Server::shared() else { return };
    let tasks = Tasks::new();
    let (store, stored) = open(postgres(&server, "rollback", &tasks).await).await;
    for name in ["a", "b", "c"] {
        store.submit(put(name, Expect::Absent, "")).await.expect("created");
    }
    let mut watcher = store.watch(Scope::resource("pods"), 3).expect("a watch");
    tokio::time::sleep(FOLD_EVERY * 2).await;
    // Row 3 never was; the backends that have seen it are gone.
    let undo = "DELETE FROM rollback.journal WHERE last > 2; DELETE FROM rollback.object WHERE rev > 2; UPDATE rollback.fold SET rev = 2;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'howdah/rollback'";
    server.psql(undo).expect("undone");
    let d = store.submit(put("d", Expect::Absent, "")).await.expect("created");
    assert!(d.revision > 1 << 32, "{}", d.revision);
    assert!(matches!(watcher.next().await, Err(ReadError::Compacted(_))));
    assert!(matches!(store.watch(Scope::resource("pods"), 3), Err(ReadError::Compacted(_))));
    assert_eq!(names(&store.consistent().await.expect("reads")), ["a@1", "b@2", &format!("d@{}", d.revision)]);
    stored.stop(Duration::from_secs(5)).await;
    // A server that starts on another timeline cannot know what others have seen.
    server.psql("UPDATE rollback.fold SET timeline = 'another/00000001'").expect("moved");
    let (store, stored) = open(postgres(&server, "rollback", &tasks).await).await;
    assert!(store.revision() > d.revision + (1 << 31));
    assert!(matches!(store.watch(Scope::resource("pods"), d.revision), Err(ReadError::Compacted(_))));
    stored.stop(Duration::from_secs(5)).await;
    tasks.cancel();
}

/// Folds are not waited for: a crash of the database may take one back that servers have seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_fold_that_a_crash_took_back_is_made_again() {
    let Some(server) = database::Server::shared() else { return };
    let tasks = Tasks::new();
    let (store, stored) = open(postgres(&server, "folded", &tasks).await).await;
    for name in ["a", "b"] {
        store.submit(put(name, Expect::Absent, "")).await.expect("created");
        tokio::time::sleep(FOLD_EVERY * 2).await;
    }
    assert_eq!(server.psql("SELECT rev FROM folded.fold").as_deref(), Some("2"));
    server.psql("DELETE FROM folded.object WHERE rev > 1; UPDATE folded.fold SET rev = 1").expect("taken back");
    store.submit(put("c", Expect::Absent, "")).await.expect("created");
    tokio::time::sleep(FOLD_EVERY * 4).await;
    assert_eq!(server.psql("SELECT string_agg(name || '@' || rev, ' ' ORDER BY name) FROM folded.object").as_deref(), Some("a@1 b@2 c@3"));
    assert!(stored.stop(Duration::from_secs(5)).await);
    tasks.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_keep_a_promise_is_refused() {
    let Some(server) = database::Server::start(&["fsync=off"]) else { return };
    let refused = |url: String| async move {
        match Postgres::open(url.parse().expect("an address"), &Tasks::new()).await {
            Ok(_) => "accepted".to_owned(),
            Err(why) => why.to_string(),
        }
    };
    assert!(refused(server.url("howdah")).await.contains("fsync is off"));
    server.crash();
    let Some(server) = database::Server::shared() else { return };
    server.psql("CREATE ROLE guest LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC").expect("a role");
    let guest = server.url("guest").replace("user=postgres", "user=guest");
    assert!(refused(guest.clone()).await.contains("GRANT CREATE ON DATABASE"));
    server.psql("CREATE SCHEMA guest AUTHORIZATION guest").expect("a schema");
    assert_eq!(refused(guest).await, "accepted");
}

/// A newer server has added to the schema while this one runs; then one that is newer still took away from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_used_unless_it_lacks_something() {
    let Some(server) = database::Server::shared() else { return };
    let tasks = Tasks::new();
    let migrated = |number: u32, name: &str| {
        let row = format!("INSERT INTO newer._sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({number}, '{name}', true, '', 0)");
        server.psql(&format!("ALTER TABLE newer.journal ADD COLUMN c{number} text; ALTER TABLE newer.object ADD COLUMN c{number} text; {row}")).expect("migrated");
    };
    let (running, running_tasks) = open(postgres(&server, "newer", &tasks).await).await;
    running.submit(put("a", Expect::Absent, "")).await.expect("created");
    migrated(1000, "more columns");
    running.submit(put("b", Expect::Absent, "")).await.expect("created");
    let (started, started_tasks) = open(postgres(&server, "newer", &tasks).await).await;
    started.submit(put("c", Expect::Absent, "")).await.expect("created");
    for store in [&running, &started] {
        assert_eq!(names(&store.consistent().await.expect("reads")), ["a@1", "b@2", "c@3"]);
    }
    running_tasks.stop(Duration::from_secs(5)).await;
    started_tasks.stop(Duration::from_secs(5)).await;
    migrated(1001, "contract columns");
    let Err(why) = Postgres::open(server.url("newer").parse().expect("an address"), &tasks).await else { panic!("it is used") };
    assert!(why.to_string().contains("needs (migration 1001, \"contract columns\"); run the newer one"), "{why}");
    tasks.cancel();
}

/// A backup of one store brings another to the same objects, at revisions that neither has given.
async fn restores(engine: Arc<dyn Engine>) {
    let (source, source_tasks) = open(Arc::new(Memory::new())).await;
    for name in ["a", "b", "c"] {
        source.submit(put(name, Expect::Absent, "n1")).await.expect("created");
    }
    let lines: Vec<u8> = archive::lines(&source.snapshot()).flatten().collect();
    source_tasks.cancel();
    for cut in [0, 1, lines.len() / 2, lines.len() - 12] {
        assert!(archive::Archive::read(&lines[..cut]).is_err(), "cut at {cut}");
    }
    let archive = archive::Archive::read(&lines[..]).expect("a backup");

    let (store, tasks) = open(engine.clone()).await;
    for name in ["b", "d"] {
        store.submit(put(name, Expect::Absent, "")).await.expect("created");
    }
    assert!(tasks.stop(Duration::from_secs(5)).await);
    let first = archive.restore(&*engine).await.expect("restored");
    let (store, tasks) = open(engine).await;
    assert!(first > 1 << 32 && store.revision() == first, "{first}");
    let snapshot = store.snapshot();
    let restored: Vec<String> = snapshot.list("pods", None, None).map(|it| it.key.name.to_string()).collect();
    assert_eq!(restored, ["a", "b", "c"]);
    for stored in snapshot.list("pods", None, None) {
        let object: Value = serde_json::from_slice(&stored.json).expect("JSON");
        assert_eq!((object.text_at(&["spec", "nodeName"]), object.resource_version()), ("n1", &*stored.revision.to_string()));
    }
    assert!(matches!(store.watch(Scope::resource("pods"), 2), Err(ReadError::Compacted(_))), "who watched must list again");
    store.submit(put("e", Expect::Absent, "")).await.expect("created");
    assert!(tasks.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_into_every_engine() {
    let folder = tempfile::tempdir().expect("a folder");
    restores(Arc::new(Memory::new())).await;
    restores(Sqlite::open(&folder.path().join("howdah.db")).await.expect("opens")).await;
    let Some(server) = database::Server::shared() else { return };
    let tasks = Tasks::new();
    restores(postgres(&server, "restored", &tasks).await).await;
    tasks.cancel();
}
