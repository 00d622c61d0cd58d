//! What people do all day with stock kubectl, on real containers.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::Digest;

use crate::{
    cluster::{Cluster, has_kubectl, kubectl},
    pods::is_root,
};

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// An image with a shell, `test/shell:1`: this machine's busybox, which has to be a static program.
fn import_shell(cluster: &Cluster) -> bool {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|it| Path::new(it).exists());
    let Some(busybox) = busybox else {
        eprintln!("SKIPPED: there is no busybox on this machine");
        return false;
    };
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_path_with_name(busybox, "bin/busybox").expect("a layer");
    for name in ["sh", "sleep", "cat", "tar", "wget", "nslookup", "hostname", "echo", "test", "false", "touch", "ls", "id", "date", "tty"] {
        layer.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("bin/{name}"), "busybox").expect("a link");
    }
    layer.append_data(&mut header(tar::EntryType::Directory, 0o1777, 0), "tmp", std::io::empty()).expect("a folder");
    let layer = layer.into_inner().expect("a layer");
    let digest: String = sha2::Sha256::digest(&layer).iter().map(|it| format!("{it:02x}")).collect();
    let config = format!(r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["sleep","100000"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#);
    let manifest = r#"[{"Config":"config.json","RepoTags":["test/shell:1"],"Layers":["layer.tar"]}]"#;
    let archive = cluster.folder().join("shell.tar");
    let mut whole = tar::Builder::new(fs::File::create(&archive).expect("an archive"));
    for (name, bytes) in [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("layer.tar", &layer)] {
        whole.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes.len() as u64), name, bytes).expect("an archive");
    }
    whole.into_inner().expect("an archive");
    let imported = Command::new(env!("CARGO_BIN_EXE_howdah")).args(["image", "import", "--data-dir"]).arg(cluster.folder().join("data")).arg(&archive).output().expect("import");
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    true
}

/// What a command prints in a shell with this cluster's kubectl.
fn shell(cluster: &Cluster, line: &str) -> String {
    let line = line.replace("kubectl ", &format!("{} ", kubectl()));
    let output = Command::new("sh").args(["-c", &line]).env("KUBECONFIG", cluster.kubeconfig()).current_dir(cluster.folder()).stdin(Stdio::null()).output().expect("sh");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).replace('\r', "")
}

/// The same on a terminal of its own.
fn on_terminal(command: &str) -> String {
    format!("script -qec \"{command}\" /dev/null")
}

/// What the server there says; asked again where a pod that is ending has cut the answer off.
fn get(host: &str, port: u16) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((host, port))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned())
    };
    (0..20).find_map(|_| ask().inspect_err(|_| std::thread::sleep(std::time::Duration::from_millis(200))).ok()).expect("an answer")
}

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: "test/shell:1", command: [sh, -c, "echo made > /share/made"], volumeMounts: [{name: share, mountPath: /share}]}
  containers:
  - name: shell
    image: test/shell:1
    volumeMounts: [{name: share, mountPath: /share}, {name: settings, mountPath: /settings}, {name: me, mountPath: /me}]
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
    resources: {requests: {cpu: 100m}, limits: {memory: 64Mi}}
  volumes:
  - {name: share, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: me, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: unready}
spec:
  containers: [{name: c, image: "test/shell:1", readinessProbe: {exec: {command: ["test", "-e", "/tmp/ready"]}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "test/shell:1", livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "test/shell:1", command: [sh, -c, "while true; do x=$x$x----------------; done"], resources: {limits: {memory: 16Mi}}}]
"#;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "howdah/hello:1"}]}
"#;

/// Lines of a shell, and what each must print somewhere in its output.
const STEPS: &[(&str, &str)] = &[
    ("kubectl exec shell -c shell -- hostname", "shell"),
    ("kubectl exec shell -c shell -- cat /share/made /settings/color /me/labels", "made\nblueapp=\"shell\""),
    ("kubectl exec shell -c shell -- sh -c 'echo $COLOR; exit 3'", "blue\ncommand terminated with exit code 3"),
    ("echo from here | kubectl exec -i shell -c shell -- cat", "from here"),
    ("TTY:kubectl exec -it shell -c shell -- sh -c 'test -t 0 && test -t 1 && echo on a terminal'", "on a terminal"),
    ("TTY:kubectl exec -it shell -c shell -- tty", "/dev/pts/0"),
    ("TTY:kubectl run named --image=test/shell:1 --restart=Never -it --rm -- sh -c 'sleep 1; tty'", "/dev/pts/0"),
    ("kubectl run plain --image=test/shell:1 --restart=Never --overrides='{\"spec\": {\"securityContext\": {\"runAsUser\": 1000}}}' -- sh -c 'echo mine > /dev/stdout' && kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/plain --timeout=60s && kubectl logs plain", "mine"),
    ("TTY:kubectl run one --image=test/shell:1 --restart=Never -it --rm -- sh -c 'sleep 1; echo hello from inside'", "hello from inside"),
    ("echo piped | kubectl run two --image=test/shell:1 --restart=Never -i --rm --quiet -- cat", "piped"),
    ("kubectl run talker --image=test/shell:1 -- sh -c 'while true; do date; sleep 1; done' && kubectl wait --for=condition=Ready pod/talker --timeout=60s && timeout 3 kubectl attach talker", "UTC"),
    ("echo content > file && kubectl cp -c shell file shell:tmp/file && kubectl exec shell -c shell -- cat /tmp/file && kubectl cp -c shell shell:tmp/file back && cat back", "content\ncontent"),
    ("kubectl wait --for=condition=Ready pod/unready --timeout=2s", "timed out waiting for the condition on pods/unready"),
    ("kubectl exec unready -- touch /tmp/ready && kubectl wait --for=condition=Ready pod/unready --timeout=60s", "pod/unready condition met"),
    ("for i in 1 2 3 4 5 6 7 8 9; do kubectl get pod sick -o jsonpath='restarts: {.status.containerStatuses[0].restartCount}' | grep '[1-9]' && break; sleep 1; done", "restarts: "),
    ("kubectl events --for pod/sick", "Container c failed liveness probe, will be restarted"),
    ("kubectl wait --for=jsonpath='{.status.containerStatuses[0].state.terminated.reason}'=OOMKilled pod/greedy --timeout=60s", "pod/greedy condition met"),
    ("kubectl events --for pod/shell", "Container started"),
    ("kubectl describe pod shell", "Successfully assigned default/shell"),
    ("kubectl debug shell --image=test/shell:1 --container=probe --profile=general -- sleep 1000 && kubectl wait --for=jsonpath='{.status.ephemeralContainerStatuses[0].state.running}' pod/shell --timeout=60s && kubectl exec shell -c probe -- hostname", "\nshell"),
    ("kubectl exec shell -c shell -- wget -q -O - http://web", "web-"),
    ("kubectl exec shell -c shell -- nslookup web.default.svc.cluster.local", "Name:\tweb.default.svc.cluster.local"),
    ("kubectl get pods -o name --kubeconfig=/dev/null --server=$(kubectl config view -o jsonpath='{.clusters[0].cluster.server}') --insecure-skip-tls-verify --token=$(kubectl exec shell -c shell -- cat /var/run/secrets/kubernetes.io/serviceaccount/token)", "Error from server (Forbidden): pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""),
    ("kubectl create rolebinding readers --clusterrole=view --serviceaccount=default:default", "rolebinding.rbac.authorization.k8s.io/readers created"),
    ("kubectl get pods -o name --kubeconfig=/dev/null --server=$(kubectl config view -o jsonpath='{.clusters[0].cluster.server}') --insecure-skip-tls-verify --token=$(kubectl exec shell -c shell -- cat /var/run/secrets/kubernetes.io/serviceaccount/token)", "pod/shell"),
    ("kubectl create token default | cut -c1-5", "eyJhb"),
    ("kubectl auth can-i list pods --as=system:serviceaccount:default:default", "yes"),
    ("kubectl explain pod.spec.containers.livenessProbe.exec", "<ExecAction>"),
    ("kubectl api-resources --api-group=apps -o name", "deployments.apps"),
    // A pod that its Job lets go is held by nothing any more.
    ("kubectl create job once --image=test/shell:1 -- sleep 1000 && kubectl wait --for=condition=Ready pod -l job-name=once --timeout=60s && kubectl label pod -l job-name=once batch.kubernetes.io/controller-uid=other --overwrite && for i in 1 2 3 4 5 6 7 8 9; do kubectl get pod -l batch.kubernetes.io/controller-uid=other -o jsonpath='held by: {.items[0].metadata.finalizers}.' | grep 'by: [.]' && break; sleep 1; done", "held by: ."),
    ("kubectl delete job once && kubectl delete pod --force -l batch.kubernetes.io/controller-uid=other --wait --timeout=30s", "force deleted"),
    ("kubectl get --raw /api/v1/$(kubectl get nodes -o name | sed s/node/nodes/)/proxy/metrics/resource | grep -v ' 0 ' | cut -d' ' -f1", "container_memory_working_set_bytes{container=\"shell\",namespace=\"default\",pod=\"shell\"}"),
    ("kubectl top pod", "error: Metrics API not available"),
    // Three-way merge: what others have set stays, what was taken out of the file goes.
    ("kubectl scale deployment web --replicas=3 && sed 's/replicas: 2//' web.yaml > web2.yaml && sed -i 's/{app: web}}$/{app: web, tier: front}}/;0,/tier: front/s/, tier: front//' web2.yaml && kubectl diff -f web2.yaml", "+        tier: front"),
    ("kubectl apply -f web2.yaml && kubectl rollout status deployment web --timeout=120s", "deployment \"web\" successfully rolled out"),
    ("kubectl rollout history deployment web", "2         <none>"),
    ("kubectl rollout undo deployment web && kubectl rollout status deployment web --timeout=120s && kubectl get deployment web -o jsonpath='{.spec.template.metadata.labels}'", "{\"app\":\"web\"}"),
    ("kubectl cordon $(kubectl get nodes -o name) && kubectl run late --image=test/shell:1 && kubectl wait --for=condition=PodScheduled=false pod/late --timeout=60s", "pod/late condition met"),
    ("kubectl drain $(kubectl get nodes -o name) --force --ignore-daemonsets --delete-emptydir-data --pod-selector=app=shell --timeout=90s", "drained"),
    ("kubectl uncordon $(kubectl get nodes -o name) && kubectl wait --for=condition=Ready pod/late --timeout=60s", "pod/late condition met"),
];

#[test]
fn what_people_do_all_day_works() {
    if !has_kubectl() || !is_root() {
        return;
    }
    let cluster = Cluster::start(&[]);
    if !import_shell(&cluster) {
        return;
    }
    fs::write(cluster.folder().join("web.yaml"), WEB).expect("a file");
    let (made, output) = cluster.kubectl("create configmap settings --from-literal=color=blue");
    assert!(made, "{output}");
    let (made, output) = cluster.kubectl_with("create -f -", PODS);
    assert!(made, "{output}");
    let made = shell(&cluster, "kubectl apply -f web.yaml && kubectl expose deployment web --type=NodePort --port=80 --target-port=8080 && kubectl rollout status deployment web --timeout=60s && kubectl wait --for=condition=Ready pod/shell --timeout=60s");
    assert!(made.contains("pod/shell condition met"), "{made}");
    reach_from_outside(&cluster);
    for (line, expected) in STEPS {
        let output = match line.strip_prefix("TTY:") {
            Some(line) => shell(&cluster, &on_terminal(line)),
            None => shell(&cluster, line),
        };
        assert!(output.contains(expected), "{line}\n  wanted: {expected}\n  got:    {output}");
    }
}

/// By a node's port, and by a forwarded one.
fn reach_from_outside(cluster: &Cluster) {
    let address = cluster.kubectl("get nodes -o jsonpath={.items[0].status.addresses[0].address}").1;
    let port = cluster.kubectl("get service web -o jsonpath={.spec.ports[0].nodePort}").1.trim().parse().expect("a port");
    assert!(get(address.trim(), port).starts_with("web-"));
    let mut forward = Command::new(kubectl())
        .args(["port-forward", "deployment/web", ":8080"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    // Held to the end: kubectl ends where nobody reads what it says.
    let mut said = BufReader::new(forward.stdout.take().expect("stdout")).lines();
    let line = said.next().expect("a line").expect("text");
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|it| it.split(' ').next()?.parse().ok()).expect("a port");
    assert!(get("127.0.0.1", port).starts_with("web-"));
    forward.kill().expect("kill");
    forward.wait().expect("wait");
}

/// The shims of a cluster, by their containers' folders.
fn shims(cluster: &Cluster) -> Vec<PathBuf> {
    let folder = cluster.folder().display().to_string();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let commands = entries.filter_map(|it| fs::read_to_string(it.path().join("cmdline")).ok()).filter(|it| it.contains("shim\0run\0") && it.contains(&folder));
    // The first process of a container is the shim's child until it has become the container's program.
    commands.filter_map(|it| it.trim_end_matches('\0').rsplit('\0').next().map(PathBuf::from)).collect()
}

#[test]
fn a_rollout_survives_kill_9_without_orphans_or_doubles() {
    if !has_kubectl() || !is_root() {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    fs::write(cluster.folder().join("web.yaml"), WEB.replace("replicas: 2", "replicas: 4")).expect("a file");
    let output = shell(&cluster, "kubectl apply -f web.yaml && kubectl rollout status deployment web --timeout=60s");
    assert!(output.contains("successfully rolled out"), "{output}");
    for round in 0..3 {
        let (set, output) = cluster.kubectl(&format!("set env deployment/web ROUND={round}"));
        assert!(set, "{output}");
        std::thread::sleep(std::time::Duration::from_millis(150 * round));
        cluster.crash_and_restart();
        assert_eq!(cluster.kubectl("get deployment web -o jsonpath={.spec.template.spec.containers[0].env[0].value}").1.trim(), round.to_string());
    }
    let output = shell(&cluster, "kubectl rollout status deployment web --timeout=120s");
    assert!(output.contains("successfully rolled out"), "{output}");
    cluster.eventually("get pods -o jsonpath={.items[*].spec.containers[0].env[0].value}", "2 2 2 2");
    let mut running = shims(&cluster);
    running.sort();
    running.dedup();
    assert_eq!(running.len(), 4, "{running:?}");
}
