//! What a controller has asked for and not yet seen in its cache: until it has, its view is stale and it must not act again.
//! Follows `UIDTrackingControllerExpectations` of pkg/controller/controller_utils.go.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::ObjectKey;

/// `ExpectationsTimeout`: after this the cache is trusted again, lest a lost event block a controller for ever.
const EXPIRY: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub struct Expectations {
    open: Mutex<HashMap<ObjectKey, Open>>,
}

struct Open {
    creations: i64,
    /// Uids, so that an object seen terminating and then gone counts once.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// So many objects are to appear, and those of these uids to go.
    pub fn expect(&self, key: &ObjectKey, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let open = Open { creations: creations as i64, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.open.lock().insert(key.clone(), open);
    }

    pub fn creation_observed(&self, key: &ObjectKey) {
        if let Some(open) = self.open.lock().get_mut(key) {
            open.creations -= 1;
        }
    }

    pub fn deletion_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(open) = self.open.lock().get_mut(key) {
            open.deletions.remove(uid);
        }
    }

    /// Whether the cache can be trusted for `key`.
    pub fn are_satisfied(&self, key: &ObjectKey) -> bool {
        self.open.lock().get(key).is_none_or(|it| (it.creations <= 0 && it.deletions.is_empty()) || it.since.elapsed() > EXPIRY)
    }

    pub fn forget(&self, key: &ObjectKey) {
        self.open.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_waits_for_all_it_asked_for() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("ns", "rs"));
        assert!(expectations.are_satisfied(&key));
        expectations.expect(&key, 2, []);
        expectations.creation_observed(&key);
        assert!(!expectations.are_satisfied(&key));
        expectations.creation_observed(&key);
        assert!(expectations.are_satisfied(&key));
        expectations.expect(&key, 0, ["u1".to_owned(), "u2".to_owned()]);
        expectations.deletion_observed(&key, "u1");
        expectations.deletion_observed(&key, "u1");
        assert!(!expectations.are_satisfied(&key));
        expectations.deletion_observed(&key, "u2");
        assert!(expectations.are_satisfied(&key));
    }
}
