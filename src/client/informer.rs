//! A shared, indexed, always current copy of one kind: list and watch into memory, changes to whoever subscribed.
//! Follows client-go `tools/cache/shared_informer.go`; it never re-lists on a timer, so an idle cluster costs nothing.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Notify, watch};

use super::{ObjectKey, writes::Reach};
use crate::base::Tasks;

/// What can be cached and written: a typed kind.
pub trait Cached: Resource<DynamicType = (), Scope: Reach> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource<DynamicType = (), Scope: Reach> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static> Cached for K {}

/// The values under which an index files an object.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

/// One change of the cache, told to subscribers in the order of the watch.
#[derive(Clone, Debug)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest known state.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(new) | Self::Updated { new, .. } | Self::Deleted(new) => new,
        }
    }

    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Self::Updated { old, .. } => Some(old),
            _ => None,
        }
    }

    pub fn is_deleted(&self) -> bool {
        matches!(self, Self::Deleted(_))
    }
}

/// What to watch and how to keep it.
pub struct Watch<K> {
    pub config: watcher::Config,
    pub indexes: Vec<(&'static str, IndexFn<K>)>,
    /// Drops what the reader never reads, before an object is kept. `managedFields` always goes.
    pub trim: fn(&mut K),
}

impl<K> Default for Watch<K> {
    fn default() -> Self {
        Self { config: watcher::Config::default().streaming_lists(), indexes: Vec::new(), trim: |_| () }
    }
}

impl<K> Watch<K> {
    pub fn index(mut self, name: &'static str, of: IndexFn<K>) -> Self {
        self.indexes.push((name, of));
        self
    }

    pub fn fields(mut self, selector: &str) -> Self {
        self.config = self.config.fields(selector);
        self
    }

    pub fn labels(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    pub fn trim(mut self, trim: fn(&mut K)) -> Self {
        self.trim = trim;
        self
    }
}

/// The name of the index by [`owner_uid`].
pub const BY_OWNER: &str = "owner";
/// The name of the index by namespace.
pub const BY_NAMESPACE: &str = "namespace";
/// The name of the index of EndpointSlices by [`service_of`].
pub const BY_SERVICE: &str = "service";
/// The label of an EndpointSlice that names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Files an object under its controller's uid, and an orphan under its namespace, as upstream's `AddPodControllerIndexer` does.
pub fn owner_uid<K: Resource>(object: &K) -> Vec<String> {
    let owner = object.meta().owner_references.iter().flatten().find(|it| it.controller == Some(true));
    vec![owner.map_or_else(|| orphan_of(object.meta().namespace.as_deref().unwrap_or_default()), |it| it.uid.clone())]
}

/// The value under which [`owner_uid`] files the orphans of a namespace.
pub fn orphan_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

pub fn namespace_of<K: Resource>(object: &K) -> Vec<String> {
    object.meta().namespace.iter().cloned().collect()
}

/// The key of the Service whose endpoints a slice has.
pub fn service_key(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

/// Files a slice under `namespace/service`.
pub fn service_of(slice: &EndpointSlice) -> Vec<String> {
    service_key(slice).iter().map(ToString::to_string).collect()
}

/// A reader's end of the cache. Clones share it.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

type Listener<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Shared<K> {
    store: RwLock<Store<K>>,
    listeners: RwLock<Vec<Listener<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Cached> Informer<K> {
    /// Watches `api` until `tasks` stop.
    pub fn start(name: &'static str, api: Api<K>, options: Watch<K>, tasks: &Tasks) -> Self {
        let Watch { config, indexes, trim } = options;
        let informer = Self::new(indexes);
        let writer = informer.clone();
        tasks.spawn_vital(name, async move { writer.follow(api, config, trim).await });
        informer
    }

    fn new(indexes: Vec<(&'static str, IndexFn<K>)>) -> Self {
        let shared = Shared { store: RwLock::new(Store::new(indexes)), listeners: RwLock::default(), synced: watch::Sender::new(false) };
        Self { shared: Arc::new(shared) }
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read(|store| store.objects.get(key).cloned())
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|store| store.objects.values().cloned().collect())
    }

    /// The objects that the index `name` files under `value`.
    pub fn by(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        self.read(|store| store.by(name, value))
    }

    /// Completes once the first list has arrived.
    pub async fn synced(&self) {
        let _ = self.shared.synced.subscribe().wait_for(|it| *it).await;
    }

    /// Calls `listener` for everything present (as added) and for every later change, in order. It must not block.
    pub fn subscribe(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut listeners = self.shared.listeners.write();
        self.list().into_iter().for_each(|object| listener(&Change::Added(object)));
        listeners.push(Box::new(listener));
    }

    /// Tells `wake` of every change.
    pub fn wakes(&self, wake: &Arc<Notify>) {
        let wake = wake.clone();
        self.subscribe(move |_| wake.notify_one());
    }

    fn read<T>(&self, with: impl FnOnce(&Store<K>) -> T) -> T {
        with(&self.shared.store.read())
    }

    async fn follow(&self, api: Api<K>, config: watcher::Config, trim: fn(&mut K)) {
        let mut events = Box::pin(watcher::watcher(api, config).default_backoff());
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => listed.push(slim(object, trim)),
                Ok(Event::InitDone) => self.replace(std::mem::take(&mut listed)),
                Ok(Event::Apply(object)) => self.change(|store| store.put(slim(object, trim)).into_iter().collect()),
                Ok(Event::Delete(object)) => self.change(|store| store.remove(slim(object, trim)).into_iter().collect()),
                Err(error) => tracing::warn!(%error, kind = %K::kind(&()), "watch"),
            }
        }
    }

    fn replace(&self, listed: Vec<K>) {
        self.change(|store| store.replace(listed));
        self.shared.synced.send_replace(true);
    }

    /// Listeners are locked around the change, so that a new subscriber sees each object once.
    fn change(&self, act: impl FnOnce(&mut Store<K>) -> Vec<Change<K>>) {
        let listeners = self.shared.listeners.read();
        let changes = act(&mut self.shared.store.write());
        for change in &changes {
            listeners.iter().for_each(|listener| listener(change));
        }
    }
}

fn slim<K: Cached>(mut object: K, trim: fn(&mut K)) -> K {
    object.meta_mut().managed_fields = None;
    trim(&mut object);
    object
}

type Filed<K> = HashMap<String, HashMap<ObjectKey, Arc<K>>>;

struct Index<K> {
    name: &'static str,
    of: IndexFn<K>,
    filed: Filed<K>,
}

struct Store<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    indexes: Vec<Index<K>>,
}

impl<K: Cached> Store<K> {
    fn new(indexes: Vec<(&'static str, IndexFn<K>)>) -> Self {
        let indexes = indexes.into_iter().map(|(name, of)| Index { name, of, filed: Filed::new() }).collect();
        Self { objects: HashMap::new(), indexes }
    }

    fn by(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        let filed = self.indexes.iter().find(|it| it.name == name).and_then(|it| it.filed.get(value));
        filed.map(|it| it.values().cloned().collect()).unwrap_or_default()
    }

    /// `None` when the object is already known at this version (a re-list says so of most).
    fn put(&mut self, object: K) -> Option<Change<K>> {
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        if let Some(old) = &old {
            self.unfile(&key, old);
        }
        for index in &mut self.indexes {
            for value in (index.of)(&new) {
                index.filed.entry(value).or_default().insert(key.clone(), new.clone());
            }
        }
        match old {
            Some(old) if old.meta().resource_version == new.meta().resource_version => None,
            Some(old) => Some(Change::Updated { old, new }),
            None => Some(Change::Added(new)),
        }
    }

    fn remove(&mut self, last: K) -> Option<Change<K>> {
        let key = ObjectKey::of(&last);
        let old = self.objects.remove(&key)?;
        self.unfile(&key, &old);
        Some(Change::Deleted(Arc::new(last)))
    }

    fn replace(&mut self, listed: Vec<K>) -> Vec<Change<K>> {
        let present: HashSet<ObjectKey> = listed.iter().map(ObjectKey::of).collect();
        let gone: Vec<Arc<K>> = self.objects.iter().filter(|(key, _)| !present.contains(key)).map(|(_, it)| it.clone()).collect();
        let removed: Vec<_> = gone.into_iter().filter_map(|it| self.remove(K::clone(&it))).collect();
        removed.into_iter().chain(listed.into_iter().filter_map(|it| self.put(it)).collect::<Vec<_>>()).collect()
    }

    fn unfile(&mut self, key: &ObjectKey, old: &K) {
        for index in &mut self.indexes {
            for value in (index.of)(old) {
                if let Some(filed) = index.filed.get_mut(&value) {
                    filed.remove(key);
                    if filed.is_empty() {
                        index.filed.remove(&value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, version: &str, owner: Option<&str>) -> Pod {
        let owners = owner.map(|uid| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": uid, "controller": true}]));
        let meta = json!({"namespace": "ns", "name": name, "uid": name, "resourceVersion": version, "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    #[test]
    fn an_index_follows_the_owner() {
        let mut store = Store::new(vec![(BY_OWNER, owner_uid::<Pod> as IndexFn<Pod>)]);
        assert!(matches!(store.put(pod("a", "1", None)), Some(Change::Added(_))));
        assert_eq!(store.by(BY_OWNER, "orphan/ns").len(), 1);
        assert!(matches!(store.put(pod("a", "2", Some("u1"))), Some(Change::Updated { .. })));
        assert!(store.put(pod("a", "2", Some("u1"))).is_none());
        assert_eq!((store.by(BY_OWNER, "orphan/ns").len(), store.by(BY_OWNER, "u1").len()), (0, 1));
        assert!(matches!(store.remove(pod("a", "3", Some("u1"))), Some(Change::Deleted(_))));
        assert!(store.indexes[0].filed.is_empty());
    }

    #[test]
    fn a_second_list_removes_what_is_gone() {
        let informer = Informer::new(vec![]);
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        informer.replace(vec![pod("a", "1", None), pod("b", "1", None)]);
        let log = seen.clone();
        informer.subscribe(move |change: &Change<Pod>| {
            let what = match change {
                Change::Added(_) => "added",
                Change::Updated { .. } => "updated",
                Change::Deleted(_) => "deleted",
            };
            log.lock().unwrap().push(format!("{what} {}", change.object().metadata.name.as_deref().unwrap()));
        });
        informer.replace(vec![pod("b", "2", None), pod("c", "1", None)]);
        let mut log = seen.lock().unwrap().clone();
        log.sort();
        assert_eq!(log, ["added a", "added b", "added c", "deleted a", "updated b"]);
    }
}
