//! docker-compose.yml, without Docker: the same processes from its commands, on this machine and a Postgres of the test's own. Then the first
//! API server and the active controllers and scheduler are killed, and work goes on.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use howdah::meta::{Meta, Value};

use crate::{
    cluster::{has_kubectl, kubectl},
    postgres::{self, kept::Kept},
};

const WITHIN: Duration = Duration::from_secs(90);
/// Of the endpoints of a server that was killed, and of another's lead.
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// Of pods and Services: not those of the clusters of other tests, for on this machine they share one network.
pub const RANGES: [&str; 4] = ["--pod-cidr", "10.202.0.0/16", "--service-cidr", "10.203.0.0/16"];

/// The processes of the file, where their names and paths mean something on this machine.
struct Compose<'a> {
    file: Value,
    folder: &'a Path,
    store: String,
    ports: [u16; 2],
    running: Vec<(String, Kept)>,
}

impl Compose<'_> {
    fn start(&mut self, service: &str) {
        let own = self.file.at(&["services", service]).unwrap_or_else(|| panic!("service {service}"));
        let words = |field: &str| own.items_at(&[field]).iter().map(|it| self.here(service, it.as_str().expect("text"))).collect::<Vec<_>>();
        let (entrypoint, command) = (words("entrypoint"), words("command"));
        let program = if entrypoint.is_empty() { vec![env!("CARGO_BIN_EXE_howdah").to_owned()] } else { entrypoint };
        let ranges = RANGES.iter().filter(|_| service.starts_with("apiserver")).map(|it| (*it).to_owned());
        let all: Vec<String> = program.into_iter().chain(command).chain(ranges).collect();
        std::fs::create_dir_all(self.folder.join(service)).expect("a folder");
        let log = std::fs::File::create(self.folder.join(service).join("log")).expect("a log");
        let mut command = Kept::command("TERM", &all[0]);
        command.args(&all[1..]).stdout(Stdio::null()).stderr(log);
        self.running.push((service.to_owned(), Kept::start(command)));
    }

    fn here(&self, service: &str, text: &str) -> String {
        let own = if service.ends_with('2') { self.ports[1] } else { self.ports[0] };
        let data = self.folder.join(service).join("data");
        text.replace("postgres://postgres:howdah@postgres/postgres", &self.store)
            .replace("0.0.0.0:6443", &format!("127.0.0.1:{own}"))
            .replace("apiserver-1:6443", &format!("127.0.0.1:{}", self.ports[0]))
            .replace("apiserver-2:6443", &format!("127.0.0.1:{}", self.ports[1]))
            .replace("/kubeconfig", &self.folder.join("kubeconfig").display().to_string())
            .replace("$$", "$")
            .replace("howdah node", &format!("{} node", env!("CARGO_BIN_EXE_howdah")))
            .replace("howdah token", &format!("{} token", env!("CARGO_BIN_EXE_howdah")))
            .replace("/data", &data.display().to_string())
    }

    fn kill(&mut self, service: &str) {
        let at = self.running.iter().position(|it| it.0 == service).expect("it runs");
        self.running.remove(at).1.end("KILL");
    }

    /// kubectl against the second API server.
    fn kubectl(&self, arguments: &str) -> String {
        let mut command = Command::new(kubectl());
        command.args(arguments.split_whitespace()).env("KUBECONFIG", self.folder.join("kubeconfig/2/admin.conf")).env("KUBECACHEDIR", self.folder.join("cache"));
        let output = command.output().expect("kubectl");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim().to_owned()
    }

    fn eventually(&self, within: Duration, arguments: &str, is_it: impl Fn(&str) -> bool) -> Duration {
        let began = Instant::now();
        loop {
            let answer = self.kubectl(arguments);
            if is_it(&answer) {
                return began.elapsed();
            }
            assert!(began.elapsed() < within, "kubectl {arguments}: {answer}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn logs(&self) -> String {
        let read = |(service, _): &(String, Kept)| format!("== {service}\n{}", std::fs::read_to_string(self.folder.join(service).join("log")).unwrap_or_default());
        self.running.iter().map(read).collect()
    }
}

impl Drop for Compose<'_> {
    /// Ends the node first, which takes away what it has in the kernel.
    fn drop(&mut self) {
        while self.running.pop().is_some() {}
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port()
}

#[test]
fn the_compose_files_cluster_survives_the_death_of_its_parts() {
    if !has_kubectl() {
        return;
    }
    let Some(database) = postgres::Server::start(&[]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml")).expect("the file");
    let file: Value = serde_saphyr::from_str(&text).expect("YAML");
    let mut all = Compose { file, folder: folder.path(), store: database.url("compose"), ports: [free_port(), free_port()], running: Vec::new() };
    ["apiserver-1", "apiserver-2", "controllers-1", "scheduler-1"].iter().for_each(|it| all.start(it));
    let holder = |lease: &str| format!("get lease -n kube-system {lease} -o jsonpath={{.spec.holderIdentity}}");
    let leases = ["kube-controller-manager", "kube-scheduler"];
    for lease in leases {
        all.eventually(WITHIN, &holder(lease), |it| it.contains('_'));
    }
    let first = leases.map(|it| all.kubectl(&holder(it)));
    ["controllers-2", "scheduler-2"].iter().for_each(|it| all.start(it));
    let has_node = nix::unistd::geteuid().is_root();
    if has_node {
        all.start("node");
        all.eventually(WITHIN, "get node node-1 -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}", |it| it == "True");
    } else {
        eprintln!("SKIPPED: the node; containers need root");
    }
    let servers = "get endpointslices -l kubernetes.io/service-name=kubernetes -o jsonpath={.items[*].ports[*].port}";
    let [one, two] = all.ports.map(|it| it.to_string());
    all.eventually(WITHIN, servers, |it| it.contains(&one) && it.contains(&two));

    assert_eq!(all.kubectl("create deployment web --image=howdah/hello:1 --replicas=3"), "deployment.apps/web created");
    let count = if has_node { "readyReplicas" } else { "replicas" };
    let replicas = format!("get deployment web -o jsonpath={{.status.{count}}}");
    all.eventually(WITHIN, &replicas, |it| it == "3");

    ["apiserver-1", "controllers-1", "scheduler-1"].iter().for_each(|it| all.kill(it));
    all.kubectl("scale deployment web --replicas=5");
    // A busy machine may take its time; the promise itself is about leases.
    let took = all.eventually(GONE_WITHIN * 2, servers, |it| it == two);
    eprintln!("the killed server left the endpoints after {took:?}");
    for (lease, before) in leases.iter().zip(&first) {
        all.eventually(GONE_WITHIN * 2, &holder(lease), |it| it.contains('_') && it != before);
    }
    all.eventually(WITHIN, &replicas, |it| it == "5");
    assert_eq!(all.kubectl("get pods -o name").lines().count(), 5, "no child is made twice");
    all.kubectl("delete deployment web --wait");
    all.eventually(WITHIN, "get pods -o name", |it| it.contains("No resources") || it.is_empty());
}
