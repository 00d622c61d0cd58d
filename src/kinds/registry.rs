//! All kinds that the server knows at one moment: an immutable value with shared structure. Adding one costs O(log n).

use std::sync::Arc;

use super::{Kind, Version};

#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// (group, plural) → row.
    rows: rpds::RedBlackTreeMapSync<(String, String), Arc<Kind>>,
    /// Counts the changes.
    pub generation: u64,
}

impl Registry {
    pub fn with(&self, kind: Kind) -> Self {
        let key = (kind.group.to_string(), kind.plural.to_string());
        Self { rows: self.rows.insert(key, Arc::new(kind)), generation: self.generation + 1 }
    }

    pub fn without(&self, group: &str, plural: &str) -> Self {
        Self { rows: self.rows.remove(&(group.to_owned(), plural.to_owned())), generation: self.generation + 1 }
    }

    /// The row at `/apis/{group}/{version}/{plural}`, if it is served there.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<(&Arc<Kind>, &Version)> {
        let kind = self.find(group, plural)?;
        let version = kind.version(version).filter(|it| it.is_served)?;
        Some((kind, version))
    }

    pub fn find(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.rows.get(&(group.to_owned(), plural.to_owned()))
    }

    /// The row of a kind by its name.
    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.iter().find(|it| it.group == group && it.kind == kind)
    }

    /// The row whose objects are stored under this key (`apps/deployments`).
    pub fn by_storage(&self, resource: &str) -> Option<&Arc<Kind>> {
        let (group, plural) = resource.rsplit_once('/').unwrap_or(("", resource));
        self.find(group, plural)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.rows.values()
    }
}
