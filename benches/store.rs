//! Durable writes: the store on SQLite and Postgres beside a transaction per write on the same Postgres and, where it is at hand
//! (`ETCD=path`, or on the PATH), etcd. Every client compares and swaps pods of 2 KB of its own; all engines get the same bytes.
//!
//! `cargo bench --bench store -- --seconds 5 --clients 1,16,64,256`

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole program")]
mod database;

#[path = "../tests/support/etcd.rs"]
mod etcd;

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use howdah::{
    base::Tasks,
    store::{Change, Draft, Engine, Expect, Header, Key, Scope, Store, Transaction, Write, postgres::Postgres, sqlite::Sqlite},
};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use sqlx::{PgPool, postgres::PgPoolOptions};

/// Keys of each client.
const KEYS: u64 = 16;
const WRITES_ACROSS: usize = 1000;
const WRITE_EVERY: Duration = Duration::from_millis(5);

/// A compare-and-swap of key `key` at revision `at` (0: absent); the new revision.
type Swap = Arc<dyn Fn(u64, u64) -> BoxFuture<'static, u64> + Send + Sync>;

fn main() {
    let (mut seconds, mut clients) = (3, vec![1, 16, 64, 256]);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => seconds = arguments.next().and_then(|it| it.parse().ok()).expect("seconds"),
            "--clients" => clients = arguments.next().expect("clients").split(',').map(|it| it.parse().expect("a number")).collect(),
            _ => (),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(Duration::from_secs(seconds), &clients));
}

async fn run(time: Duration, clients: &[usize]) {
    let folder = tempfile::tempdir().expect("a folder");
    println!("| durable writes/s (p50, p99 ms) at N clients | {} |", clients.iter().map(usize::to_string).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(clients.len()));
    let etcd = etcd::Etcd::start(folder.path()).await;
    let peer = match &etcd {
        Some(etcd) => row("etcd", etcd_swap(etcd.port).await, time, clients).await,
        None => Vec::new(),
    };
    let tasks = Tasks::new();
    let sqlite = Sqlite::open(&folder.path().join("howdah.db")).await.expect("SQLite");
    row("howdah on SQLite", store(sqlite, &tasks).await, time, clients).await;
    let Some(server) = database::Server::start(&[]) else { return };
    row("a transaction per write, Postgres", per_write(&server).await, time, clients).await;
    let postgres = Postgres::open(server.url("bench").parse().expect("an address"), &tasks).await.expect("Postgres");
    let swap = store(postgres, &tasks).await;
    let alone = row("howdah on Postgres", swap.clone(), time, clients).await;
    let mut reader = server.command("psql");
    reader.args(["-q", "-U", "postgres", "-h"]).arg(server.folder());
    reader.args(["-c", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bench.object; SELECT pg_sleep(600)", "postgres"]).stdout(Stdio::null());
    let mut reader = reader.spawn().expect("psql");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = row("howdah on Postgres, one reader open", swap, time, clients).await;
    let _ = reader.kill();
    let _ = reader.wait();
    ratio("on Postgres, of etcd (goal at 64 clients: 4)", &alone, &peer);
    ratio("with one reader open, of without (goal: 0.8)", &beside, &alone);
    across(&server, &tasks).await;
    tasks.cancel();
}

/// How long after its acknowledgement a write on one server reaches a watcher of another.
async fn across(server: &database::Server, tasks: &Tasks) {
    let open = || async {
        let engine = Postgres::open(server.url("across").parse().expect("an address"), tasks).await.expect("Postgres");
        Store::open(engine, Arc::new(|_, _| Header::default()), tasks).await.expect("a store")
    };
    let (writer, reader) = (open().await, open().await);
    let mut watcher = reader.watch(Scope::resource("configmaps"), reader.revision()).expect("a watch");
    let mut latencies = Vec::new();
    let mut ticks = tokio::time::interval(WRITE_EVERY);
    for at in 0..WRITES_ACROSS {
        ticks.tick().await;
        let name = format!("o{at}");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"fill": "x".repeat(2000)}});
        let change = Change::Put(Draft::new(&object, Header::default()));
        let writes = vec![Write { key: Key::new("configmaps", "default", &name), expect: Expect::Absent, change }];
        let revision = writer.submit(Transaction { writes }).await.expect("written").revision;
        let acknowledged = Instant::now();
        while watcher.next().await.expect("events").last().is_some_and(|it| it.revision < revision) {}
        latencies.push(acknowledged.elapsed());
    }
    latencies.sort_unstable();
    let at = |part: usize| latencies[latencies.len() * part / 100].as_secs_f64() * 1000.0;
    println!("From an acknowledgement to a watcher of another server, at {} writes/s: p50 {:.2} ms, p99 {:.2} ms", 1000 / WRITE_EVERY.as_millis(), at(50), at(99));
}

fn ratio(what: &str, own: &[f64], others: &[f64]) {
    let cells: Vec<String> = own.iter().zip(others).map(|(own, other)| format!("{:.2}", own / other)).collect();
    println!("| {what} | {} |", cells.join(" | "));
}

/// Returns the writes per second at each number of clients.
async fn row(name: &str, swap: Swap, time: Duration, clients: &[usize]) -> Vec<f64> {
    static ROUND: AtomicU64 = AtomicU64::new(0);
    let (mut cells, mut rates) = (Vec::new(), Vec::new());
    for count in clients {
        let (mut latencies, took) = drive(&swap, time, *count, ROUND.fetch_add(1, Ordering::Relaxed)).await;
        latencies.sort_unstable();
        let rate = latencies.len() as f64 / took.as_secs_f64();
        let at = |part: usize| latencies[(latencies.len() * part / 100).min(latencies.len() - 1)].as_secs_f64() * 1000.0;
        cells.push(format!("{rate:.0} ({:.1}, {:.1})", at(50), at(99)));
        rates.push(rate);
    }
    println!("| {name} | {} |", cells.join(" | "));
    rates
}

/// `count` clients, each as fast as it can.
async fn drive(swap: &Swap, time: Duration, count: usize, round: u64) -> (Vec<Duration>, Duration) {
    let began = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..count as u64 {
        let swap = swap.clone();
        clients.spawn(async move {
            let (mut revisions, mut latencies) = (vec![0; KEYS as usize], Vec::new());
            while began.elapsed() < time {
                let key = latencies.len() as u64 % KEYS;
                let sent = Instant::now();
                let revision = &mut revisions[key as usize];
                *revision = swap(round << 32 | client << 8 | key, *revision).await;
                latencies.push(sent.elapsed());
            }
            latencies
        });
    }
    (clients.join_all().await.concat(), began.elapsed())
}

/// The whole store: group commit, fold, events.
async fn store(engine: Arc<dyn Engine>, tasks: &Tasks) -> Swap {
    let store = Store::open(engine, Arc::new(|_, _| Header::default()), tasks).await.expect("a store");
    let pods = Pods::new();
    Arc::new(move |key, at| {
        let expect = if at == 0 { Expect::Absent } else { Expect::At(at) };
        let draft = Draft { head: Bytes::from_static(HEAD.as_bytes()), tail: pods.tail(key, at).into(), header: Header::default() };
        let write = Write { key: Key::new("pods", "default", &format!("o{key}")), expect, change: Change::Put(draft) };
        let store = store.clone();
        Box::pin(async move { store.submit(Transaction { writes: vec![write] }).await.expect("written").objects[0].as_ref().expect("an object").revision })
    })
}

/// Pods as a Deployment makes them, each with names, hashes, addresses and times of its own: 2 KB of JSON.
struct Pods(Vec<String>);

const HEAD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"#;
const PODS: u64 = 512;

impl Pods {
    fn new() -> Self {
        let mut state = 88172645463325252u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let tail = |_| {
            let mut hex = |digits: usize| format!("{:016x}{:016x}{:016x}{:016x}", next(), next(), next(), next())[..digits].to_owned();
            let (own, owner, image, container) = (hex(32), hex(32), hex(64), hex(64));
            let (name, volume) = (format!("web-7c9d8b6f5-{}", hex(5)), format!("kube-api-access-{}", hex(5)));
            let (address, node) = (format!("10.{}.{}.{}", next() as u8, next() as u8, next() as u8), format!("node-{}", next() % 5000));
            let mut time = || format!("2026-01-{:02}T{:02}:{:02}:{:02}Z", 1 + next() % 28, next() % 24, next() % 60, next() % 60);
            let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
                .map(|it| json!({"type": it, "status": "True", "lastProbeTime": null, "lastTransitionTime": time()}));
            let mut metadata = json!({
                "name": name, "generateName": "web-7c9d8b6f5-", "namespace": "default", "uid": own, "creationTimestamp": time(),
                "labels": {"app": "web", "pod-template-hash": "7c9d8b6f5"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9d8b6f5", "uid": owner, "controller": true}]
            })
            .to_string();
            let spec = json!({
                "volumes": [{"name": volume, "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token"}}]}}],
                "containers": [{"name": "web", "image": "registry.example.com/team/web:v1.4.2", "imagePullPolicy": "IfNotPresent",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}], "terminationMessagePath": "/dev/termination-log",
                    "resources": {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "serviceAccountName": "default", "nodeName": node,
                "schedulerName": "default-scheduler", "priority": 0, "terminationGracePeriodSeconds": 30, "enableServiceLinks": true
            });
            let status = json!({
                "phase": "Running", "podIP": address, "hostIP": "10.0.3.4", "qosClass": "Burstable", "conditions": conditions,
                "containerStatuses": [{"name": "web", "ready": true, "restartCount": 0, "containerID": format!("howdah://{container}"),
                    "imageID": format!("registry.example.com/team/web@sha256:{image}")}]
            });
            metadata.remove(0);
            format!(",{metadata},\"spec\":{spec},\"status\":{status}}}")
        };
        Self((0..PODS).map(tail).collect())
    }

    /// What follows the pod's resourceVersion; every write changes an annotation.
    fn tail(&self, key: u64, at: u64) -> String {
        format!(",\"annotations\":{{\"at\":\"{at:012}\"}}{}", self.0[(key % PODS) as usize])
    }

    /// The whole pod.
    fn text(&self, key: u64, at: u64) -> String {
        format!("{HEAD}\"resourceVersion\":\"{at}\"{}", self.tail(key, at))
    }
}

/// What a server without group commit does: a log with a revision, and a row of the newest state, in one transaction.
async fn per_write(server: &database::Server) -> Swap {
    let sql = "CREATE SCHEMA one; CREATE TABLE one.log (rev bigint PRIMARY KEY, key text, val text);
        CREATE TABLE one.obj (key text PRIMARY KEY, rev bigint, val text); CREATE SEQUENCE one.rev;
        CREATE FUNCTION one.put(k text, at bigint, v text) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE r bigint; BEGIN
          PERFORM pg_advisory_xact_lock(42); r := nextval('one.rev');
          IF at = 0 THEN INSERT INTO one.obj VALUES (k, r, v); ELSE UPDATE one.obj SET rev = r, val = v WHERE key = k AND rev = at; END IF;
          INSERT INTO one.log VALUES (r, k, v); RETURN r; END $$";
    server.psql(sql).expect("tables");
    let url = format!("postgres:///postgres?host={}&user=postgres", server.folder().display());
    let pool: PgPool = PgPoolOptions::new().max_connections(32).acquire_timeout(Duration::from_secs(60)).connect(&url).await.expect("a pool");
    let pods = Pods::new();
    Arc::new(move |key, at| {
        let (pool, value) = (pool.clone(), pods.text(key, at));
        Box::pin(async move {
            let query = sqlx::query_scalar::<_, i64>("SELECT one.put($1, $2, $3)").bind(format!("o{key}")).bind(at as i64).bind(value);
            query.fetch_one(&pool).await.expect("written") as u64
        })
    })
}

async fn etcd_swap(port: u16) -> Swap {
    let mut connections = Vec::new();
    for _ in 0..8 {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("etcd");
        stream.set_nodelay(true).expect("a socket");
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        connections.push(sender);
    }
    let pods = Pods::new();
    Arc::new(move |key, at| {
        let connection = connections[(key >> 8) as usize % connections.len()].clone();
        let body = transaction(format!("/registry/o{key}").as_bytes(), at, pods.text(key, at).as_bytes());
        Box::pin(async move { call(connection, port, body).await })
    })
}

/// `etcdserverpb.KV/Txn`: the header's revision of the answer.
async fn call(mut connection: SendRequest<Full<Bytes>>, port: u16, body: Bytes) -> u64 {
    let request = http::Request::post(format!("http://127.0.0.1:{port}/etcdserverpb.KV/Txn")).header("content-type", "application/grpc").header("te", "trailers");
    connection.ready().await.expect("etcd");
    let response = connection.send_request(request.body(Full::new(body)).expect("a request")).await.expect("an answer");
    let bytes = response.into_body().collect().await.expect("an answer").to_bytes();
    // Frame, then TxnResponse { header = 1 { cluster 1, member 2, revision 3 }, succeeded = 2 }.
    let message = bytes.get(5..).unwrap_or_default();
    let (header, rest) = message[2..].split_at(usize::from(message[1]));
    assert!(rest.starts_with(&[0x10, 1]), "etcd refused a write");
    field(header, 3)
}

fn field(mut bytes: &[u8], wanted: u64) -> u64 {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = varint(&mut bytes);
        if tag >> 3 == wanted {
            return value;
        }
    }
    0
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    while let Some((first, rest)) = bytes.split_first() {
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        shift += 7;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

/// TxnRequest { compare { result EQUAL, target MOD, key, mod_revision }, success { put { key, value } } }, in a gRPC frame.
fn transaction(key: &[u8], at: u64, value: &[u8]) -> Bytes {
    let mut compare = BytesMut::new();
    compare.put_slice(&[0x10, 2]);
    put_bytes(&mut compare, 3, key);
    compare.put_u8(6 << 3);
    put_varint(&mut compare, at);
    let mut put = BytesMut::new();
    put_bytes(&mut put, 1, key);
    put_bytes(&mut put, 2, value);
    let mut operation = BytesMut::new();
    put_bytes(&mut operation, 2, &put);
    let mut request = BytesMut::new();
    put_bytes(&mut request, 1, &compare);
    put_bytes(&mut request, 2, &operation);
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(request.len() as u32);
    frame.put_slice(&request);
    frame.freeze()
}

fn put_bytes(out: &mut BytesMut, field: u8, bytes: &[u8]) {
    out.put_u8(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}
