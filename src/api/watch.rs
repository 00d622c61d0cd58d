//! Watches: a cursor over the store's log, filtered and encoded for one client.
//! Source: apiserver `pkg/endpoints/handlers/watch.go`, `pkg/storage/cacher`; KEP-956 (bookmarks), KEP-3157 (WatchList).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::stream;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Body, Server, body,
    forms::{self, View},
    list::{Selection, parse_revision, select},
    negotiation::{Encoding, Form, Include, Shape, TableOptions},
    target::Target,
};
use crate::{
    base::clock,
    meta::{Result, Status, Value, options::ListOptions},
    schema::protobuf,
    store::{Cursor, Event, EventKind, ReadError, Revision, Snapshot, Stored},
};

/// How often an idle watch tells its revision (`bookmarkFrequency`).
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client names no time (`minRequestTimeout`); up to twice that, by chance.
const TIMEOUT_SECONDS: u64 = 1800;
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Begins a watch; its body ends with the client, the timeout, or the server.
pub async fn watch(server: &Arc<Server>, target: Target, options: &ListOptions, mut form: Form) -> Result<Body> {
    check(options)?;
    let selection = Selection::new(&target, options)?;
    let revision = parse_revision(&options.resource_version)?;
    let wants_initial = options.send_initial_events.unwrap_or(revision == 0);
    let mut pending = VecDeque::new();
    let watcher = |pending, cursor, form| Watcher {
        server: server.clone(),
        form,
        sends_bookmarks: options.allow_watch_bookmarks,
        ends: Instant::now() + timeout(options),
        bookmark_at: Instant::now() + BOOKMARK_EVERY,
        pending,
        cursor,
        state: State::Running,
        target: target.clone(),
        selection: selection.clone(),
    };
    if !wants_initial {
        // Where no revision is given it begins now.
        let revision = if revision == 0 { current(server, options, revision).await?.revision() } else { revision };
        let cursor = server.store.watch(selection.scope(&target), revision);
        let cursor = match cursor {
            // Another server gave a revision that this one has not reached; one that nobody gave is from before a restore.
            Err(ReadError::Future(_)) => match server.store.consistent().await {
                Ok(snapshot) if snapshot.revision() < revision => Err(ReadError::Compacted(snapshot.revision())),
                _ => server.store.watch(selection.scope(&target), revision),
            },
            other => other,
        };
        return Ok(match cursor {
            Ok(cursor) => watcher(pending, Some(cursor), form).into_body(),
            Err(error) => watcher(pending, None, form).failed(gone(error)),
        });
    }
    let snapshot = current(server, options, revision).await?;
    let namespace = Some(target.namespace.clone()).filter(|it| !it.is_empty());
    let cursor = server.store.watch(selection.scope(&target), snapshot.revision()).map_err(gone)?;
    let view = target.view();
    let initial = snapshot.list(&target.kind.resource(), namespace.as_deref(), None);
    for object in select(server, &target, &selection, initial).await? {
        pending.push_back(view.frame("ADDED", &object, form)?);
        form = form.following();
    }
    if options.send_initial_events == Some(true) && options.allow_watch_bookmarks {
        pending.push_back(view.bookmark(snapshot.revision(), true, form)?);
    }
    Ok(watcher(pending, Some(cursor), form).into_body())
}

/// What is there now: whatever it is, all that was acknowledged, or all up to a revision.
async fn current(server: &Server, options: &ListOptions, revision: Revision) -> Result<Snapshot> {
    match options.resource_version.as_str() {
        "0" => Ok(server.store.snapshot()),
        "" => server.store.consistent().await.map_err(|error| Status::unavailable(error.to_string())),
        _ => server.store.at_least(revision).await.map_err(|error| super::list::too_new(error, revision)),
    }
}

/// `ValidateListOptions` for `sendInitialEvents`.
fn check(options: &ListOptions) -> Result<()> {
    let forbidden = |field: &str, why: &str| Err(Status::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}")));
    match (options.send_initial_events, options.resource_version_match.as_str()) {
        (Some(_), "NotOlderThan") | (None, "") => Ok(()),
        (Some(_), _) => forbidden("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        (None, _) => forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
    }
}

fn timeout(options: &ListOptions) -> Duration {
    let chance = u64::from(uuid::Uuid::new_v4().as_fields().1) % TIMEOUT_SECONDS;
    Duration::from_secs(options.timeout_seconds.filter(|it| *it > 0).unwrap_or(TIMEOUT_SECONDS + chance))
}

fn gone(error: ReadError) -> Status {
    match error {
        ReadError::Compacted(oldest) => Status::expired(format!("too old resource version: the oldest that can be watched from is {oldest}")),
        ReadError::Future(current) => Status::too_large_resource_version(current + 1, current),
    }
}

enum State {
    Running,
    /// One last chunk, then the end.
    Ending(Option<Bytes>),
}

struct Watcher {
    server: Arc<Server>,
    target: Target,
    selection: Selection,
    form: Form,
    sends_bookmarks: bool,
    ends: Instant,
    bookmark_at: Instant,
    pending: VecDeque<Bytes>,
    cursor: Option<Cursor>,
    state: State,
}

impl Watcher {
    fn into_body(self) -> Body {
        body::stream(stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((Ok(chunk), watcher))
        }))
    }

    fn failed(mut self, status: Status) -> Body {
        let frame = self.error(&status);
        self.state = State::Ending(Some(frame));
        self.into_body()
    }

    /// The next bytes for the client; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let State::Ending(last) = &mut self.state {
                return last.take();
            }
            if !self.pending.is_empty() {
                let mut chunk = BytesMut::new();
                for frame in self.pending.drain(..) {
                    chunk.extend_from_slice(&frame);
                }
                return Some(chunk.freeze());
            }
            let cursor = self.cursor.as_mut()?;
            let stopping = self.server.tasks.clone();
            let events = tokio::select! {
                events = cursor.next() => events,
                () = tokio::time::sleep_until(self.ends) => {
                    let last = self.bookmark().await;
                    self.state = State::Ending(last);
                    continue;
                }
                () = tokio::time::sleep_until(self.bookmark_at), if self.sends_bookmarks => {
                    self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                    let frame = self.bookmark().await;
                    self.pending.extend(frame);
                    continue;
                }
                () = stopping.stopping() => return None,
            };
            match events {
                Ok(events) => self.take(&events).await,
                Err(error) => self.state = State::Ending(Some(self.error(&gone(error)))),
            }
        }
    }

    async fn take(&mut self, events: &[Arc<Event>]) {
        for event in events {
            match self.frame(event).await {
                Ok(Some(frame)) => {
                    self.pending.push_back(frame);
                    self.form = self.form.following();
                }
                Ok(None) => (),
                Err(status) => {
                    self.state = State::Ending(Some(self.error(&status)));
                    return;
                }
            }
        }
    }

    /// What this watcher sees of an event: an object that enters or leaves the selection is added or deleted.
    async fn frame(&self, event: &Event) -> Result<Option<Bytes>> {
        let (view, selection) = (self.target.view(), &self.selection);
        let (mut object, mut previous) = (event.object.clone(), event.previous.clone());
        if view.selects_served() {
            object = self.server.served_one(view, object).await?;
            previous = match previous {
                Some(previous) if !selection.is_everything() => Some(self.server.served_one(view, previous).await?),
                other => other,
            };
        }
        let is_in = event.kind != EventKind::Deleted && selection.matches(&object);
        let was_in = match (&previous, event.kind) {
            (Some(previous), _) => selection.matches(previous),
            (None, EventKind::Deleted) => selection.matches(&object),
            (None, _) => false,
        };
        let kind = match (was_in, is_in) {
            (false, false) => return Ok(None),
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        let object = match &event.previous {
            // It is not shown what it has become.
            Some(previous) if kind == "DELETED" && event.kind != EventKind::Deleted => Arc::new(previous.moved(event.revision)),
            _ => object,
        };
        let object = self.server.served_one(view, object).await?;
        let is_plain = self.form.shape == Shape::Object && self.form.encoding == Encoding::Json;
        if !is_plain {
            return view.frame(kind, &object, self.form).map(Some);
        }
        let id = view.form_id() << 8 | u64::from(kind.as_bytes()[0]);
        Ok(Some(event.frames.get_or_make(id, || frame_json(kind, &object.json.text()))))
    }

    /// A bookmark at the revision up to which this watch is complete; events that came in between go first.
    async fn bookmark(&mut self) -> Option<Bytes> {
        if !self.sends_bookmarks {
            return None;
        }
        let (events, revision) = self.cursor.as_mut()?.ready().ok()?;
        self.take(&events).await;
        let mut chunk = BytesMut::new();
        self.pending.drain(..).for_each(|frame| chunk.extend_from_slice(&frame));
        chunk.extend_from_slice(&self.target.view().bookmark(revision, false, self.form).ok()?);
        Some(chunk.freeze())
    }

    fn error(&self, status: &Status) -> Bytes {
        frame_value("ERROR", &status.to_value(), self.form.encoding)
    }
}

impl View<'_> {
    fn frame(&self, kind: &str, object: &Stored, form: Form) -> Result<Bytes> {
        match form.encoding {
            Encoding::Json | Encoding::Yaml => {
                let json = Form { encoding: Encoding::Json, ..form };
                Ok(frame_json(kind, &self.encode(object, json)?))
            }
            Encoding::Protobuf => Ok(protobuf::encode_watch_event(kind, &self.encode(object, form)?).into()),
        }
    }

    /// An object with nothing but a resourceVersion.
    fn bookmark(&self, revision: u64, is_initial_end: bool, form: Form) -> Result<Bytes> {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if is_initial_end {
            metadata["annotations"] = json!({INITIAL_END: "true"});
        }
        let object = json!({"kind": self.kind.kind, "apiVersion": self.api_version(), "metadata": metadata});
        let object = match form.shape {
            Shape::Object => object,
            Shape::Metadata => json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}),
            Shape::Table(options) => {
                let metadata = json!({"resourceVersion": revision.to_string()});
                self.table_of(&[object], TableOptions { include: Include::Metadata, ..options }, metadata, clock::now())
            }
        };
        let object = if form.is_beta { forms::in_beta(object) } else { object };
        match form.encoding {
            Encoding::Protobuf if form.shape == Shape::Object => {
                Ok(protobuf::encode_watch_event("BOOKMARK", &protobuf::encode(&object, &self.version.schema)?).into())
            }
            encoding => Ok(frame_value("BOOKMARK", &object, encoding)),
        }
    }
}

fn frame_json(kind: &str, object: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(object.len() + 40);
    frame.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    frame.extend_from_slice(object);
    frame.extend_from_slice(b"}\n");
    frame.freeze()
}

fn frame_value(kind: &str, object: &Value, encoding: Encoding) -> Bytes {
    match encoding {
        Encoding::Protobuf => match super::forms::encode(object, Encoding::Protobuf) {
            Ok(bytes) => protobuf::encode_watch_event(kind, &bytes).into(),
            Err(_) => Bytes::new(),
        },
        _ => frame_json(kind, object.to_string().as_bytes()),
    }
}
