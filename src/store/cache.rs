//! The state in memory: per resource an ordered map of objects and a ring of recent events.

use std::sync::Arc;

use super::{Key, Revision, Stored};

/// Everything at one revision. Cheap to clone; never changes.
#[derive(Clone)]
pub struct Snapshot {
    _private: (),
}

impl Snapshot {
    pub fn revision(&self) -> Revision {
        todo!()
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        let _ = key;
        todo!()
    }

    /// The objects of a resource in key order, of one namespace or of all, after `after` (namespace, name) exclusively.
    pub fn list<'a>(&'a self, resource: &str, namespace: Option<&'a str>, after: Option<(&str, &str)>) -> Box<dyn Iterator<Item = &'a Arc<Stored>> + 'a> {
        let _ = (resource, namespace, after);
        todo!()
    }

    pub fn count(&self, resource: &str) -> usize {
        let _ = resource;
        todo!()
    }

    /// The keys of resources that hold any object.
    pub fn resources(&self) -> Vec<Arc<str>> {
        todo!()
    }
}
