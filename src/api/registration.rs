//! Keeps the registry of kinds as the stored CustomResourceDefinitions say, gives them their conditions, and empties what is deleted.
//! Source: apiextensions-apiserver `pkg/controller/{status,establish,finalizer}`.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde_json::json;

use super::{Server, delete::Deletion, forms::View, target::Target};
use crate::{
    base::clock,
    kinds::{Kind, Registry, crd},
    meta::{Meta, Value, options::DeleteOptions},
    store::{Change, Draft, Event, EventKind, Expect, Key, Revision, Scope, Snapshot, Stored, Transaction, WAIT_FOR_REVISION, Write},
};

const CRDS: &str = "apiextensions.k8s.io/customresourcedefinitions";
/// Set while custom resources may exist, so that a deletion removes them first.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// How long the resources of a deleted definition get before they are looked at again.
const CLEANUP_AGAIN: Duration = Duration::from_secs(1);

/// Waits until the kind of a custom resource is served as its definition says, which another server may have told of before this one has
/// followed it. It takes no time for any other.
pub async fn await_kind(server: &Server, group: &str, plural: &str) {
    let is_builtin = server.registry.load().find(group, plural).is_some_and(|it| it.custom.is_none());
    if !is_builtin && let Some(definition) = server.store.snapshot().get(&definition_of(group, plural)) {
        await_revision(server, definition.revision).await;
    }
}

/// Waits until the kinds of all definitions are served, for discovery.
pub async fn await_kinds(server: &Server) {
    await_revision(server, newest(&server.store.snapshot())).await;
}

async fn await_revision(server: &Server, revision: Revision) {
    let _ = tokio::time::timeout(WAIT_FOR_REVISION, server.registered.subscribe().wait_for(|it| *it >= revision)).await;
}

fn definition_of(group: &str, plural: &str) -> Key {
    Key::new(CRDS, "", &format!("{plural}.{group}"))
}

fn newest(snapshot: &Snapshot) -> Revision {
    snapshot.list(CRDS, None, None).map(|it| it.revision).max().unwrap_or_default()
}

/// Registers what is stored, then follows the changes until the server stops.
pub async fn follow(server: Arc<Server>) {
    loop {
        let snapshot = server.store.snapshot();
        forget(&server, &snapshot);
        for stored in snapshot.list(CRDS, None, None) {
            settle(&server, stored).await;
        }
        server.registered.send_replace(newest(&snapshot));
        let Ok(mut cursor) = server.store.watch(Scope::resource(CRDS), snapshot.revision()) else { continue };
        while let Ok(events) = cursor.next().await {
            for event in events {
                take(&server, &event).await;
                server.registered.send_replace(event.revision);
            }
        }
    }
}

/// Serves no more what was defined when the database went back to an earlier state.
fn forget(server: &Server, snapshot: &Snapshot) {
    let is_gone = |kind: &&Arc<Kind>| kind.custom.is_some() && snapshot.get(&definition_of(&kind.group, &kind.plural)).is_none();
    for kind in server.registry.load().iter().filter(is_gone) {
        change(server, |registry| registry.without(&kind.group, &kind.plural));
    }
}

async fn take(server: &Arc<Server>, event: &Event) {
    if event.kind != EventKind::Deleted {
        return settle(server, &event.object).await;
    }
    let crd = event.object.value();
    change(server, |registry| registry.without(crd.text_at(&["spec", "group"]), crd.text_at(&["spec", "names", "plural"])));
}

fn change(server: &Server, make: impl Fn(&Registry) -> Registry) {
    server.registry.rcu(|registry| Arc::new(make(registry)));
}

/// Brings one CRD to its next state: conditions first, then the row, and at its end the removal of its resources.
async fn settle(server: &Arc<Server>, stored: &Arc<Stored>) {
    let crd = stored.value();
    if crd.deletion_timestamp().is_some() {
        return finish(server, stored, crd).await;
    }
    let mut next = crd.clone();
    conditions(&mut next, &server.registry.load());
    if !next.finalizers().any(|it| it == FINALIZER) {
        let all: Vec<Value> = next.finalizers().map(Value::from).chain([FINALIZER.into()]).collect();
        next.set_metadata("finalizers", all);
    }
    if next != crd && !replace(server, stored, &next).await {
        return;
    }
    if let Some(kind) = crd::kind(&next, stored.json.clone()) {
        change(server, |registry| registry.with(kind.clone()));
    }
}

fn conditions(crd: &mut Value, registry: &Registry) {
    let (is_accepted, reason, message) = crd::names_accepted(crd, registry);
    condition(crd, "NamesAccepted", is_accepted, reason, &message);
    if is_accepted {
        let names = crd["spec"]["names"].clone();
        crd.set_at(&["status", "acceptedNames"], names);
        condition(crd, "Established", true, "InitialNamesAccepted", "the initial names have been accepted");
    } else if !crd.condition("Established").is_some() {
        condition(crd, "Established", false, "NotAccepted", "not all names are accepted");
    }
}

/// Sets a condition; its time changes only with its status.
pub fn condition(object: &mut Value, kind: &str, is_true: bool, reason: &str, message: &str) {
    let status = if is_true { "True" } else { "False" };
    let mut all = object.items_at(&["status", "conditions"]).to_vec();
    let wanted = json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": clock::now_rfc3339()});
    match all.iter_mut().find(|it| it.text("type") == kind) {
        Some(existing) if existing.text("status") == status => (),
        Some(existing) => *existing = wanted,
        None => all.push(wanted),
    }
    object.set_at(&["status", "conditions"], all);
}

/// Deletes the resources of a CRD that ends, then lets it go.
async fn finish(server: &Arc<Server>, stored: &Arc<Stored>, mut crd: Value) {
    if !crd.finalizers().any(|it| it == FINALIZER) {
        return;
    }
    let (group, plural) = (crd.text_at(&["spec", "group"]).to_owned(), crd.text_at(&["spec", "names", "plural"]).to_owned());
    let Some(kind) = server.registry.load().find(&group, &plural).cloned() else { return release(server, stored, crd).await };
    let snapshot = server.store.snapshot();
    for object in snapshot.list(&kind.resource(), None, None) {
        let target = Target::stored(&kind, &object.key.namespace, &object.key.name);
        let _ = Deletion { server, target: &target, options: &DeleteOptions::default(), requester: None }.run().await;
    }
    if server.store.snapshot().count(&kind.resource()) == 0 {
        return release(server, stored, crd).await;
    }
    condition(&mut crd, "Terminating", true, "InstanceDeletionInProgress", "CustomResource deletion is in progress");
    // What still waits for its own finalizers is looked at again.
    server.tasks.spawn("crd-cleanup", settle_later(server.clone(), stored.key.clone()));
}

fn settle_later(server: Arc<Server>, key: Key) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        tokio::time::sleep(CLEANUP_AGAIN).await;
        if let Some(stored) = server.store.snapshot().get(&key) {
            settle(&server, &stored).await;
        }
    })
}

async fn release(server: &Arc<Server>, stored: &Arc<Stored>, mut crd: Value) {
    let rest: Vec<Value> = crd.finalizers().filter(|it| *it != FINALIZER).map(Value::from).collect();
    let is_gone = rest.is_empty();
    crd.set_metadata("finalizers", rest);
    let Some(kind) = server.registry.load().by_storage(CRDS).cloned() else { return };
    let draft = Draft::new(&crd, View::stored(&kind).header(&crd));
    let change = if is_gone { Change::Delete(draft) } else { Change::Put(draft) };
    submit(server, stored, change).await;
}

/// Writes an object that this server keeps itself, as it was read; whether nothing came between.
pub async fn replace(server: &Arc<Server>, stored: &Arc<Stored>, object: &Value) -> bool {
    let Some(kind) = server.registry.load().by_storage(&stored.key.resource).cloned() else { return false };
    submit(server, stored, Change::Put(Draft::new(object, View::stored(&kind).header(object)))).await
}

/// Makes an object that this server keeps itself, unless it is there.
pub async fn insert(server: &Arc<Server>, resource: &str, object: &Value) {
    let Some(kind) = server.registry.load().by_storage(resource).cloned() else { return };
    let change = Change::Put(Draft::new(object, View::stored(&kind).header(object)));
    let write = Write { key: Key::new(resource, object.namespace(), object.name()), expect: Expect::Absent, change };
    let _ = server.store.submit(Transaction { writes: vec![write] }).await;
}

/// A change that comes too late is made again when the newer state is seen.
async fn submit(server: &Arc<Server>, stored: &Arc<Stored>, change: Change) -> bool {
    let write = Write { key: stored.key.clone(), expect: Expect::At(stored.revision), change };
    server.store.submit(Transaction { writes: vec![write] }).await.is_ok()
}
