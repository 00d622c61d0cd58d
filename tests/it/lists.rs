//! The cases of upstream's store and watch cache (apiserver `pkg/storage/testing/{store_tests,watcher_tests}.go`), as a client sees them: what lists
//! answer at which revision, page by page, and what watches tell. On a built-in kind and on a custom one.

use bytes::{Buf, Bytes};
use howdah::meta::{Meta, Value};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::json;

use crate::{cluster::Cluster, requests::client};

/// Cases begin with `= TITLE` and have namespaces of their own, `n` and `m`. Below it, a line a step:
///
/// `put n/a FIELD [LABEL]` makes or changes an object, `del n/a` deletes it; the revisions of these writes are `$1`, `$2` and so on.
/// `list n?QUERY => a.1 b.3 [PART]` lists a namespace; `a.3` is the object `a` as the third write left it, `$next` in a later query the token for more.
/// `get n/a?QUERY => a.3`, and `list … => CODE TEXT`, where the text is a part of the message.
/// `watch n?QUERY` begins a watch and ends the one before, `see ADDED a.1 DELETED a.2=x …` what it tells next, and nothing between. What leaves a
/// selection is told as it was before, which its field shows.
const CASES: &str = include_str!("lists.txt");

/// A kind to try the cases on, with a selectable field that may change.
struct Kind {
    path: &'static str,
    api_version: &'static str,
    name: &'static str,
    plural: &'static str,
    field: &'static str,
    selector: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind { path: "/api/v1", api_version: "v1", name: "Event", plural: "events", field: "reason", selector: "reason" },
    Kind { path: "/apis/lists.example.com/v1", api_version: "lists.example.com/v1", name: "Place", plural: "places", field: "place", selector: "place" },
];

struct Run<'a> {
    client: &'a Client,
    kind: &'a Kind,
    /// The namespaces are named by it.
    case: String,
    /// The revision of each write; of a deletion one that is not before it.
    writes: Vec<(String, Wrote)>,
    next: String,
    watch: Option<Watch>,
}

#[derive(PartialEq)]
enum Wrote {
    Put,
    Deletion,
}

/// A watch, and what has come and was not looked at.
struct Watch {
    body: Body,
    rest: Vec<u8>,
}

impl Watch {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|it| *it == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("an event");
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(30), self.body.frame()).await.expect("an event in time");
            let data = frame.expect("no end").expect("no error").into_data().unwrap_or_default();
            self.rest.extend_from_slice(data.chunk());
        }
    }
}

impl Run<'_> {
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let (status, body) = self.send(method, path, body).await;
        let bytes: Bytes = body.collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Body) {
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = Body::from(body.map(Value::to_string).unwrap_or_default().into_bytes());
        let response = self.client.send(request.body(body).expect("a request")).await.expect("an answer");
        (response.status().as_u16(), response.into_body())
    }

    fn namespace(&self, letter: &str) -> String {
        format!("{}-{}-{letter}", self.kind.plural, self.case)
    }

    /// `n/a?query` as a path; `*` is all namespaces.
    fn path(&self, place: &str) -> String {
        let (place, query) = place.split_once('?').unwrap_or((place, ""));
        let (letter, name) = place.split_once('/').unwrap_or((place, ""));
        let namespaces = if letter == "*" { String::new() } else { format!("/namespaces/{}", self.namespace(letter)) };
        let name = if name.is_empty() { String::new() } else { format!("/{name}") };
        let mut query = query.replace("FIELD", self.kind.selector).replace("$next", &self.next);
        for letter in ["n", "m"] {
            query = query.replace(&format!("<{letter}>"), &self.namespace(letter));
        }
        for (at, (revision, _)) in self.writes.iter().enumerate().rev() {
            query = query.replace(&format!("${}", at + 1), revision);
        }
        format!("{}{namespaces}/{}{name}?{query}", self.kind.path, self.kind.plural)
    }

    /// The number of the write at a revision.
    fn write_at(&self, revision: &str) -> Option<usize> {
        self.writes.iter().position(|it| it.0 == revision).map(|it| it + 1)
    }

    /// `a.3`: the object as the third write left it; `a` where it is deleted.
    fn shown(&self, object: &Value) -> String {
        match self.write_at(object.resource_version()) {
            Some(write) if self.writes[write - 1].1 == Wrote::Put => format!("{}.{write}", object.name()),
            _ => object.name().to_owned(),
        }
    }

    async fn put(&mut self, words: &[&str]) {
        let path = self.path(words[0]);
        let (letter, name) = words[0].split_once('/').expect("a namespace");
        let namespace = self.namespace(letter);
        let labels = words.get(2).map_or(json!({}), |it| json!({"is": it}));
        let mut object = json!({"apiVersion": self.kind.api_version, "kind": self.kind.name, self.kind.field: words[1],
            "metadata": {"name": name, "namespace": namespace, "labels": labels}});
        if self.kind.name == "Event" {
            object["involvedObject"] = json!({"kind": "Pod", "namespace": namespace, "name": "p"});
        }
        let (code, answer) = match self.ask("GET", &path, None).await {
            (200, current) => {
                object["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
                self.ask("PUT", &path, Some(&object)).await
            }
            _ => self.ask("POST", &self.path(letter), Some(&object)).await,
        };
        assert!(code < 300, "{path}: {answer}");
        self.writes.push((answer.resource_version().to_owned(), Wrote::Put));
    }

    async fn delete(&mut self, place: &str) {
        let (code, answer) = self.ask("DELETE", &self.path(place), None).await;
        assert_eq!(code, 200, "{answer}");
        // The answer has no revision of the deletion; the list after it has.
        let (_, list) = self.ask("GET", &self.path("n"), None).await;
        self.writes.push((list.resource_version().to_owned(), Wrote::Deletion));
    }

    /// The answer of a list or get in the form of the data. Other writes of the cluster raise the revision of what is read now.
    async fn read(&mut self, place: &str) -> String {
        let (code, answer) = self.ask("GET", &self.path(place), None).await;
        if code != 200 {
            return format!("{code} {}", answer.text("message"));
        }
        if answer.get("items").is_none() {
            return self.shown(&answer);
        }
        self.next = answer.text_at(&["metadata", "continue"]).to_owned();
        let mut parts: Vec<String> = answer.items_at(&["items"]).iter().map(|it| self.shown(it)).collect();
        parts.extend(self.write_at(answer.resource_version()).filter(|_| place.contains("Exact")).map(|it| format!("@{it}")));
        if !self.next.is_empty() {
            parts.push(format!("more={}", answer.at(&["metadata", "remainingItemCount"]).map_or("some".to_owned(), Value::to_string)));
        }
        parts.join(" ")
    }

    async fn see(&mut self, words: &[&str]) {
        for wanted in words.chunks(2) {
            let event = self.watch.as_mut().expect("a watch").next().await;
            let object = &event["object"];
            let shown = match event.text("type") {
                "ERROR" => object["code"].to_string(),
                "BOOKMARK" => object.at(&["metadata", "annotations", "k8s.io/initial-events-end"]).map_or("later", |_| "end").to_owned(),
                "DELETED" => format!("{}={}", self.shown(object), object.text(self.kind.field)),
                _ => self.shown(object),
            };
            assert_eq!([event.text("type"), &shown], *wanted, "{} {}: {event}", self.kind.plural, self.case);
        }
    }

    async fn step(&mut self, line: &str) {
        let (ask, wanted) = line.split_once(" => ").unwrap_or((line, ""));
        let words: Vec<&str> = ask.split_whitespace().collect();
        match words[0] {
            "put" => self.put(&words[1..]).await,
            "del" => self.delete(words[1]).await,
            "see" => self.see(&words[1..]).await,
            "list" | "get" => {
                let got = self.read(words[1]).await;
                let is_error = wanted.starts_with(|it: char| it == '4' || it == '5');
                assert!(got == wanted || is_error && got.starts_with(&wanted[..3]) && got.contains(&wanted[4..]), "{} {}: {line}\n  got: {got}", self.kind.plural, self.case);
            }
            "watch" => {
                let (place, query) = words[1].split_once('?').unwrap_or((words[1], ""));
                let (code, body) = self.send("GET", &self.path(&format!("{place}?watch=true&{query}")), None).await;
                assert_eq!(code, 200, "{line}");
                self.watch = Some(Watch { body, rest: Vec::new() });
            }
            other => panic!("{other}?"),
        }
    }
}

async fn define(client: &Client) {
    let run = Run { client, kind: &KINDS[1], case: String::new(), writes: Vec::new(), next: String::new(), watch: None };
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"place": {"type": "string"}}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": schema, "selectableFields": [{"jsonPath": ".place"}]});
    let spec = json!({"group": "lists.example.com", "scope": "Namespaced", "names": {"kind": "Place", "plural": "places"}, "versions": [version]});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "places.lists.example.com"}, "spec": spec});
    assert_eq!(run.ask("POST", path, Some(&definition)).await.0, 201);
    let began = std::time::Instant::now();
    while run.ask("GET", "/apis/lists.example.com/v1/places", None).await.0 != 200 {
        assert!(began.elapsed().as_secs() < 30, "the definition is not served");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_watches_are_upstreams() {
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let client = client(&cluster).await;
    define(&client).await;
    let mut cases: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in CASES.lines().filter(|it| !it.trim().is_empty() && !it.starts_with('#')) {
        match line.strip_prefix("= ") {
            Some(title) => cases.push((title, Vec::new())),
            None => cases.last_mut().expect("a title").1.push(line),
        }
    }
    for (kind, (at, (title, lines))) in KINDS.iter().flat_map(|kind| cases.iter().enumerate().map(move |it| (kind, it))) {
        let mut run = Run { client: &client, kind, case: at.to_string(), writes: Vec::new(), next: String::new(), watch: None };
        for letter in ["n", "m"] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": run.namespace(letter)}});
            assert_eq!(run.ask("POST", "/api/v1/namespaces", Some(&namespace)).await.0, 201, "{title}");
        }
        for line in lines {
            eprintln!("{title}: {line}");
            run.step(line).await;
        }
    }
}
