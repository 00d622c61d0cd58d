//! From what an engine loads to the state in memory and the recent events, so that watchers of a server that restarted, or of another
//! one, go on without a new list.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering, time::Instant};

use super::{
    Event, Inner, Key, Revision, Stored,
    cache::State,
    engine::{Error, Loaded},
    journal::{Batch, Before, Entry},
    lock,
};

/// Recent events as they are told again.
#[derive(Default)]
struct Recent {
    events: Vec<Arc<Event>>,
    /// The object of each key as of the last event; `None` is deleted.
    newest: HashMap<Key, Option<Arc<Stored>>>,
    /// Nothing before this revision can be told.
    floor: Revision,
    /// Of these resources nothing before a later one: what was before their event is not known.
    later: HashMap<Arc<str>, Revision>,
}

impl Inner {
    /// Takes the database's state for its own. Watchers may go on from recent revisions at a start only: otherwise the history may be
    /// another than they have seen. Returns the ids of the batches.
    pub(super) async fn load(&self, is_start: bool) -> Result<Vec<i64>, Error> {
        let loaded = self.engine.load().await?;
        let ids = loaded.batches.iter().map(|it| it.id).collect();
        let revision = loaded.batches.last().map_or(loaded.revision, |it| it.last);
        let objects = loaded.objects.iter().map(|it| (it.key.clone(), Some(Arc::new(self.stored(it)))));
        let folded = State::default().with(loaded.revision, 0, objects);
        let recent = self.recent(&loaded, &folded);
        let changed = recent.newest.into_iter().filter(|(_, it)| it.as_ref().is_none_or(|it| it.revision > loaded.revision));
        let mut state = folded.with(revision, 0, changed.filter(|(key, it)| it.is_some() || folded.get(key).is_some()));
        state.bytes = state.resources.values().flat_map(|it| it.values()).map(|it| it.json.len()).sum();
        let after = loaded.batches.iter().filter(|it| it.last > loaded.revision).flat_map(|it| &it.entries);
        *lock(&self.dirty) = after.map(|it| (it.key.clone(), it.clone())).collect();
        self.folded.store(loaded.revision, Ordering::Relaxed);
        self.recent.store(revision, Ordering::Relaxed);
        lock(&self.pages).clear();
        self.state.store(Arc::new(state));
        match is_start {
            true => {
                self.topics.reset(recent.floor, &recent.later);
                self.topics.publish(&recent.events, Instant::now());
            }
            false => self.topics.reset(revision, &HashMap::new()),
        }
        self.revisions.send_replace(revision);
        Ok(ids)
    }

    fn recent(&self, loaded: &Loaded, folded: &State) -> Recent {
        let mut recent = Recent { floor: loaded.batches.first().map_or(loaded.revision, |it| it.prev), ..Recent::default() };
        for batch in &loaded.batches {
            if batch.is_jump() {
                recent.jump(batch);
            }
            batch.entries.iter().for_each(|entry| self.retell(&mut recent, entry, folded));
        }
        recent
    }

    fn retell(&self, recent: &mut Recent, entry: &Entry, folded: &State) {
        // The object of the state is shared where it is this one.
        let in_state = folded.get(&entry.key);
        let object = in_state.filter(|it| it.revision == entry.revision).cloned().unwrap_or_else(|| Arc::new(self.stored(entry)));
        let known = recent.newest.get(&entry.key).cloned().or_else(|| in_state.filter(|it| it.revision < entry.revision).cloned().map(Some));
        let previous = match (&entry.before, known) {
            (Before::Absent, _) => Some(None),
            (_, Some(known)) => Some(known),
            (Before::Object { revision, schema, json }, None) => {
                let before = Entry { revision: *revision, schema: *schema, json: json.clone(), ..entry.clone() };
                Some(Some(Arc::new(self.stored(&before))))
            }
            (Before::Recent, None) => None,
        };
        recent.newest.insert(entry.key.clone(), (!entry.is_delete).then(|| object.clone()));
        match previous {
            Some(previous) => recent.events.push(Event::new(object, entry.is_delete, previous)),
            None => _ = recent.later.insert(entry.key.resource.clone(), entry.revision),
        }
    }
}

impl Recent {
    /// What was told before is not what others have seen.
    fn jump(&mut self, batch: &Batch) {
        self.events.clear();
        self.later.clear();
        self.floor = batch.last;
    }
}
