//! Two machines in one: a second node in a network namespace of its own, made by conformance/second-node.

use std::{path::Path, process::Command};

use howdah::meta::{Meta, Value};

use crate::cluster::{Cluster, has_kubectl, kubectl};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/second-node");

/// The second node; it goes with the value, and leaves nothing.
struct Second<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Second<'a> {
    fn join(cluster: &'a Cluster, link: &str) -> Self {
        let folder = cluster.folder().join("second");
        let mut command = Command::new(SCRIPT);
        command.args(["start", env!("CARGO_BIN_EXE_howdah")]).arg(cluster.kubeconfig()).arg(&folder).env("KUBECTL", kubectl()).env("LINK", link);
        let output = command.output().expect("the script");
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let joined = Self { cluster, name };
        assert!(output.status.success(), "{} {}", joined.name, String::from_utf8_lossy(&output.stderr));
        joined
    }

    /// The namespaces' files of a pod.
    fn network_of(&self, pod: &Value) -> String {
        let data = if pod.text_at(&["spec", "nodeName"]) == self.name { "second/data" } else { "data" };
        self.cluster.folder().join(data).join("node/pods").join(pod.uid()).join("net").display().to_string()
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        let stopped = Command::new(SCRIPT).arg("stop").arg(self.cluster.folder().join("second")).status();
        assert!(stopped.is_ok_and(|it| it.success()), "the second node stays");
        assert!(!Path::new("/run/netns").join(&self.name).exists() && !Path::new("/sys/class/net").join(&self.name).exists());
    }
}

/// What answers at an address, asked from within a network namespace.
fn ask(network: &str, address: &str, port: u16) -> String {
    let script = format!("exec 3<>/dev/tcp/{address}/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3");
    let output = Command::new("nsenter").arg(format!("--net={network}")).args(["timeout", "5", "bash", "-c", &script]).output().expect("nsenter");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim().to_owned()
}

/// The ways to a node that has just joined may come a moment after its pods.
fn ask_again(network: &str, address: &str, port: u16) -> String {
    (0..4).map(|_| ask(network, address, port)).find(|it| !it.is_empty()).unwrap_or_default()
}

fn pods_reach_each_other(link: &str) {
    if !has_kubectl() || !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: nodes need root");
        return;
    }
    let cluster = Cluster::start(&[]);
    let second = Second::join(&cluster, link);
    cluster.kubectl("create deployment web --image=howdah/hello:1 --replicas=4");
    cluster.kubectl("expose deployment web --port=80 --target-port=8080");
    cluster.eventually("get deployment web -o jsonpath={.status.readyReplicas}", "4");
    let pods: Value = serde_json::from_str(&cluster.kubectl("get pods -o json").1).expect("pods");
    let pods = pods.items_at(&["items"]);
    let on_second = pods.iter().filter(|it| it.text_at(&["spec", "nodeName"]) == second.name).count();
    assert!((1..4).contains(&on_second), "{on_second} of 4 pods are on the second node");
    for from in pods {
        for to in pods {
            let answer = ask_again(&second.network_of(from), to.text_at(&["status", "podIP"]), 8080);
            assert_eq!(answer, to.name(), "from {} to {}", from.name(), to.name());
        }
    }
    let (_, address) = cluster.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    let own = format!("/run/netns/{}", second.name);
    let places = pods.iter().map(|it| second.network_of(it)).chain(["/proc/self/ns/net".to_owned(), own]);
    for from in places {
        let answers: Vec<String> = (0..8).map(|_| ask(&from, address.trim(), 80)).collect();
        assert!(answers.iter().all(|it| pods.iter().any(|pod| pod.name() == it)), "{from}: {answers:?}");
    }
    let there = pods.iter().find(|it| it.text_at(&["spec", "nodeName"]) == second.name).expect("a pod on the second node").name();
    assert_eq!(cluster.kubectl(&format!("logs {there}")).1.trim(), format!("{there} listens on port 8080"));
    let (ran, output) = cluster.kubectl(&format!("exec {there} -- /howdah --version"));
    assert!(ran && output.starts_with("howdah "), "{output}");
    let node = format!("--as=system:node:{} --as-group=system:nodes", second.name);
    for (what, may) in [("get secrets/none", "no"), ("list pods", "yes"), ("create deployments", "no"), ("delete nodes", "no")] {
        let (_, answer) = cluster.kubectl(&format!("auth can-i {what} {node}"));
        assert!(answer.starts_with(may), "{what}: {answer}");
    }
    cluster.kubectl("delete deployment web --wait");
    cluster.eventually("get pods -o name", "");
}

#[test]
fn pods_of_two_nodes_on_one_link_reach_each_other() {
    pods_reach_each_other("direct");
}

#[test]
fn pods_of_two_nodes_behind_a_router_reach_each_other_by_vxlan() {
    pods_reach_each_other("routed");
}
