//! A backup: every object at one revision, a line of JSON each, between a first line that says what it is and a last one without
//! which it is cut off. It holds the Secrets and the cluster's keys.

use std::{collections::HashSet, io::BufRead, sync::Arc};

use bytes::Bytes;
use serde_json::json;

use super::{
    Draft, Header, Key, Revision, Snapshot,
    engine::{Appended, Engine, Error},
    journal::{Batch, Before},
};
use crate::meta::{Meta, Value};

/// The version of the format.
const FORMAT: u64 = 1;

/// What a backup holds.
#[derive(Debug)]
pub struct Archive {
    pub revision: Revision,
    pub objects: Vec<(Key, u64, Value)>,
}

/// The lines of a backup of `snapshot`.
pub fn lines(snapshot: &Snapshot) -> impl Iterator<Item = Bytes> + Send + use<> {
    let mut resources = snapshot.resources();
    resources.sort();
    let objects: Vec<_> = resources.iter().flat_map(|it| snapshot.list(it, None, None).cloned().collect::<Vec<_>>()).collect();
    let (first, last) = (json!({"howdah": FORMAT, "revision": snapshot.revision()}), json!({"end": objects.len()}));
    let line = |it: Arc<super::Stored>| {
        let place = [&*it.key.resource, &*it.key.namespace, &*it.key.name];
        Bytes::from([format!("{{\"key\":{},\"schema\":{},\"object\":", json!(place), it.header.schema).as_bytes(), &it.json.text(), b"}\n"].concat())
    };
    let text = |value: Value| Bytes::from(format!("{value}\n"));
    std::iter::once(text(first)).chain(objects.into_iter().map(line)).chain(std::iter::once(text(last)))
}

impl Archive {
    /// Reads a backup to its end.
    pub fn read(mut from: impl BufRead) -> Result<Self, Error> {
        let damaged = |why: &dyn std::fmt::Display| Error::Unfit(format!("the backup cannot be used: {why}"));
        let mut next = || {
            let mut line = String::new();
            from.read_line(&mut line).map_err(|why| damaged(&why))?;
            serde_json::from_str::<Value>(&line).map_err(|_| damaged(&"it is cut off"))
        };
        let first = next()?;
        if first.at(&["howdah"]).and_then(Value::as_u64) != Some(FORMAT) {
            return Err(damaged(&"it is none, or of a newer howdah"));
        }
        let revision = first.at(&["revision"]).and_then(Value::as_u64).unwrap_or_default();
        let mut objects = Vec::new();
        loop {
            let mut line = next()?;
            if let Some(count) = line.at(&["end"]).and_then(Value::as_u64) {
                return if count == objects.len() as u64 { Ok(Self { revision, objects }) } else { Err(damaged(&"lines are missing")) };
            }
            let parts: Vec<&str> = line.items_at(&["key"]).iter().filter_map(Value::as_str).collect();
            let [resource, namespace, name] = parts[..] else { return Err(damaged(&"a line has no key")) };
            let key = Key::new(resource, namespace, name);
            let schema = line.at(&["schema"]).and_then(Value::as_u64).unwrap_or_default();
            objects.push((key, schema, line["object"].take()));
        }
    }

    /// Makes the store what the backup is, in one step: a jump, so that no revision of either is given again, and a batch that deletes
    /// what is not in the backup and puts what is. Returns the new revision.
    pub async fn restore(&self, engine: &dyn Engine) -> Result<Revision, Error> {
        let loaded = engine.load().await?;
        let head = loaded.batches.last().map_or(loaded.revision, |it| it.last);
        let id = || uuid::Uuid::new_v4().as_u64_pair().0 as i64;
        let jump = Batch::jump(head, self.revision, id());
        let mut batch = Batch { prev: jump.last, last: jump.last, id: id(), entries: Vec::new() };
        let kept: HashSet<&Key> = self.objects.iter().map(|(key, _, _)| key).collect();
        let mut there: HashSet<Key> = loaded.objects.iter().map(|it| it.key.clone()).collect();
        for entry in loaded.batches.iter().flat_map(|it| &it.entries).filter(|it| it.revision > loaded.revision) {
            if entry.is_delete { _ = there.remove(&entry.key) } else { _ = there.insert(entry.key.clone()) }
        }
        let gone = Value::Object(Default::default());
        let deletions = there.iter().filter(|it| !kept.contains(it)).map(|key| (key, 0, &gone, true));
        let puts = self.objects.iter().map(|(key, schema, object)| (key, *schema, object, false));
        for (key, schema, object, is_delete) in deletions.chain(puts) {
            batch.last += 1;
            let draft = Draft::new(object, Header { schema, ..Header::default() });
            batch.entries.push(draft.stored(key.clone(), batch.last).entry(is_delete, Before::Recent));
        }
        for batch in [&jump, &batch].into_iter().filter(|it| it.prev < it.last) {
            if engine.append(batch).await? == Appended::Behind {
                return Err(Error::Unfit("another process writes to the store; stop it first".to_owned()));
            }
        }
        Ok(batch.last)
    }
}
