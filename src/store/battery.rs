//! What every engine must hold, with the whole store over it, case by case; `histories` has the properties of several stores over one journal.

#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests and benches of the whole program")]
mod database;
#[path = "../../tests/support/dice.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole program")]
mod dice;
mod faults;
mod histories;

use serde_json::json;

use self::{
    dice::Dice,
    faults::{Fault, Faulty},
    histories::{Model, Told},
};
use super::{engine::Appended, memory::Memory, postgres::Postgres, sqlite::Sqlite, *};
use crate::meta::Meta;


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
    Transaction { writes: vec![object.removal()] }
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
    assert_eq!(serde_json::from_slice::<Value>(&stored.json.text()).expect("JSON").resource_version(), "1");
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

#[tokio::test(start_paused = true)]
async fn a_lost_or_ambiguous_append_is_neither_lost_nor_doubled() {
    let (memory, tasks) = (Arc::new(Memory::new()), Tasks::new());
    let engine = Faulty::new(memory.clone(), &tasks);
    let store = Store::open(engine.clone(), extract(), &tasks).await.expect("opens");
    for (at, fault) in [Fault::Ambiguous, Fault::Lost, Fault::Ambiguous].into_iter().enumerate() {
        engine.fail(fault);
        store.submit(put(&format!("pod-{at}"), Expect::Absent, "")).await.expect("created");
    }
    assert_eq!(names(&store.snapshot()), ["pod-0@1", "pod-1@2", "pod-2@3"]);
    assert_eq!(memory.head().await.expect("the head"), 3);
    tasks.stop(Duration::from_secs(5)).await;
}

/// Who missed what the journal no longer tells cannot append where he stands, and is told to load anew.
async fn is_refused_behind_a_trimmed_journal(engine: Arc<dyn Engine>, late: Arc<dyn Engine>, age: impl Fn()) {
    let batch = |prev: Revision| {
        let entry = Entry { revision: prev + 1, key: Key::new("pods", "default", "a"), is_delete: false, schema: 0, json: "{}".into(), before: Before::Recent };
        journal::Batch { prev, last: prev + 1, id: prev as i64, entries: vec![entry] }
    };
    late.load().await.expect("loaded");
    for prev in 0..3 {
        assert_eq!(engine.append(&batch(prev)).await.expect("appended"), Appended::Committed);
    }
    age();
    assert_eq!(engine.fold(0, 3, &batch(2).entries).await.expect("folded"), 3);
    age();
    for prev in 0..2 {
        assert_eq!(late.append(&batch(prev)).await.expect("an answer"), Appended::Behind, "at {prev}");
        assert!(matches!(late.tail(prev).await, Err(engine::Error::Broken(it)) if it == prev));
        assert!(matches!(late.claim(prev).await, Err(engine::Error::Broken(it)) if it == prev));
    }
    assert_eq!(late.tail(2).await.expect("the last batch"), [batch(2)]);
    let loaded = late.load().await.expect("loaded");
    assert_eq!((loaded.revision, loaded.objects.len(), loaded.batches.len()), (3, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_a_trimmed_journal_is_refused() {
    let memory = Arc::new(Memory::shared());
    is_refused_behind_a_trimmed_journal(memory.clone(), memory.clone(), || memory.trim()).await;
    let Some(server) = database::Server::shared() else { return };
    let tasks = Tasks::new();
    let (engine, late) = (postgres(&server, "trimmed", &tasks).await, postgres(&server, "trimmed", &tasks).await);
    let age = || _ = server.psql("UPDATE trimmed.journal SET at = at - interval '1 day'").expect("aged");
    is_refused_behind_a_trimmed_journal(engine, late, age).await;
    tasks.cancel();
}

/// Watchers of scopes that nobody followed before come and go while events are published, each to a topic that is made for it: none misses
/// one, none sees one twice, and its bookmarks are right.
#[test]
fn topics_made_while_events_are_published_miss_nothing() {
    let mut dice = Dice(histories::seed() | 1);
    let memory = Arc::new(Memory::shared());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (store, tasks) = runtime.block_on(open(memory.clone()));
    let told: Vec<Told> = std::thread::scope(|threads| {
        let watchers: Vec<_> = (0..3).map(|_| Dice(dice.below(usize::MAX) as u64 | 1)).map(|dice| threads.spawn(|| visits(&store, dice))).collect();
        while !watchers.iter().all(|it| it.is_finished()) && store.revision() < PUBLISHED {
            let writes = (0..16).map(|at| store.submit(put(&format!("pod-{}", at % 5), Expect::Any, &format!("n{}", dice.below(3)))));
            assert!(runtime.block_on(futures::future::join_all(writes)).iter().all(Result::is_ok));
            // Topics that nobody follows any more are dropped.
            store.inner.topics.trim(Instant::now(), store.revision());
        }
        watchers.into_iter().flat_map(|it| it.join().expect("a watcher")).collect()
    });
    let model = Model::of(&runtime.block_on(memory.tail(0)).expect("the journal"));
    told.iter().for_each(|it| model.check_told(it));
    assert!(told.iter().filter(|it| !it.seen.is_empty()).count() > VISITS, "{} watchers", told.len());
    tasks.cancel();
}

/// Revisions after which nothing more is written.
const PUBLISHED: Revision = 3000;
/// Watchers of each of several threads.
const VISITS: usize = 100;

/// One watcher after the other, each from a revision a little back.
fn visits(store: &Store, mut dice: Dice) -> Vec<Told> {
    let visit = |_| {
        let scopes = histories::scopes();
        let scope = scopes[dice.below(scopes.len())].clone();
        let after = store.revision().saturating_sub(dice.below(20) as u64);
        let mut told = Told::new(scope.clone(), after);
        let mut cursor = store.watch(scope, after).expect("nothing is too old");
        for _ in 0..dice.below(500) {
            told.read(&mut cursor).expect("nothing is missing");
        }
        told
    };
    (0..VISITS).map(visit).collect()
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
    let running_tasks = Tasks::new();
    let running = Store::open(postgres(&server, "newer", &running_tasks).await, extract(), &running_tasks).await.expect("opens");
    running.submit(put("a", Expect::Absent, "")).await.expect("created");
    migrated(1000, "more columns");
    running.submit(put("b", Expect::Absent, "")).await.expect("created");
    let (started, started_tasks) = open(postgres(&server, "newer", &tasks).await).await;
    started.submit(put("c", Expect::Absent, "")).await.expect("created");
    for store in [&running, &started] {
        assert_eq!(names(&store.consistent().await.expect("reads")), ["a@1", "b@2", "c@3"]);
    }
    started_tasks.stop(Duration::from_secs(5)).await;
    migrated(1001, "contract columns");
    let Err(why) = Postgres::open(server.url("newer").parse().expect("an address"), &tasks).await else { panic!("it is used") };
    assert!(why.to_string().contains("needs (migration 1001, \"contract columns\"); run the newer one"), "{why}");
    // The one that runs may not have looked yet, but is refused.
    for name in ["d", "a"] {
        let refused = running.submit(put(name, Expect::Absent, "")).await;
        let says = |why: &str| why.contains("\"contract columns\"") || why == "the store is stopping";
        assert!(matches!(&refused, Err(Rejected::Unavailable(why)) if says(why)), "{refused:?}");
    }
    running_tasks.stopping().await;
    assert!(running_tasks.stop(Duration::from_secs(5)).await, "it ends");
    assert_eq!(server.psql("SELECT max(last) FROM newer.journal").as_deref(), Some("3"));
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
        let object: Value = serde_json::from_slice(&stored.json.text()).expect("JSON");
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
