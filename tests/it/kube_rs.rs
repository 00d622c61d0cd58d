//! kube-rs as a foreign client: what an operator written with it does, against the real program.

use std::{fmt::Debug, future::Future, path::Path, sync::Arc, time::Duration};

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{ConfigMap, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, AttachParams, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams},
    core::{GroupVersionKind, Object},
    discovery,
    runtime::{
        WatchStreamExt,
        controller::Action,
        finalizer,
        reflector::{self, reflector},
        wait::{await_condition, conditions},
        watcher,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    cluster::Cluster,
    pods::is_root,
    requests::client,
};

const WITHIN: Duration = Duration::from_secs(60);
const IMAGE: &str = "busybox:1.37";

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let tried = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WITHIN, tried).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn parse<T: DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("an object of this kind")
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
struct KettleSpec {
    litres: u32,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
struct KettleStatus {
    boils: bool,
}

type Kettle = Object<KettleSpec, KettleStatus>;

async fn define_kettles(client: &Client) -> ApiResource {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["litres"], "properties": {"litres": {"type": "integer", "minimum": 1}, "colour": {"type": "string"}}},
        "status": {"type": "object", "properties": {"boils": {"type": "boolean"}}}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "kettles.kitchen.example.com"},
        "spec": {"group": "kitchen.example.com", "scope": "Namespaced", "names": {"kind": "Kettle", "plural": "kettles"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}]}});
    let name = "kettles.kitchen.example.com";
    definitions.patch(name, &PatchParams::apply("test"), &Patch::Apply(definition)).await.expect("the definition is applied");
    await_condition(definitions, name, conditions::is_crd_established()).await.expect("the definition is established");
    let gvk = GroupVersionKind::gvk("kitchen.example.com", "v1", "Kettle");
    let (resource, capabilities) = discovery::pinned_kind(client, &gvk).await.expect("the kind is discovered");
    assert_eq!((resource.plural.as_str(), capabilities.scope), ("kettles", discovery::Scope::Namespaced));
    resource
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_kind_by_typed_and_dynamic_clients() {
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let client = client(&cluster).await;
    let resource = define_kettles(&client).await;
    let kettles: Api<Kettle> = Api::default_namespaced_with(client.clone(), &resource);
    let dynamic: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);

    let made = kettles.create(&PostParams::default(), &Kettle::new("blue", &resource, KettleSpec { litres: 2 })).await.expect("created");
    assert_eq!((made.spec.litres, made.metadata.generation), (2, Some(1)));
    let error = kettles.create(&PostParams::default(), &Kettle::new("red", &resource, KettleSpec { litres: 0 })).await.expect_err("too small");
    let told = "Kettle.kitchen.example.com \"red\" is invalid: spec.litres: Invalid value: 0: spec.litres in body should be greater than or equal to 1";
    assert!(matches!(&error, kube::Error::Api(it) if it.code == 422 && it.message == told), "{error:?}");

    let status = json!({"status": {"boils": true}});
    let boiling = kettles.patch_status("blue", &PatchParams::default(), &Patch::Merge(&status)).await.expect("the status is patched");
    assert_eq!((boiling.status, boiling.metadata.generation), (Some(KettleStatus { boils: true }), Some(1)));
    let stale = kettles.replace("blue", &PostParams::default(), &made).await.expect_err("stale");
    assert!(matches!(&stale, kube::Error::Api(it) if it.code == 409 && it.reason == "Conflict"), "{stale:?}");

    // Server-side apply: each manager owns what it says; another's field is a conflict, unless it is forced.
    let painted = |colour: &str| json!({"apiVersion": "kitchen.example.com/v1", "kind": "Kettle", "metadata": {"name": "blue"}, "spec": {"litres": 2, "colour": colour}});
    let applied = dynamic.patch("blue", &PatchParams::apply("painter"), &Patch::Apply(painted("blue"))).await.expect("applied");
    assert_eq!(applied.data["spec"], json!({"litres": 2, "colour": "blue"}));
    let conflict = dynamic.patch("blue", &PatchParams::apply("vandal"), &Patch::Apply(painted("pink"))).await.expect_err("a conflict");
    let told = "Apply failed with 1 conflict: conflict with \"painter\": .spec.colour";
    assert!(matches!(&conflict, kube::Error::Api(it) if it.code == 409 && it.message == told), "{conflict:?}");
    let forced = dynamic.patch("blue", &PatchParams::apply("vandal").force(), &Patch::Apply(painted("pink"))).await.expect("forced");
    assert_eq!(forced.data["spec"]["colour"], "pink");

    let listed = kettles.list(&ListParams::default().fields("metadata.name=blue")).await.expect("a list");
    assert_eq!(listed.items.len(), 1);
    finalizers_hold(&dynamic).await;
}

/// An operator's clean-up comes before an object goes.
async fn finalizers_hold(kettles: &Api<DynamicObject>) {
    const NAME: &str = "kitchen.example.com/cool-down";
    let reconcile = async |expected: &str| {
        let kettle = Arc::new(kettles.get("blue").await.expect("it is there"));
        let mut seen = "";
        let done = finalizer(kettles, NAME, kettle, |event| {
            seen = match event {
                finalizer::Event::Apply(_) => "apply",
                finalizer::Event::Cleanup(_) => "cleanup",
            };
            std::future::ready(Ok::<_, std::io::Error>(Action::await_change()))
        });
        done.await.expect("reconciled");
        assert_eq!(seen, expected);
    };
    reconcile("").await;
    assert_eq!(kettles.get("blue").await.expect("it is there").finalizers(), [NAME]);
    reconcile("apply").await;
    let deleted = kettles.delete("blue", &DeleteParams::default()).await.expect("its deletion begins");
    assert!(deleted.left().is_some_and(|it| it.metadata.deletion_timestamp.is_some()), "it waits for its finalizer");
    reconcile("cleanup").await;
    assert!(kettles.get_opt("blue").await.expect("an answer").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_is_right_again_after_the_server_was_killed() {
    let mut cluster = Cluster::start(&["--node", "none"]);
    let client = client(&cluster).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map = |name: &str, at: &str| parse::<ConfigMap>(json!({"metadata": {"name": name, "labels": {"app": "seen"}}, "data": {"at": at}}));
    for name in ["kept", "changed", "deleted"] {
        maps.create(&PostParams::default(), &map(name, "1")).await.expect("created");
    }

    let (store, writer) = reflector::store();
    // Streaming lists: the first state comes over the watch, and ends with a bookmark.
    let watched = watcher(maps.clone(), watcher::Config::default().labels("app=seen").streaming_lists());
    let events = reflector(writer, watched).default_backoff().touched_objects();
    let following = tokio::spawn(events.for_each(|_| std::future::ready(())));
    tokio::time::timeout(WITHIN, store.wait_until_ready()).await.expect("in time").expect("the store is filled");
    assert_eq!(store.len(), 3);

    let patch = Patch::Merge(json!({"data": {"at": "2"}}));
    maps.patch("changed", &PatchParams::default(), &patch).await.expect("patched");
    tokio::task::block_in_place(|| cluster.crash_and_restart());
    maps.delete("deleted", &DeleteParams::default()).await.expect("deleted");
    maps.create(&PostParams::default(), &map("new", "3")).await.expect("created");
    eventually("the store is right", || {
        let mut now: Vec<String> = store.state().iter().map(|it| format!("{}={}", it.name_any(), it.data.as_ref().expect("data")["at"])).collect();
        now.sort();
        std::future::ready((now == ["changed=2", "kept=1", "new=3"]).then_some(()))
    })
    .await;
    following.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_one_leader_among_many_candidates() {
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let leases: Api<Lease> = Api::default_namespaced(client(&cluster).await);
    let spec = |holder: &str, transitions| LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(1),
        lease_transitions: Some(transitions),
        renew_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
        ..LeaseSpec::default()
    };
    let mut free = leases.create(&PostParams::default(), &Lease { metadata: kube::api::ObjectMeta { name: Some("boss".into()), ..Default::default() }, spec: Some(spec("", 0)) }).await.expect("created");
    // Every candidate has read the same lease; the resourceVersion lets one take it.
    for round in 1..=3 {
        let tries = (0..8).map(|candidate| {
            let mine = Lease { spec: Some(spec(&format!("candidate-{candidate}"), round)), ..free.clone() };
            let leases = leases.clone();
            async move { leases.replace("boss", &PostParams::default(), &mine).await }
        });
        let (won, lost): (Vec<_>, Vec<_>) = futures::future::join_all(tries).await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 7));
        assert!(lost.iter().all(|it| matches!(it, Err(kube::Error::Api(it)) if it.code == 409)), "{lost:?}");
        free = leases.get("boss").await.expect("it is there");
        assert_eq!(free.spec, won.into_iter().flatten().next().expect("a winner").spec);
    }
}

/// An image of the machine's static busybox; `None` where there is none.
fn busybox_image(folder: &Path) -> Option<std::path::PathBuf> {
    use sha2::Digest;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|it| std::fs::read(it).ok())?;
    let file = |name: &str, data: &[u8], tar: &mut tar::Builder<Vec<u8>>| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, name, data).expect("an archive in memory");
    };
    let mut layer = tar::Builder::new(Vec::new());
    file("bin/busybox", &busybox, &mut layer);
    for applet in ["sh", "cat", "echo", "sleep", "seq", "head", "tr", "wc", "httpd", "mkdir"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("an archive in memory");
    }
    let layer = layer.into_inner().expect("a layer");
    let digest: String = sha2::Sha256::digest(&layer).iter().map(|it| format!("{it:02x}")).collect();
    let config = json!({"os": "linux", "config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    let mut image = tar::Builder::new(Vec::new());
    file("config.json", config.to_string().as_bytes(), &mut image);
    file("layer.tar", &layer, &mut image);
    file("manifest.json", json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).to_string().as_bytes(), &mut image);
    let path = folder.join("busybox.tar");
    std::fs::write(&path, image.into_inner().expect("an image")).expect("written");
    Some(path)
}

async fn read(mut stream: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut text = String::new();
    tokio::time::timeout(WITHIN, stream.read_to_string(&mut text)).await.expect("in time").expect("text");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_reach_a_pod() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(image) = is_root().then(|| busybox_image(folder.path())).flatten() else {
        return eprintln!("SKIPPED: pods need root and a static busybox");
    };
    let cluster = Cluster::start(&["--store", "memory"]);
    cluster.import(&image);
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster).await);
    let script = "mkdir -p /www; echo hello > /www/index.html; httpd -p 8080 -h /www; for it in 1 2 3; do echo line $it; sleep 0.1; done; while read it; do echo heard $it; done";
    let pod = json!({"metadata": {"name": "shell"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "main", "image": IMAGE, "command": ["sh", "-c", script], "stdin": true}]}});
    eventually("the pod is taken", || async { pods.create(&PostParams::default(), &parse(pod.clone())).await.ok() }).await;
    let running = await_condition(pods.clone(), "shell", conditions::is_pod_running());
    tokio::time::timeout(WITHIN, running).await.expect("in time").expect("the pod runs");

    exec(&pods).await;
    follow_and_attach(&pods).await;
    forward(&pods).await;
}

async fn exec(pods: &Api<Pod>) {
    let told = async |script: &str| {
        let mut process = pods.exec("shell", ["sh", "-c", script], &AttachParams::default()).await.expect("exec");
        let (out, err, status) = (process.stdout().expect("stdout"), process.stderr().expect("stderr"), process.take_status().expect("a status"));
        let (out, err) = tokio::join!(read(out), read(err));
        let status = status.await.expect("a status");
        (out, err, status.status.unwrap_or_default(), status.message.unwrap_or_default())
    };
    let text = |it: &str| it.to_owned();
    assert_eq!(told("echo out; echo err >&2").await, (text("out\n"), text("err\n"), text("Success"), text("")));
    let failed = "command terminated with non-zero exit code: command terminated with exit code 3";
    assert_eq!(told("exit 3").await, (text(""), text(""), text("Failure"), text(failed)));
    assert_eq!(told("head -c 1000000 /dev/zero | tr '\\0' x").await.0.len(), 1_000_000);

    let mut counting = pods.exec("shell", ["wc", "-c"], &AttachParams::default().stdin(true)).await.expect("exec");
    let (mut input, output) = (counting.stdin().expect("stdin"), counting.stdout().expect("stdout"));
    input.write_all(&vec![b'x'; 200_000]).await.expect("it reads");
    input.shutdown().await.expect("its input ends");
    drop(input);
    assert_eq!(read(output).await.trim(), "200000");
}

async fn follow_and_attach(pods: &Api<Pod>) {
    let log = pods.log_stream("shell", &LogParams { follow: true, ..LogParams::default() }).await.expect("a log");
    let mut lines = log.lines();
    for expected in ["line 1", "line 2", "line 3"] {
        let line = tokio::time::timeout(WITHIN, lines.try_next()).await.expect("in time").expect("a line");
        assert_eq!(line.as_deref(), Some(expected));
    }
    let mut attached = pods.attach("shell", &AttachParams::default().stdin(true).stderr(false)).await.expect("attached");
    let mut input = attached.stdin().expect("stdin");
    input.write_all(b"a word\n").await.expect("it listens");
    let mut heard = [0; "heard a word\n".len()];
    let mut output = attached.stdout().expect("stdout");
    tokio::time::timeout(WITHIN, output.read_exact(&mut heard)).await.expect("in time").expect("an answer");
    assert_eq!(&heard, b"heard a word\n");
    let line = tokio::time::timeout(WITHIN, lines.try_next()).await.expect("in time").expect("a line");
    assert_eq!(line.as_deref(), Some("heard a word"), "what is attached to is in the log too");
}

async fn forward(pods: &Api<Pod>) {
    let mut ports = pods.portforward("shell", &[8080, 8081]).await.expect("forwarded");
    let (mut served, refused) = (ports.take_stream(8080).expect("a stream"), ports.take_error(8081).expect("an error to come"));
    served.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("it listens");
    let mut answer = vec![0; 4096];
    let mut length = 0;
    while !String::from_utf8_lossy(&answer[..length]).ends_with("hello\n") {
        length += match tokio::time::timeout(WITHIN, served.read(&mut answer[length..])).await.expect("in time").expect("an answer") {
            0 => panic!("it ends after {:?}", String::from_utf8_lossy(&answer[..length])),
            count => count,
        };
    }
    let why = tokio::time::timeout(WITHIN, refused).await.expect("in time").expect("nobody listens there");
    assert!(why.contains("8081") && why.contains("Connection refused"), "{why}");
}
