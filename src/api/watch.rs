//! Watches: a cursor over the store's log, filtered and encoded for one client.
//! Source: apiserver `pkg/endpoints/handlers/watch.go`, `pkg/storage/cacher`; KEP-956 (bookmarks), KEP-3157 (WatchList).

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::stream;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Body, Server, body,
    forms::{self, View},
    list::{Selection, check, current, parse_revision, select},
    negotiation::{Encoding, Form, Include, Shape, TableOptions},
    target::Target,
};
use crate::{
    meta::{Meta, Result, Status, options::ListOptions},
    schema::protobuf,
    store::{Cursor, Event, EventKind, Header, Key, ReadError, Revision, Stored},
};

/// How often an idle watch tells its revision (`bookmarkFrequency`).
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client names no time (`minRequestTimeout`); up to twice that, by chance.
const TIMEOUT_SECONDS: u64 = 1800;
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Begins a watch; its body ends with the client, the timeout, or the server.
pub async fn watch(server: &Arc<Server>, target: Target, options: &ListOptions, mut form: Form) -> Result<Body> {
    check(options, true)?;
    if form.encoding == Encoding::Yaml {
        form.encoding = Encoding::Json;
    }
    let mut watcher = Watcher {
        server: server.clone(),
        selection: Selection::new(&target, options)?,
        target,
        form,
        sends_bookmarks: options.allow_watch_bookmarks,
        ends: Instant::now() + timeout(options),
        bookmark_at: Instant::now() + BOOKMARK_EVERY,
        pending: BytesMut::new(),
        cursor: None,
    };
    let revision = parse_revision(&options.resource_version)?;
    match options.send_initial_events.unwrap_or(revision == 0) {
        true => watcher.begin(options).await?,
        false => watcher.follow(options, revision).await?,
    }
    Ok(watcher.into_body())
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

struct Watcher {
    server: Arc<Server>,
    target: Target,
    selection: Selection,
    form: Form,
    sends_bookmarks: bool,
    ends: Instant,
    bookmark_at: Instant,
    /// The next bytes for the client.
    pending: BytesMut,
    /// `None` where these are the last.
    cursor: Option<Cursor>,
}

impl Watcher {
    /// Begins with what is there.
    async fn begin(&mut self, options: &ListOptions) -> Result<()> {
        let snapshot = current(&self.server, options).await?;
        self.cursor = Some(self.server.store.watch(self.selection.scope(&self.target), snapshot.revision()).map_err(gone)?);
        let initial = snapshot.list(&self.target.kind.resource(), self.target.in_namespace(), None);
        for object in select(&self.server, &self.target, &self.selection, initial).await? {
            self.pending.extend_from_slice(&self.target.view().frame("ADDED", &object, self.form)?);
            self.form = self.form.following();
        }
        if options.send_initial_events == Some(true) && self.sends_bookmarks {
            self.pending.extend_from_slice(&self.target.view().bookmark(snapshot.revision(), true, self.form)?);
        }
        Ok(())
    }

    /// Begins after a revision; where none is given, now.
    async fn follow(&mut self, options: &ListOptions, asked: Revision) -> Result<()> {
        let revision = if asked == 0 { current(&self.server, options).await?.revision() } else { asked };
        let store = &self.server.store;
        let cursor = match store.watch(self.selection.scope(&self.target), revision) {
            // Another server gave a revision that this one has not reached; one that nobody gave is from before a restore.
            Err(ReadError::Future(_)) => match store.consistent().await {
                Ok(snapshot) if snapshot.revision() < revision => Err(ReadError::Compacted(snapshot.revision())),
                _ => store.watch(self.selection.scope(&self.target), revision),
            },
            other => other,
        };
        match cursor {
            Ok(cursor) => self.cursor = Some(cursor),
            Err(error) => self.fail(&gone(error)),
        }
        Ok(())
    }

    fn into_body(self) -> Body {
        body::stream(stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((Ok(chunk), watcher))
        }))
    }

    /// The next bytes for the client; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while self.pending.is_empty() {
            let cursor = self.cursor.as_mut()?;
            let stopping = self.server.tasks.clone();
            let events = tokio::select! {
                events = cursor.next() => events,
                () = tokio::time::sleep_until(self.ends) => {
                    self.bookmark().await;
                    self.cursor = None;
                    continue;
                }
                () = tokio::time::sleep_until(self.bookmark_at), if self.sends_bookmarks => {
                    self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                    self.bookmark().await;
                    continue;
                }
                () = stopping.stopping() => return None,
            };
            match events {
                Ok(events) => self.take(&events).await,
                Err(error) => self.fail(&gone(error)),
            }
        }
        Some(std::mem::take(&mut self.pending).freeze())
    }

    async fn take(&mut self, events: &[Arc<Event>]) {
        for event in events {
            match self.frame(event).await {
                Ok(Some(frame)) => {
                    self.pending.extend_from_slice(&frame);
                    self.form = self.form.following();
                }
                Ok(None) => (),
                Err(status) => return self.fail(&status),
            }
        }
    }

    /// Ends with an error.
    fn fail(&mut self, status: &Status) {
        let status = forms::encode(&status.to_value(), self.form.encoding).unwrap_or_default();
        self.pending.extend_from_slice(&frame("ERROR", &status, self.form.encoding));
        self.cursor = None;
    }

    /// Whether an object is selected as the target's version serves it.
    async fn selects(&self, object: &Arc<Stored>) -> Result<bool> {
        let view = self.target.view();
        match view.selects_served() && !self.selection.is_everything() {
            true => Ok(self.selection.matches(&*self.server.served_one(view, object.clone()).await?)),
            false => Ok(self.selection.matches(object)),
        }
    }

    /// What this watcher sees of an event: an object that enters or leaves the selection is added or deleted.
    async fn frame(&self, event: &Event) -> Result<Option<Bytes>> {
        let is_deletion = event.kind == EventKind::Deleted;
        let is_in = !is_deletion && self.selects(&event.object).await?;
        let was_in = match &event.previous {
            Some(previous) => self.selects(previous).await?,
            None => is_deletion && self.selects(&event.object).await?,
        };
        let kind = match (was_in, is_in) {
            (false, false) => return Ok(None),
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        let object = match &event.previous {
            // It is not shown what it has become.
            Some(previous) if kind == "DELETED" && !is_deletion => Arc::new(previous.moved(event.revision)),
            _ => event.object.clone(),
        };
        let view = self.target.view();
        let object = self.server.served_one(view, object).await?;
        let is_plain = self.form.shape == Shape::Object && self.form.encoding == Encoding::Json;
        if !is_plain {
            return view.frame(kind, &object, self.form).map(Some);
        }
        let id = view.form_id() << 8 | u64::from(kind.as_bytes()[0]);
        Ok(Some(event.frames.get_or_make(id, || frame(kind, &object.json.text(), Encoding::Json))))
    }

    /// Tells up to which revision this watch is complete, where that is wanted; events that came in between go first.
    async fn bookmark(&mut self) {
        let cursor = self.cursor.as_mut().filter(|_| self.sends_bookmarks);
        let Some(Ok((events, revision))) = cursor.map(Cursor::ready) else { return };
        self.take(&events).await;
        match self.target.view().bookmark(revision, false, self.form) {
            Ok(frame) if self.cursor.is_some() => self.pending.extend_from_slice(&frame),
            _ => (),
        }
    }
}

impl View<'_> {
    fn frame(&self, kind: &str, object: &Stored, form: Form) -> Result<Bytes> {
        Ok(frame(kind, &self.encode(object, form)?, form.encoding))
    }

    /// An object with nothing but a resourceVersion, and at the end of the initial events a mark, which tables without objects have too.
    fn bookmark(&self, revision: Revision, is_initial_end: bool, mut form: Form) -> Result<Bytes> {
        let mut object = json!({"kind": self.kind.kind, "apiVersion": self.api_version(), "metadata": {"resourceVersion": revision.to_string()}});
        if is_initial_end {
            object.set_metadata("annotations", json!({INITIAL_END: "true"}));
        }
        if let Shape::Table(options @ TableOptions { include: Include::None, .. }) = form.shape {
            form.shape = Shape::Table(TableOptions { include: Include::Metadata, ..options });
        }
        let key = Key::new(&self.kind.resource(), "", "");
        self.frame("BOOKMARK", &Stored { key, revision, json: object.to_string().into(), header: Header::default(), forms: Arc::default() }, form)
    }
}

/// An event as it stands in the stream.
fn frame(kind: &str, object: &[u8], encoding: Encoding) -> Bytes {
    if encoding == Encoding::Protobuf {
        return protobuf::encode_watch_event(kind, object).into();
    }
    let mut frame = BytesMut::with_capacity(object.len() + 40);
    frame.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    frame.extend_from_slice(object);
    frame.extend_from_slice(b"}\n");
    frame.freeze()
}
