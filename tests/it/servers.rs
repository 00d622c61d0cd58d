//! Several API servers on one Postgres, as a user runs them: a definition told by one is served by the other, a quota is answered with 507 until
//! somebody makes room by hand, and controllers and scheduler find a server that came after them.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use howdah::{
    base::{
        Tasks, clock,
        pki::{Authority, Identity},
    },
    client::{Informer, Watch},
    meta::{Meta, Value},
};
use http::StatusCode;
use k8s_openapi::api::core::v1::ConfigMap;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    compose::RANGES,
    postgres::{self, kept::Kept},
    requests::client_of,
};

const WITHIN: Duration = Duration::from_secs(90);
const DEFINITIONS: usize = 8;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A process of the program; it ends with the value.
struct Process {
    program: Kept,
    log: PathBuf,
}

impl Process {
    fn start(log: PathBuf, arguments: &[&str]) -> Self {
        let file = std::fs::File::create(&log).expect("a log");
        let mut command = Kept::command("KILL", env!("CARGO_BIN_EXE_howdah"));
        command.args(arguments).stdout(Stdio::null()).stderr(file);
        Self { program: Kept::start(command), log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.program.end("KILL");
        if std::thread::panicking() {
            eprintln!("== {}\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

struct Server {
    process: Process,
    kubeconfig: PathBuf,
    port: u16,
}

impl Server {
    fn start(folder: &Path, name: &str, store: &str, quota: &str) -> Self {
        let own = folder.join(name);
        std::fs::create_dir_all(&own).expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let (kubeconfig, bind) = (own.join("admin.conf"), format!("127.0.0.1:{port}"));
        let mut arguments = vec!["apiserver", "--store", store, "--store-quota", quota, "--bind", &bind];
        let (config, data) = (kubeconfig.display().to_string(), own.display().to_string());
        arguments.extend(["--kubeconfig", &config, "--data-dir", &data]);
        arguments.extend(RANGES);
        Self { process: Process::start(own.join("log"), &arguments), kubeconfig, port }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    async fn client(&self) -> kube::Client {
        let began = Instant::now();
        while !self.kubeconfig.exists() || tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            assert!(began.elapsed() < WITHIN, "the server does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let client = client_of(&self.kubeconfig).await;
        while text(&client, "/readyz").await != "ok" {
            assert!(began.elapsed() < WITHIN, "the server is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(get(&client, "/api/v1/namespaces/default").await.name(), "default", "what is ready has its first objects");
        client
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.process.program.pid().expect("it runs") as i32), signal).expect("a signal");
    }

    /// A role with its kubeconfig, which is told of this server alone.
    fn role(&self, role: &str, user: &str) -> Process {
        let kubeconfig = self.kubeconfig.with_file_name(format!("{user}.conf")).display().to_string();
        Process::start(self.kubeconfig.with_file_name(format!("{role}.log")), &[role, "--kubeconfig", &kubeconfig, "--server", &self.url()])
    }
}

/// What the program says to these arguments.
fn howdah(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_howdah")).args(arguments).envs(environment.iter().copied()).output().expect("howdah");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn ask(client: &kube::Client, method: &str, path: &str, body: Vec<u8>) -> (u16, bytes::Bytes) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let answer = client.send(request.body(kube::client::Body::from(body)).expect("a request")).await.expect("an answer");
    (answer.status().as_u16(), http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes())
}

async fn send(client: &kube::Client, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, bytes) = ask(client, method, path, if body.is_null() { Vec::new() } else { body.to_string().into_bytes() }).await;
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn text(client: &kube::Client, path: &str) -> String {
    String::from_utf8_lossy(&ask(client, "GET", path, Vec::new()).await.1).into_owned()
}

async fn get(client: &kube::Client, path: &str) -> Value {
    send(client, "GET", path, &Value::Null).await.1
}

async fn eventually(client: &kube::Client, path: &str, is_it: impl Fn(&Value) -> bool) {
    let began = Instant::now();
    loop {
        let answer = get(client, path).await;
        if is_it(&answer) {
            return;
        }
        assert!(began.elapsed() < WITHIN, "{path}: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_established(definition: &Value) -> bool {
    definition.items_at(&["status", "conditions"]).iter().any(|it| it.text("type") == "Established" && it.text("status") == "True")
}

/// Defines kettles in a group, and waits until that is established.
async fn define(client: &kube::Client, group: &str) {
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]);
    let spec = json!({"group": group, "scope": "Namespaced", "names": {"kind": "Kettle", "plural": "kettles"}, "versions": versions});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("kettles.{group}")}, "spec": spec});
    assert_eq!(send(client, "POST", CRDS, &definition).await.0, 201);
    eventually(client, &format!("{CRDS}/kettles.{group}"), is_established).await;
}

fn kettles(group: &str) -> String {
    format!("/apis/{group}/v1/namespaces/default/kettles")
}

/// What one server calls established another one serves and lists, at once.
async fn definitions(one: &kube::Client, two: &kube::Client) {
    for at in 0..DEFINITIONS {
        let group = format!("g{at}.example.com");
        define(one, &group).await;
        let kettle = json!({"apiVersion": format!("{group}/v1"), "kind": "Kettle", "metadata": {"name": "k"}});
        assert_eq!(send(two, "POST", &kettles(&group), &kettle).await.0, 201, "definition {at}");
        let groups = get(two, "/apis").await;
        assert!(groups.items_at(&["groups"]).iter().any(|it| it.text("name") == group), "{group} is not listed: {groups}");
    }
    assert_eq!(send(two, "GET", "/apis/none.example.com/v1/none", &Value::Null).await.0, 404);
}

/// A copy of the cluster while it serves, from Postgres into a SQLite file.
fn copies(server: &Server) {
    let (file, data) = (server.kubeconfig.with_file_name("copy"), server.kubeconfig.with_file_name("copied"));
    let [file, data, kubeconfig] = [&file, &data, &server.kubeconfig].map(|it| it.display().to_string());
    let said = howdah(&["backup", &file, "--kubeconfig", &kubeconfig], &[]);
    let count = said.split_whitespace().nth(1).unwrap_or_default();
    assert!(said.starts_with("Saved ") && count.parse::<usize>().is_ok_and(|it| it > 200), "{said}");
    let said = howdah(&["restore", &file, "--data-dir", &data], &[]);
    assert!(said.starts_with(&format!("Restored {count} objects")), "{said}");
    let sizes = howdah(&["store", "sizes", "--data-dir", &data], &[]);
    let objects = |line: &str| line.split_whitespace().next().and_then(|it| it.parse::<usize>().ok());
    assert_eq!(sizes.lines().filter_map(objects).sum::<usize>().to_string(), count, "{sizes}");
}

/// A server that was stopped for longer than the journal is kept starts over, and its watchers list again.
async fn lag(one: &kube::Client, two: &kube::Client, second: &Server, database: &postgres::Server) {
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"is": name}}});
    let tasks = Tasks::new();
    let mut options = Watch::default();
    options.config = options.config.labels("is=late");
    let informer: Informer<ConfigMap> = Informer::start("late", kube::Api::namespaced(two.clone(), "default"), options, &tasks);
    informer.synced().await;
    let page = get(two, &format!("{MAPS}?limit=1")).await;
    second.signal(Signal::SIGSTOP);
    // The last batch always stays in the journal; the one before it is missed.
    for name in ["early", "late"] {
        assert_eq!(send(one, "POST", MAPS, &map(name)).await.0, 201);
    }
    let head = "(SELECT max(last) FROM servers.journal)";
    while database.psql(&format!("SELECT rev >= {head} FROM servers.fold")).as_deref() != Some("t") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    database.psql(&format!("DELETE FROM servers.journal WHERE last < {head}")).expect("trimmed");
    second.signal(Signal::SIGCONT);
    assert_eq!(send(two, "GET", &format!("{MAPS}/late"), &Value::Null).await.0, 200);
    // A list that had begun goes on with what is there now, if the client wants that.
    let token = |it: &Value| it.text_at(&["metadata", "continue"]).to_owned();
    let (code, gone) = send(two, "GET", &format!("{MAPS}?continue={}", token(&page)), &Value::Null).await;
    assert_eq!((code, gone.text("reason")), (410, "Expired"));
    let (code, rest) = send(two, "GET", &format!("{MAPS}?continue={}", token(&gone)), &Value::Null).await;
    assert!(code == 200 && rest.items_at(&["items"]).iter().any(|it| it.name() == "late"), "{code}");
    let began = Instant::now();
    while informer.list().len() != 1 {
        assert!(began.elapsed() < WITHIN, "the informer does not list again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tasks.cancel();
}

/// The first server has room, the second has not, until objects are deleted by hand.
async fn quota(one: &kube::Client, two: &kube::Client, store: &str) {
    let map = |name: &str, bytes: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"fill": "x".repeat(bytes)}});
    for at in 0..4 {
        assert_eq!(send(one, "POST", MAPS, &map(&format!("large-{at}"), 900_000)).await.0, 201);
    }
    let (code, status) = send(two, "POST", MAPS, &map("more", 10)).await;
    assert_eq!((code, status.text("reason")), (StatusCode::INSUFFICIENT_STORAGE.as_u16(), "InsufficientStorage"), "{status}");
    assert!(status.text("message").contains("the store's quota of 2097152 bytes is exceeded; delete something"), "{status}");
    let (code, status) = send(two, "PUT", &format!("{MAPS}/large-3"), &map("large-3", 10)).await;
    assert_eq!(code, 200, "what becomes smaller is written: {status}");
    let by_hand = |arguments: &[&str]| howdah(&[&["store"], arguments, &["--store", store]].concat(), &[]);
    let bytes = |line: &str| line.strip_suffix(" configmaps").and_then(|it| it.split_whitespace().last()?.parse::<usize>().ok());
    let sizes = by_hand(&["sizes"]);
    assert!(sizes.lines().find_map(bytes).is_some_and(|it| it > 2_700_000), "{sizes}");
    assert_eq!(by_hand(&["delete", "configmaps", "large-0", "-n", "default"]).trim(), "Deleted 1 objects.");
    assert_eq!(by_hand(&["delete", "configmaps", "large-0", "-n", "default"]).trim(), "Deleted 0 objects.");
    assert!(by_hand(&["delete", "configmaps"]).contains("--all"), "all of a resource are deleted on purpose only");
    assert_eq!(by_hand(&["delete", "configmaps", "large-1", "-n", "default"]).trim(), "Deleted 1 objects.");
    assert_eq!(send(one, "GET", &format!("{MAPS}/large-0"), &Value::Null).await.0, 404);
    assert_eq!(send(two, "POST", MAPS, &map("more", 10)).await.0, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_one_store_are_one_cluster() {
    let Some(database) = postgres::Server::start(&[]) else { return };
    let (folder, store) = (tempfile::tempdir().expect("a folder"), database.url("servers"));
    let first = Server::start(folder.path(), "one", &store, "2Gi");
    let one = first.client().await;
    let _roles = [first.role("controllers", "controller-manager"), first.role("scheduler", "scheduler")];
    let second = Server::start(folder.path(), "two", &store, "2Mi");
    let two = second.client().await;
    definitions(&one, &two).await;
    quota(&one, &two, &store).await;

    copies(&first);
    lag(&one, &two, &second, &database).await;

    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes";
    let has_port = |list: &Value, port: u16| list.items_at(&["items"]).iter().any(|it| it.items_at(&["ports"]).iter().any(|it| it["port"] == port));
    eventually(&two, slices, |it| has_port(it, first.port) && has_port(it, second.port)).await;
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        let held = |it: &Value| it.text_at(&["spec", "holderIdentity"]).contains('_');
        eventually(&two, &format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{lease}"), held).await;
    }
    drop(first);
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "howdah/hello:1"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template});
    let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec});
    let (code, answer) = send(&two, "POST", "/apis/apps/v1/namespaces/default/deployments", &web).await;
    assert_eq!(code, 201, "{answer}");
    // The controllers have made them, and the scheduler has seen that there is no node.
    let unscheduled = |it: &Value| it.items_at(&["status", "conditions"]).iter().any(|it| it.text("type") == "PodScheduled" && it.text("status") == "False");
    eventually(&two, "/api/v1/namespaces/default/pods", |it| it.items_at(&["items"]).iter().filter(|it| unscheduled(it)).count() == 2).await;
}

/// A newer howdah takes away what this one needs: it writes nothing from then on, says why, and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_when_the_schema_is_contracted_under_it() {
    let Some(database) = postgres::Server::start(&[]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), "one", &database.url("old"), "2Gi");
    let client = server.client().await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    assert_eq!(send(&client, "POST", MAPS, &map("before")).await.0, 201);
    let migration = "INSERT INTO old._sqlx_migrations (version, description, success, checksum, execution_time) VALUES (1000, 'contract all', true, '', 0)";
    database.psql(migration).expect("migrated");
    let request = http::Request::post(MAPS).header("content-type", "application/json");
    // On a busy machine it may have ended before it can answer.
    if let Ok(answer) = client.send(request.body(map("after").to_string().into_bytes().into()).expect("a request")).await {
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let began = Instant::now();
    let mut readiness = String::from("ok");
    while let Ok(request) = http::Request::get("/readyz").body(kube::client::Body::empty())
        && let Ok(answer) = client.send(request).await
    {
        assert!(began.elapsed() < WITHIN, "the server goes on: {readiness}");
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.map(|it| it.to_bytes()).unwrap_or_default();
        readiness = String::from_utf8_lossy(&bytes).into_owned();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = std::fs::read_to_string(&server.process.log).expect("the log");
    assert!(log.contains("has taken away what this one") && log.contains("migration 1000"), "{log}");
    assert_eq!(database.psql("SELECT count(*) FROM old.object WHERE name = 'after'").as_deref(), Some("0"));
}

#[test]
fn a_postgres_is_reached_over_tls_with_a_password() {
    // An address of this process's own, for the port is Postgres's usual one.
    let [.., b, c] = std::process::id().to_be_bytes();
    let host = format!("127.88.{b}.{}", c.clamp(1, 254));
    let Some(server) = postgres::Server::start(&[&format!("listen_addresses={host}")]) else { return };
    let [own, other] = ["own", "other"].map(|it| Authority::named(it, clock::now()).expect("an authority"));
    let credential = |name: &str| own.issue(&Identity::api_server(&[name.to_owned()]), clock::now()).expect("a certificate");
    let serve = |name: &str| {
        let it = credential(name);
        let (certificate, key) = (server.keep("server.crt", &it.certificate), server.keep("server.key", &it.key));
        for (setting, value) in [("ssl_cert_file", certificate.display().to_string()), ("ssl_key_file", key.display().to_string()), ("ssl", "on".to_owned())] {
            server.psql(&format!("ALTER SYSTEM SET {setting} = '{value}'")).expect("set");
        }
        server.crash();
        server.resume();
    };
    server.psql("CREATE ROLE app LOGIN PASSWORD 's3cret'; CREATE SCHEMA app AUTHORIZATION app").expect("a role");
    server.keep("data/pg_hba.conf", "local all all trust\nhostssl all app 127.0.0.0/8 scram-sha-256\n");
    let [trusted, untrusted] = [("own.crt", &own), ("other.crt", &other)].map(|(name, it)| {
        let path = server.folder().join(name);
        std::fs::write(&path, it.certificate()).expect("a file");
        path.display().to_string()
    });
    let passwords = server.folder().join("passwords");
    std::fs::write(&passwords, format!("{host}:5432:postgres:app:s3cret\n")).expect("a file");
    std::fs::set_permissions(&passwords, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("rights");
    let passwords = passwords.display().to_string();
    let (good, by_file) = ([("PGPASSWORD", "s3cret")], [("PGPASSFILE", passwords.as_str())]);
    let address = |parameters: &str| format!("postgres://app@{host}/postgres?schema=app&{parameters}");
    let check = |parameters: &str, environment: &[(&str, &str)], expected: &str| {
        let said = howdah(&["store", "sizes", "--store", &address(parameters)], environment);
        assert!(said.contains(expected), "{parameters} {environment:?}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    };
    check("sslmode=require", &good, "server does not support TLS");
    serve(&host);
    let verified = format!("sslmode=verify-full&sslrootcert={trusted}");
    check(&verified, &good, "OBJECTS");
    check(&verified, &by_file, "OBJECTS");
    check(&verified, &[("PGPASSWORD", "wrong")], "password authentication failed for user \"app\"");
    check("sslmode=disable", &good, "no pg_hba.conf entry");
    check(&format!("sslmode=verify-full&sslrootcert={untrusted}"), &good, "invalid peer certificate: UnknownIssuer; sslrootcert=FILE in the address names");
    check("sslmode=verify-full", &good, "invalid peer certificate: UnknownIssuer");
    serve("db.example.com");
    check(&verified, &good, "invalid peer certificate: certificate not valid for name");
    check(&format!("sslmode=verify-ca&sslrootcert={trusted}"), &good, "OBJECTS");
}

/// The database goes back in time under a server that runs: no revision is given twice, and who watches lists again by himself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_in_time_recovery_is_seen_by_informers() {
    let archive = tempfile::Builder::new().prefix("howdah-wal-").tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(archive.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("rights");
    let settings = ["archive_mode=on".to_owned(), format!("archive_command=cp %p {}/%f", archive.path().display())];
    let Some(database) = postgres::Server::start(&settings.each_ref().map(String::as_str)) else { return };
    let (folder, backup) = (tempfile::tempdir().expect("a folder"), database.folder().join("backup"));
    let server = Server::start(folder.path(), "one", &database.url("back"), "2Gi");
    let client = server.client().await;
    let create = async |name: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"is": "ours"}}});
        let (code, answer) = send(&client, "POST", MAPS, &map).await;
        assert_eq!(code, 201, "{answer}");
        answer.resource_version().parse::<u64>().expect("a revision")
    };
    create("before").await;
    let copied = database.command("pg_basebackup").args(["-U", "postgres", "-c", "fast", "-h"]).arg(database.folder()).arg("-D").arg(&backup).status();
    assert!(copied.is_ok_and(|it| it.success()), "a base backup");
    create("kept").await;
    database.psql("SELECT pg_create_restore_point('then')").expect("a restore point");
    define(&client, "lost.example.com").await;
    let lost = create("lost").await;
    database.psql("SELECT pg_switch_wal()").expect("a new segment");

    let tasks = Tasks::new();
    let mut options = Watch::default();
    options.config = options.config.labels("is=ours");
    let informer: Informer<ConfigMap> = Informer::start("maps", kube::Api::namespaced(client.clone(), "default"), options, &tasks);
    let shows = async |wanted: &[&str]| {
        let began = Instant::now();
        loop {
            let mut names: Vec<String> = informer.list().iter().filter_map(|it| it.metadata.name.clone()).collect();
            names.sort();
            if names == wanted {
                return;
            }
            assert!(began.elapsed() < WITHIN, "the informer has {names:?} instead of {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    shows(&["before", "kept", "lost"]).await;
    let archived = || database.psql("SELECT last_archived_wal IS NOT NULL AND (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') = 0 FROM pg_stat_archiver");
    while archived().as_deref() != Some("t") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    database.crash();
    let up = async |value: &str| {
        let began = Instant::now();
        let line = format!("howdah_store_up{{storage_cluster_id=\"postgres\"}} {value}\n");
        while !text(&client, "/metrics").await.contains(&line) {
            assert!(began.elapsed() < WITHIN, "never: {line}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    up("0").await;
    assert!(text(&client, "/readyz").await.contains("[-]etcd failed"));
    tokio::task::block_in_place(|| database.recover(&backup, archive.path(), "then"));
    let after = create("after").await;
    up("1").await;
    assert!(after > lost + (1 << 31), "{after} after {lost}");
    shows(&["after", "before", "kept"]).await;
    for path in [format!("{MAPS}/lost"), kettles("lost.example.com")] {
        assert_eq!(send(&client, "GET", &path, &Value::Null).await.0, 404, "{path}");
    }
    tasks.cancel();
}
