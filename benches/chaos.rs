//! Chaos: two API servers over HTTPS on a Postgres with a synchronous standby, and controllers twice, while backends are killed, servers
//! and controllers killed or stopped, Postgres crashes, the standby takes the place of the primary, dumps are made and old snapshots held.
//! Every acknowledged write must be there once, every watcher see each change once and in order, and every pod of a Deployment be made once.
//!
//! `cargo test --bench chaos` runs a short form; `cargo bench --bench chaos -- --faults 1000 --seed 7` a long one.

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole program")]
mod database;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{AsyncBufReadExt, TryStreamExt};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

const SERVERS: usize = 2;
const CONTROLLERS: usize = 2;
const WRITERS: usize = 8;
const WATCHERS: usize = 3;
const SHARED: &str = "shared";
const OBJECTS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
/// The Deployment grows by so many pods whenever it has all, up to a most.
const PODS_STEP: usize = 3;
const PODS_MAX: usize = 300;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The faults of a short run.
const FAULTS: usize = 40;
/// How long a request may take before it counts as ambiguous, and a start of a server on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);
const START_WITHIN: Duration = Duration::from_secs(120);
/// How long a fault waits for a write after the one before.
const PROGRESS_WITHIN: Duration = Duration::from_secs(3);
/// How long a run's end may take until all agree.
const AGREE_WITHIN: Duration = Duration::from_secs(90);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut faults, mut seed) = (FAULTS, u64::from(std::process::id()));
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|it| it.parse().ok()).expect("a number");
        match argument.as_str() {
            "--faults" => faults = number() as usize,
            "--seed" => seed = number(),
            flag if flag.starts_with("--") => (),
            // The filter of a `cargo test` for other tests.
            filter if !"chaos".contains(filter) => return,
            _ => (),
        }
    }
    let Some(database) = Pair::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(run(database, faults, seed));
}

async fn run(database: Pair, faults: usize, seed: u64) {
    println!("chaos: {faults} faults, seed {seed}");
    let folder = tempfile::tempdir().expect("a folder");
    let mut servers: Vec<Server> = (0..SERVERS).map(|at| Server::new(&database, folder.path(), at)).collect();
    for server in &mut servers {
        server.process.launch();
        server.await_ready().await;
    }
    let mut controllers: Vec<Process> = (0..CONTROLLERS).map(|at| controllers(&servers, at)).collect();
    controllers.iter_mut().for_each(Process::launch);
    let began = Instant::now();
    let world = World::new(&servers).await;
    world.create(SHARED).await;
    let mut tasks = tokio::task::JoinSet::new();
    (0..WRITERS).for_each(|at| _ = tasks.spawn(Writer::new(world.clone(), at).run()));
    let watchers: Vec<_> = (0..WATCHERS).map(|at| tokio::spawn(Watcher::new(world.clone(), at).run())).collect();
    let scaler = tokio::spawn(Scaler::new(world.clone()).run());
    let mut chaos = Chaos { world: world.clone(), database, servers, controllers, random: Random(seed | 1), children: Vec::new() };
    let counts = chaos.rage(faults).await;
    world.is_over.store(true, Ordering::SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a writer");
    }
    let last = world.list().await;
    *world.last.lock().expect("the end") = Some(last.clone());
    for watcher in watchers {
        watcher.await.expect("a watcher");
    }
    let pods = scaler.await.expect("the Deployment");
    world.judge(&last);
    world.report(&counts, pods, began.elapsed());
}

/// A Postgres and its synchronous standby, which change places.
struct Pair {
    primary: database::Server,
    standby: database::Server,
}

impl Pair {
    fn start() -> Option<Self> {
        let settings = ["synchronous_standby_names=*", "wal_retrieve_retry_interval=100ms"];
        let pair = Self { primary: database::Server::start(&settings)?, standby: database::Server::prepare(&settings)? };
        pair.standby.follow(&pair.primary);
        Some(pair)
    }

    /// The address for `--store`, which names both.
    fn url(&self, schema: &str) -> String {
        let hosts = [&self.primary, &self.standby].map(|it| it.folder().display().to_string().replace('/', "%2F"));
        format!("postgres://postgres@{}/postgres?schema={schema}", hosts.join(","))
    }

    /// The primary dies, before or after the standby is promoted, and comes back as the standby of the other.
    fn fail_over(&mut self, is_dead: bool) {
        if is_dead {
            self.primary.crash();
        }
        self.standby.promote();
        if !is_dead {
            std::thread::sleep(Duration::from_millis(500));
            self.primary.crash();
        }
        std::mem::swap(&mut self.primary, &mut self.standby);
        self.standby.follow(&self.primary);
    }
}

/// A process of the program.
struct Process {
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    launched: Instant,
}

impl Process {
    fn new(name: &str, arguments: Vec<String>) -> Self {
        let log = std::env::temp_dir().join(format!("howdah-chaos-{}-{name}.log", std::process::id()));
        Self { arguments, log, child: None, launched: Instant::now() }
    }

    fn launch(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
        command.args(&self.arguments).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("the program starts"));
        self.launched = Instant::now();
    }

    /// Whoever runs a process that has ended starts it again: Postgres was down while it started.
    fn revive(&mut self) {
        if self.child.as_mut().is_some_and(|it| it.try_wait().is_ok_and(|it| it.is_some())) {
            self.launch();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An API server.
struct Server {
    process: Process,
    kubeconfig: PathBuf,
    port: u16,
}

impl Server {
    fn new(database: &Pair, folder: &Path, at: usize) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let own = folder.join(format!("server-{at}"));
        let kubeconfig = own.join("admin.conf");
        let arguments = ["apiserver", "--store", &database.url("chaos"), "--bind", &format!("127.0.0.1:{port}"), "--data-dir"].map(str::to_owned);
        let mut arguments = arguments.to_vec();
        arguments.extend([own.display().to_string(), "--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
        Self { process: Process::new(&format!("apiserver-{at}"), arguments), kubeconfig, port }
    }

    async fn await_ready(&mut self) {
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() || !self.kubeconfig.exists() {
            assert!(self.process.launched.elapsed() < START_WITHIN, "the server does not start; see {}", self.process.log.display());
            self.process.revive();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Controllers that ask one server first, and then the next.
fn controllers(servers: &[Server], at: usize) -> Process {
    let kubeconfig = servers[at % SERVERS].kubeconfig.with_file_name("controller-manager.conf");
    let mut arguments = vec!["controllers".to_owned(), "--kubeconfig".to_owned(), kubeconfig.display().to_string()];
    let urls = (at..at + SERVERS).map(|it| format!("https://127.0.0.1:{}", servers[it % SERVERS].port));
    arguments.extend(urls.flat_map(|it| ["--server".to_owned(), it]));
    Process::new(&format!("controllers-{at}"), arguments)
}

/// xorshift: a run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Backend,
    Backends,
    KillServer,
    StopServer,
    KillControllers,
    Crash,
    FailOver,
    Reader,
    Dump,
}

/// Each fault, what it is called, and how often it comes beside the others.
const FAULTS_BY_WEIGHT: [(Fault, &str, u64); 9] = [
    (Fault::Backend, "killed backends", 500),
    (Fault::Backends, "all backends killed", 110),
    (Fault::KillServer, "killed API servers", 100),
    (Fault::StopServer, "stopped API servers", 100),
    (Fault::KillControllers, "killed controllers", 20),
    (Fault::Crash, "crashes of Postgres", 40),
    (Fault::FailOver, "failovers", 15),
    (Fault::Reader, "open readers", 60),
    (Fault::Dump, "dumps", 55),
];

/// What makes the faults.
struct Chaos {
    world: Arc<World>,
    database: Pair,
    servers: Vec<Server>,
    controllers: Vec<Process>,
    random: Random,
    children: Vec<Child>,
}

impl Chaos {
    /// Each kind of fault comes once at least.
    async fn rage(&mut self, faults: usize) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for at in 0..faults {
            tokio::time::sleep(Duration::from_millis(10 + self.random.below(80))).await;
            let spacing = (faults / FAULTS_BY_WEIGHT.len()).max(1);
            let (fault, name, _) = if at % spacing == 0 { FAULTS_BY_WEIGHT[at / spacing % FAULTS_BY_WEIGHT.len()] } else { self.any() };
            self.make(fault).await;
            self.await_progress().await;
            *counts.entry(name).or_default() += 1;
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        for server in &mut self.servers {
            server.await_ready().await;
        }
        self.controllers.iter_mut().for_each(Process::revive);
        counts
    }

    /// A fault by its weight.
    fn any(&mut self) -> (Fault, &'static str, u64) {
        let mut left = self.random.below(FAULTS_BY_WEIGHT.iter().map(|it| it.2).sum());
        let is_it = |it: &&(Fault, &str, u64)| left.checked_sub(it.2).map(|rest| left = rest).is_none();
        *FAULTS_BY_WEIGHT.iter().find(is_it).expect("the number is below the sum of all weights")
    }

    /// Lets something be written between two faults, or nothing would be there to be lost.
    async fn await_progress(&self) {
        let count = || self.world.acknowledged.lock().expect("the acknowledged").len();
        let (before, began) = (count(), Instant::now());
        while count() == before && began.elapsed() < PROGRESS_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn make(&mut self, fault: Fault) {
        let one = self.random.below(2) as usize;
        self.controllers.iter_mut().for_each(Process::revive);
        match fault {
            Fault::Backend => self.terminate("LIMIT 1"),
            Fault::Backends => self.terminate(""),
            Fault::KillServer => {
                self.servers[1 - one].await_ready().await;
                self.servers[one].process.kill();
                self.servers[one].process.launch();
            }
            Fault::StopServer => {
                self.servers[one].process.signal(Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_millis(300 + self.random.below(1500))).await;
                self.servers[one].process.signal(Signal::SIGCONT);
            }
            Fault::KillControllers => {
                self.controllers[one].kill();
                self.controllers[one].launch();
            }
            Fault::Crash => {
                self.database.primary.crash();
                tokio::time::sleep(Duration::from_millis(self.random.below(500))).await;
                tokio::task::block_in_place(|| self.database.primary.resume());
            }
            Fault::FailOver => tokio::task::block_in_place(|| self.database.fail_over(one == 0)),
            Fault::Reader => {
                let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM chaos.object; SELECT pg_sleep(3)";
                self.beside("psql", &["-q", "-c", sql]);
            }
            Fault::Dump => self.beside("pg_dump", &["-n", "chaos"]),
        }
    }

    fn terminate(&mut self, limit: &str) {
        let sql = format!("SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = 'howdah/chaos' ORDER BY random() {limit}) chosen");
        self.database.primary.psql(&sql);
    }

    /// Runs a program of Postgres at the same time.
    fn beside(&mut self, program: &str, arguments: &[&str]) {
        self.children.retain_mut(|it| it.try_wait().is_ok_and(|it| it.is_none()));
        let mut command = self.database.primary.command(program);
        command.args(["-U", "postgres", "-h"]).arg(self.database.primary.folder()).args(arguments).arg("postgres");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.children.push(command.spawn().expect("it starts"));
    }
}

/// What all tasks share: the servers, and what was seen.
struct World {
    clients: Vec<kube::Client>,
    is_over: AtomicBool,
    /// The state at the end, which every watcher must reach.
    last: Mutex<Option<Listed>>,
    /// What was acknowledged: name and number by revision.
    acknowledged: Mutex<BTreeMap<u64, (String, u64)>>,
    /// What any watcher or writer was told of a revision.
    told: Mutex<HashMap<u64, (String, u64)>>,
    watched: Mutex<HashSet<u64>>,
    errors: Mutex<Vec<String>>,
    ambiguous: AtomicU64,
    shared_ambiguous: AtomicU64,
    events: AtomicU64,
    reconnects: AtomicU64,
    relists: AtomicU64,
}

/// A list: its revision, and the number of each object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    revision: u64,
    numbers: BTreeMap<String, u64>,
}

impl World {
    async fn new(servers: &[Server]) -> Arc<Self> {
        let mut clients = Vec::new();
        for server in servers {
            let file = kube::config::Kubeconfig::read_from(&server.kubeconfig).expect("a kubeconfig");
            let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.expect("a kubeconfig");
            clients.push(kube::Client::try_from(config).expect("a client"));
        }
        Arc::new(Self {
            clients,
            is_over: AtomicBool::default(),
            last: Mutex::default(),
            acknowledged: Mutex::default(),
            told: Mutex::default(),
            watched: Mutex::default(),
            errors: Mutex::default(),
            ambiguous: AtomicU64::default(),
            shared_ambiguous: AtomicU64::default(),
            events: AtomicU64::default(),
            reconnects: AtomicU64::default(),
            relists: AtomicU64::default(),
        })
    }

    fn fail(&self, error: String) {
        println!("  WRONG: {error}");
        self.errors.lock().expect("errors").push(error);
    }

    /// Notes what a revision holds; it may hold one thing only.
    fn tell(&self, revision: u64, name: &str, number: u64) {
        let mut told = self.told.lock().expect("what was told");
        let known = told.entry(revision).or_insert_with(|| (name.to_owned(), number)).clone();
        drop(told);
        if known != (name.to_owned(), number) {
            self.fail(format!("revision {revision} is {known:?} and {name} {number}: it was given twice"));
        }
    }

    fn acknowledge(&self, object: &Value) -> (u64, u64) {
        let (name, number, revision) = read(object);
        self.tell(revision, &name, number);
        self.acknowledged.lock().expect("the acknowledged").insert(revision, (name, number));
        (number, revision)
    }

    /// A request to one server: the object, a status code, or nothing that can be known.
    async fn ask(&self, server: usize, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(body.map_or_else(Vec::new, |it| it.to_string().into_bytes())).expect("a request");
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.clients[server % SERVERS].request::<Value>(request)).await;
        match answered {
            Ok(Ok(object)) => Answer::Object(object),
            Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code >= 400 => Answer::Refused(status.code),
            _ => Answer::Unknown,
        }
    }

    /// Asks one server after the other until one knows.
    async fn ask_on(&self, mut server: usize, path: &str) -> Result<Value, u16> {
        loop {
            match self.ask(server, "GET", path, None).await {
                Answer::Object(object) => return Ok(object),
                Answer::Refused(404) => return Err(404),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            server += 1;
        }
    }

    async fn create(&self, name: &str) {
        while let Answer::Unknown = self.ask(0, "POST", OBJECTS, Some(&object(name, 0, None))).await {}
    }

    async fn list(&self) -> Listed {
        listed(&self.ask_on(0, OBJECTS).await.expect("a list"))
    }

    /// Compares what was acknowledged with what is there.
    fn judge(&self, last: &Listed) {
        let acknowledged = self.acknowledged.lock().expect("the acknowledged").clone();
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, number) in acknowledged.values() {
            let newest = newest.entry(name).or_default();
            *newest = (*newest).max(*number);
        }
        for (name, number) in newest {
            match last.numbers.get(name) {
                Some(there) if *there >= number => (),
                there => self.fail(format!("{name} {number} was acknowledged, and {there:?} is there: lost")),
            }
        }
        let increments = acknowledged.values().filter(|(name, number)| name == SHARED && *number > 0).count() as u64;
        let most = increments + self.shared_ambiguous.load(Ordering::SeqCst);
        let there = last.numbers[SHARED];
        if there < increments || there > most {
            self.fail(format!("{increments} to {most} increments of the shared object, and it says {there}"));
        }
        if self.relists.load(Ordering::SeqCst) == 0 {
            let watched = self.watched.lock().expect("the watched");
            acknowledged.keys().filter(|it| !watched.contains(it)).for_each(|it| self.fail(format!("no watcher saw the acknowledged revision {it}")));
        }
    }

    fn report(&self, counts: &BTreeMap<&str, usize>, pods: usize, took: Duration) {
        let number = |it: &AtomicU64| it.load(Ordering::SeqCst);
        let acknowledged = self.acknowledged.lock().expect("the acknowledged").len();
        println!("chaos: {} faults in {} s: {counts:?}", counts.values().sum::<usize>(), took.as_secs());
        println!(
            "  {acknowledged} acknowledged writes, {} unanswered; {} events to {WATCHERS} watchers over {} connections, {} relists",
            number(&self.ambiguous),
            number(&self.events),
            number(&self.reconnects),
            number(&self.relists)
        );
        println!("  {pods} pods of a Deployment");
        let errors = self.errors.lock().expect("errors");
        assert!(errors.is_empty(), "{} things are wrong", errors.len());
        println!("  0 lost, 0 doubled, 0 reordered, 0 revisions reused");
    }
}

enum Answer {
    Object(Value),
    Refused(u16),
    Unknown,
}

fn object(name: &str, number: u64, revision: Option<u64>) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": number.to_string(), "fill": "x".repeat(500)}});
    if let Some(revision) = revision {
        object["metadata"]["resourceVersion"] = revision.to_string().into();
    }
    object
}

/// Name, number and revision.
fn read(object: &Value) -> (String, u64, u64) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let number = |pointer: &str| text(pointer).parse().unwrap_or_default();
    (text("/metadata/name").to_owned(), number("/data/n"), number("/metadata/resourceVersion"))
}

fn is_ours(name: &str) -> bool {
    name == SHARED || name.starts_with("own-") || name.starts_with("new-")
}

fn listed(list: &Value) -> Listed {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let numbers = items.iter().map(read).filter(|(name, _, _)| is_ours(name)).map(|(name, number, _)| (name, number)).collect();
    Listed { revision: read(list).2, numbers }
}

/// Counts in an object of its own, in one that all share, and makes new ones.
struct Writer {
    world: Arc<World>,
    at: usize,
    server: usize,
}

impl Writer {
    fn new(world: Arc<World>, at: usize) -> Self {
        Self { world, at, server: at }
    }

    async fn run(mut self) {
        let own = format!("own-{}", self.at);
        self.world.create(&own).await;
        let (mut number, mut revision) = self.get(&own).await;
        let mut round = 0;
        while !self.world.is_over.load(Ordering::SeqCst) {
            (number, revision) = self.count(&own, number, revision).await;
            round += 1;
            if round % 5 == 0 {
                self.make(&format!("new-{}-{round}", self.at)).await;
            }
            if round % 3 == 0 {
                self.share().await;
            }
        }
    }

    async fn get(&self, name: &str) -> (u64, u64) {
        let object = self.world.ask_on(self.server, &format!("{OBJECTS}/{name}")).await;
        let (_, number, revision) = object.map(|it| read(&it)).unwrap_or_default();
        (number, revision)
    }

    async fn put(&mut self, name: &str, number: u64, revision: u64) -> Answer {
        self.server += 1;
        let answer = self.world.ask(self.server, "PUT", &format!("{OBJECTS}/{name}"), Some(&object(name, number, Some(revision)))).await;
        if let Answer::Unknown = answer {
            self.world.ambiguous.fetch_add(1, Ordering::SeqCst);
        }
        answer
    }

    /// Nobody else writes this object: only an ambiguous write of ours may be there without an answer.
    async fn count(&mut self, name: &str, number: u64, revision: u64) -> (u64, u64) {
        let (mut revision, mut is_ambiguous) = (revision, false);
        loop {
            match self.put(name, number + 1, revision).await {
                Answer::Object(object) => return self.world.acknowledge(&object),
                Answer::Refused(409) if is_ambiguous => (),
                Answer::Refused(code) => self.world.fail(format!("{name} {}: refused with {code}, though nobody else writes it", number + 1)),
                Answer::Unknown => is_ambiguous = true,
            }
            let (there, its) = self.get(name).await;
            if there == number + 1 && is_ambiguous {
                return (there, its);
            }
            if there != number {
                self.world.fail(format!("{name} says {there} instead of {number}"));
                return (there, its);
            }
            revision = its;
        }
    }

    async fn make(&mut self, name: &str) {
        let mut is_ambiguous = false;
        loop {
            self.server += 1;
            match self.world.ask(self.server, "POST", OBJECTS, Some(&object(name, 0, None))).await {
                Answer::Object(object) => {
                    self.world.acknowledge(&object);
                    return;
                }
                Answer::Refused(409) if is_ambiguous => return,
                Answer::Refused(code) => return self.world.fail(format!("{name}: refused with {code}")),
                Answer::Unknown => is_ambiguous = true,
            }
            self.world.ambiguous.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn share(&mut self) {
        let (number, revision) = self.get(SHARED).await;
        match self.put(SHARED, number + 1, revision).await {
            Answer::Object(object) => _ = self.world.acknowledge(&object),
            Answer::Refused(409) => (),
            Answer::Refused(code) => self.world.fail(format!("{SHARED}: refused with {code}")),
            Answer::Unknown => _ = self.world.shared_ambiguous.fetch_add(1, Ordering::SeqCst),
        }
    }
}

/// Follows all objects, each time on another server, from where it was.
struct Watcher {
    world: Arc<World>,
    server: usize,
    seen: Listed,
}

impl Watcher {
    fn new(world: Arc<World>, at: usize) -> Self {
        Self { world, server: at, seen: Listed { revision: 0, numbers: BTreeMap::new() } }
    }

    async fn run(mut self) {
        self.seen = self.world.list().await;
        let mut deadline = None;
        while !self.is_done() {
            if self.world.last.lock().expect("the end").is_some() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + AGREE_WITHIN);
                if Instant::now() > deadline {
                    return self.world.fail(format!("a watcher ended at revision {} without the last state", self.seen.revision));
                }
            }
            self.world.reconnects.fetch_add(1, Ordering::SeqCst);
            // An end of the connection is no error: the next server goes on.
            let _ = tokio::time::timeout(Duration::from_secs(8), self.follow()).await;
            self.server += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_done(&self) -> bool {
        self.world.last.lock().expect("the end").as_ref().is_some_and(|last| self.seen.numbers == last.numbers)
    }

    async fn follow(&mut self) -> Option<()> {
        let path = format!("{OBJECTS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=5&resourceVersion={}", self.seen.revision);
        let request = http::Request::get(path).body(Vec::new()).ok()?;
        let lines = self.world.clients[self.server % SERVERS].request_stream(request).await.ok()?;
        let mut lines = std::pin::pin!(lines.lines());
        while let Some(line) = lines.try_next().await.ok()? {
            let event: Value = serde_json::from_str(&line).ok()?;
            match event["type"].as_str()? {
                "ERROR" => return self.error(&event["object"]).await,
                "BOOKMARK" => self.seen.revision = self.seen.revision.max(read(&event["object"]).2),
                _ => self.take(&event["object"]),
            }
            if self.is_done() {
                break;
            }
        }
        Some(())
    }

    async fn error(&mut self, status: &Value) -> Option<()> {
        if status["code"] == 410 {
            self.world.relists.fetch_add(1, Ordering::SeqCst);
            self.seen = self.world.list().await;
        }
        Some(())
    }

    fn take(&mut self, object: &Value) {
        let (name, number, revision) = read(object);
        if !is_ours(&name) {
            return;
        }
        self.world.events.fetch_add(1, Ordering::SeqCst);
        self.world.tell(revision, &name, number);
        self.world.watched.lock().expect("the watched").insert(revision);
        if revision <= self.seen.revision {
            self.world.fail(format!("revision {revision} after {}: reordered", self.seen.revision));
        }
        let before = self.seen.numbers.insert(name.clone(), number);
        if before.is_some_and(|it| number != it + 1) || (before.is_none() && number > 0) {
            self.world.fail(format!("a watcher saw {name} {number} after {before:?}"));
        }
        self.seen.revision = revision;
    }
}

/// Raises the replicas of a Deployment. No pod of it is ever deleted, so that each that was ever seen is one that was asked for.
struct Scaler {
    world: Arc<World>,
    replicas: usize,
    seen: HashSet<String>,
}

impl Scaler {
    fn new(world: Arc<World>) -> Self {
        Self { world, replicas: 1, seen: HashSet::new() }
    }

    /// Returns how many pods there are at the end.
    async fn run(mut self) -> usize {
        let labels = json!({"app": "scaled"});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "howdah/hello:1"}]}});
        let spec = json!({"replicas": 1, "selector": {"matchLabels": labels}, "template": template});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "scaled"}, "spec": spec});
        while let Answer::Unknown = self.world.ask(0, "POST", DEPLOYMENTS, Some(&deployment)).await {}
        let mut ends = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let count = self.look().await;
            let is_over = self.world.is_over.load(Ordering::SeqCst);
            match count == self.replicas {
                true if is_over => return count,
                true if self.replicas < PODS_MAX => self.scale().await,
                _ => (),
            }
            if is_over && Instant::now() > *ends.get_or_insert_with(|| Instant::now() + AGREE_WITHIN) {
                self.world.fail(format!("{} replicas of the Deployment, and {count} pods", self.replicas));
                return count;
            }
        }
    }

    async fn look(&mut self) -> usize {
        let pods = self.world.ask_on(0, "/api/v1/namespaces/default/pods?labelSelector=app%3Dscaled").await.expect("pods");
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let before = self.seen.len();
        self.seen.extend(pods.iter().filter_map(|it| it["metadata"]["uid"].as_str()).map(str::to_owned));
        if self.seen.len() > self.replicas.max(before) {
            self.world.fail(format!("{} replicas of the Deployment, and {} pods were made: doubled", self.replicas, self.seen.len()));
        }
        pods.len()
    }

    async fn scale(&mut self) {
        self.replicas += PODS_STEP;
        let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "scaled", "namespace": "default"}, "spec": {"replicas": self.replicas}});
        let mut server = self.replicas;
        while let Answer::Unknown = self.world.ask(server, "PUT", &format!("{DEPLOYMENTS}/scaled/scale"), Some(&scale)).await {
            server += 1;
        }
    }
}
