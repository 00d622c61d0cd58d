//! Whether other servers can be reached: the condition Available of their APIServices, and what they tell of themselves.
//! Source: kube-aggregator `pkg/controllers/status/remote/remote_available_controller.go`.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, header};
use http_body_util::{BodyExt, Limited};

use super::{Delegate, Told, find, set_user};
use crate::{
    api::{
        Server, body, connect::Route, endpoint,
        identity::{MASTERS, User},
        registration::{condition, replace},
    },
    meta::{Meta, Value},
    store::{Key, Snapshot},
};

/// How often it is seen whether a Service or its endpoints have changed; who is away is asked again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Who was there is asked again after this long (the resync of upstream's informers).
const ASK_EVERY: Duration = Duration::from_secs(30);
/// A server's answer to the question whether it is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Attempts at a time; one that succeeds is enough.
const ATTEMPTS: usize = 5;
/// The longest list of resources, and of documents, that is read.
const ANSWER_MAX: usize = 8 << 20;

/// Whether an APIService has the condition.
pub fn is_true(service: &Value) -> bool {
    service.has_condition("Available")
}

/// Reason and message of what is wrong.
type Wrong = (&'static str, String);

/// What was last seen of a server.
struct Seen {
    /// Revisions of its Service and endpoints.
    revisions: Vec<u64>,
    asked: Instant,
}

/// Keeps the conditions of all servers until the server stops.
pub async fn follow(server: Arc<Server>) {
    let mut seen: HashMap<String, Seen> = HashMap::new();
    loop {
        let (delegates, snapshot) = (server.aggregator.delegates(), server.store.snapshot());
        seen.retain(|name, _| delegates.values().any(|it| it.name == *name));
        let due = delegates.values().filter(|it| {
            let revisions = revisions(&snapshot, it);
            let is_due = seen.get(&it.name).is_none_or(|seen| !it.is_available || seen.revisions != revisions || seen.asked.elapsed() > ASK_EVERY);
            if is_due {
                seen.insert(it.name.clone(), Seen { revisions, asked: Instant::now() });
            }
            is_due
        });
        join_all(due.map(|it| settle(&server, &snapshot, it))).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn revisions(snapshot: &Snapshot, delegate: &Delegate) -> Vec<u64> {
    let (namespace, name, _) = delegate.service();
    let slices = endpoint::stored_slices(snapshot, namespace, name);
    let service = snapshot.get(&Key::new("services", namespace, name)).map(|it| it.revision);
    service.into_iter().chain(slices.map(|it| it.revision)).collect()
}

async fn settle(server: &Arc<Server>, snapshot: &Snapshot, delegate: &Delegate) {
    let checked = match check_objects(snapshot, delegate) {
        Ok(()) => ask(server, snapshot, delegate).await.map_err(|why| ("FailedDiscoveryCheck", why)),
        Err(wrong) => Err(wrong),
    };
    let (is_available, reason, message) = match checked {
        Ok(told) => {
            delegate.told.store(told.into());
            (true, "Passed", "all checks passed".to_owned())
        }
        Err((reason, message)) => (false, reason, message),
    };
    let Some(stored) = find(&server.store.snapshot(), &delegate.name) else { return };
    let mut service = stored.value();
    let before = service.clone();
    condition(&mut service, "Available", is_available, reason, &message);
    if service != before {
        replace(server, &stored, &service).await;
    }
}

/// Whether the Service is there, listens on the port, and has somebody behind it.
fn check_objects(snapshot: &Snapshot, delegate: &Delegate) -> std::result::Result<(), Wrong> {
    let (namespace, name, port) = delegate.service();
    let Some(stored) = snapshot.get(&Key::new("services", namespace, name)) else {
        return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    let service = stored.value();
    if service.text_at(&["spec", "type"]) != "ClusterIP" {
        return Ok(());
    }
    let Some(declared) = endpoint::declared(&service, port) else {
        return Err(("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}")));
    };
    let slices: Vec<Value> = endpoint::slices(snapshot, namespace, name);
    if slices.is_empty() {
        return Err(("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {namespace:?}")));
    }
    let port = declared.text("name");
    if slices.iter().any(|it| endpoint::ready(it, port).next().is_some()) {
        return Ok(());
    }
    Err(("MissingEndpoints", format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port:?}")))
}

/// Asks the server for its resources, several times at once as upstream does: behind the Service may be several, and one that answers is enough.
async fn ask(server: &Server, snapshot: &Snapshot, delegate: &Delegate) -> std::result::Result<Told, String> {
    let path = format!("/apis/{}/{}", delegate.group, delegate.version);
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let route = delegate.route(snapshot).map_err(|it| it.message)?;
        match get(server, &route, &path).await {
            Ok(resources) => {
                let openapi = get(server, &route, "/openapi/v3").await.ok();
                let document = openapi.as_ref().and_then(|it| it.at(&["paths", path.trim_start_matches('/')])).map(|it| it.text("serverRelativeURL").to_owned());
                return Ok(Told { resources, openapi: document });
            }
            Err(why) => last = why,
        }
    }
    Err(last)
}

async fn get(server: &Server, route: &Route, path: &str) -> std::result::Result<Value, String> {
    let url = format!("https://{}{path}", route.authority());
    let failed = |why: &dyn std::fmt::Display| format!("failing or missing response from {url}: Get {url:?}: {why}");
    let mut request = Request::get(path).header(header::ACCEPT, "application/json").body(body::empty()).map_err(|why| failed(&why))?;
    set_user(request.headers_mut(), &User::system("system:kube-aggregator", &[MASTERS]));
    let answered = async {
        let response = server.nodes.delegate(route, request).await.map_err(|why| failed(&why))?;
        let code = response.status().as_u16();
        if !(200..300).contains(&code) {
            return Err(format!("bad status from {url}: {code}"));
        }
        let body: Bytes = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|why| failed(&why))?.to_bytes();
        serde_json::from_slice(&body).map_err(|why| failed(&why))
    };
    tokio::time::timeout(ANSWER_WITHIN, answered).await.unwrap_or_else(|_| Err(failed(&"context deadline exceeded (Client.Timeout exceeded while awaiting headers)")))
}
