//! Who owns whom, and what to do about one object: pure. Follows garbagecollector/{graph,graph_builder,garbagecollector}.go.

use std::collections::{HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

use crate::meta::object::split_api_version;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";
/// So many uids of objects known to be gone are kept, to spare their dependents a look-up each (`absentOwnerCache`).
const GONE_MOST: usize = 500;

/// Where an object is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coordinates {
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// What a watch shows of an object.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub at: Coordinates,
    pub version: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub is_deleting: bool,
}

impl Seen {
    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|it| it == finalizer)
    }

    fn deletes_dependents(&self) -> bool {
        self.is_deleting && self.has(FOREGROUND)
    }

    /// It loses a finalizer, after its dependents have been changed.
    fn let_go(&self, finalizer: &str, dependents: Vec<OwnerChange>) -> Step {
        let finalizers = self.finalizers.iter().filter(|it| *it != finalizer).cloned().collect();
        Step::SetFinalizers { dependents, at: self.at.clone(), version: self.version.clone(), finalizers }
    }
}

/// What is known of one owner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Solid,
    /// It waits for its dependents to be deleted.
    Waiting,
    Gone,
    /// A reference that cannot point at anything: from a cluster-scoped object to a namespaced one.
    Unresolvable,
}

/// An object, its version, and the owners that it is to have.
pub type OwnerChange = (Coordinates, String, Vec<OwnerReference>);

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Others have to go first.
    Wait(Vec<String>),
    Delete {
        at: Coordinates,
        uid: String,
        version: String,
        policy: PropagationPolicy,
        unblock: Vec<OwnerChange>,
    },
    SetOwners(OwnerChange),
    /// Once its dependents no longer name it.
    SetFinalizers {
        dependents: Vec<OwnerChange>,
        at: Coordinates,
        version: String,
        finalizers: Vec<String>,
    },
}

#[derive(Default)]
pub struct Graph {
    objects: HashMap<String, Seen>,
    /// owner uid -> the uids of those that name it, whether it was seen or not.
    dependents: HashMap<String, HashSet<String>>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl Graph {
    /// Takes in an object as it is now. Returns the uids to attempt.
    pub fn saw(&mut self, uid: &str, seen: Seen) -> Vec<String> {
        let old = self.objects.insert(uid.to_owned(), seen.clone());
        let before: HashSet<String> = old.iter().flat_map(|it| &it.owners).map(|it| it.uid.clone()).collect();
        let after: HashSet<String> = seen.owners.iter().map(|it| it.uid.clone()).collect();
        for owner in before.difference(&after) {
            self.unlink(owner, uid);
        }
        for owner in &after {
            self.dependents.entry(owner.clone()).or_default().insert(uid.to_owned());
        }
        let mut due: Vec<String> = before.difference(&after).filter(|it| self.is_deleting_dependents(it)).cloned().collect();
        if after.iter().any(|it| !self.objects.contains_key(it)) || after.iter().any(|it| self.is_deleting_dependents(it)) {
            due.push(uid.to_owned());
        }
        due.extend(after.iter().filter(|it| self.is_deleting_dependents(it)).cloned());
        if seen.deletes_dependents() {
            due.extend(self.dependents_of(uid));
            due.push(uid.to_owned());
        }
        if seen.is_deleting && seen.has(ORPHAN) {
            due.push(uid.to_owned());
        }
        due
    }

    /// Takes out an object that is gone. Returns the uids to attempt.
    pub fn lost(&mut self, uid: &str) -> Vec<String> {
        let Some(seen) = self.objects.remove(uid) else {
            return Vec::new();
        };
        self.remember_gone(uid);
        seen.owners.iter().for_each(|it| self.unlink(&it.uid, uid));
        let mut due = self.dependents_of(uid);
        due.extend(seen.owners.into_iter().map(|it| it.uid).filter(|it| self.is_deleting_dependents(it)));
        due
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn remember_gone(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        if self.gone_order.len() > GONE_MOST
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn is_deleting_dependents(&self, uid: &str) -> bool {
        self.objects.get(uid).is_some_and(Seen::deletes_dependents)
    }

    pub fn namespace_of(&self, uid: &str) -> String {
        self.objects.get(uid).map(|it| it.at.namespace.clone()).unwrap_or_default()
    }

    /// The owners of `uid` about which only the server knows.
    pub fn unknown_owners(&self, uid: &str) -> Vec<OwnerReference> {
        let owners = self.objects.get(uid).filter(|it| !it.is_deleting).map(|it| it.owners.as_slice()).unwrap_or_default();
        owners.iter().filter(|it| self.verdict(uid, it).is_none()).cloned().collect()
    }

    fn verdict(&self, uid: &str, owner: &OwnerReference) -> Option<Verdict> {
        if self.gone.contains(&owner.uid) {
            return Some(Verdict::Gone);
        }
        let (seen, dependent) = (self.objects.get(&owner.uid)?, self.objects.get(uid)?);
        let at = &seen.at;
        let is_meant = at.group == split_api_version(&owner.api_version).0 && at.kind == owner.kind && at.name == owner.name;
        let is_near = at.namespace.is_empty() || at.namespace == dependent.at.namespace;
        (is_meant && is_near).then(|| if seen.deletes_dependents() { Verdict::Waiting } else { Verdict::Solid })
    }

    /// `attemptToDeleteItem` and `attemptToOrphan`. `verdicts` are the server's on [`Graph::unknown_owners`].
    pub fn step(&self, uid: &str, verdicts: &HashMap<String, Verdict>) -> Step {
        let Some(seen) = self.objects.get(uid) else {
            return Step::Nothing;
        };
        if seen.is_deleting && seen.has(ORPHAN) {
            return self.orphan(uid, seen);
        }
        if seen.deletes_dependents() {
            return self.delete_dependents(uid, seen);
        }
        if seen.is_deleting || seen.owners.is_empty() {
            return Step::Nothing;
        }
        let verdict = |owner: &OwnerReference| self.verdict(uid, owner).or_else(|| verdicts.get(&owner.uid).copied());
        let judged: Vec<(&OwnerReference, Verdict)> = seen.owners.iter().filter_map(|it| Some((it, verdict(it)?))).collect();
        let holds = |it: &Verdict| matches!(it, Verdict::Solid | Verdict::Unresolvable);
        if judged.len() < seen.owners.len() {
            return Step::Nothing;
        }
        if judged.iter().any(|it| holds(&it.1)) {
            let owners: Vec<OwnerReference> = judged.iter().filter(|it| holds(&it.1)).map(|it| it.0.clone()).collect();
            let is_same = owners.len() == seen.owners.len();
            return if is_same { Step::Nothing } else { Step::SetOwners((seen.at.clone(), seen.version.clone(), owners)) };
        }
        let is_waited_for = judged.iter().any(|it| it.1 == Verdict::Waiting);
        self.delete(uid, seen, is_waited_for)
    }

    fn delete(&self, uid: &str, seen: &Seen, is_waited_for: bool) -> Step {
        let dependents = self.dependents_of(uid);
        let in_foreground = is_waited_for && !dependents.is_empty();
        let policy = match () {
            () if in_foreground || (!seen.has(ORPHAN) && seen.has(FOREGROUND)) => PropagationPolicy::Foreground,
            () if seen.has(ORPHAN) => PropagationPolicy::Orphan,
            () => PropagationPolicy::Background,
        };
        let unblock = if in_foreground { self.unblocked(uid, &dependents) } else { Vec::new() };
        Step::Delete { at: seen.at.clone(), uid: uid.to_owned(), version: seen.version.clone(), policy, unblock }
    }

    /// A circle of objects that wait for one another is cut: dependents that delete dependents themselves no longer block this one.
    fn unblocked(&self, owner: &str, dependents: &[String]) -> Vec<OwnerChange> {
        let waiting = dependents.iter().filter_map(|it| self.objects.get(it)).filter(|it| it.deletes_dependents());
        let change = |it: &Seen| {
            let mut owners = it.owners.clone();
            owners.iter_mut().filter(|it| it.uid == owner).for_each(|it| it.block_owner_deletion = Some(false));
            (it.at.clone(), it.version.clone(), owners)
        };
        waiting.map(change).collect()
    }

    /// `processDeletingDependentsItem`.
    fn delete_dependents(&self, uid: &str, seen: &Seen) -> Step {
        let blocks = |it: &&String| {
            let owners = self.objects.get(*it).map(|it| it.owners.as_slice()).unwrap_or_default();
            owners.iter().any(|it| it.uid == uid && it.block_owner_deletion == Some(true))
        };
        let dependents = self.dependents_of(uid);
        let blocking: Vec<String> = dependents.iter().filter(blocks).cloned().collect();
        if blocking.is_empty() {
            return seen.let_go(FOREGROUND, Vec::new());
        }
        let is_idle = |it: &String| self.objects.get(it).is_some_and(|it| !it.is_deleting);
        Step::Wait(blocking.into_iter().filter(is_idle).collect())
    }

    fn orphan(&self, uid: &str, seen: &Seen) -> Step {
        let released = |it: &String| {
            let dependent = self.objects.get(it)?;
            let owners: Vec<OwnerReference> = dependent.owners.iter().filter(|it| it.uid != uid).cloned().collect();
            Some((dependent.at.clone(), dependent.version.clone(), owners))
        };
        let dependents = self.dependents_of(uid).iter().filter_map(released).collect();
        seen.let_go(ORPHAN, dependents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, blocks: bool) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: Some(true),
            block_owner_deletion: Some(blocks),
        }
    }

    fn seen(name: &str, owners: &[OwnerReference], finalizers: &[&str], is_deleting: bool) -> Seen {
        let at = Coordinates { group: "apps".into(), kind: "ReplicaSet".into(), namespace: "ns".into(), name: name.into() };
        let finalizers = finalizers.iter().map(|it| (*it).to_owned()).collect();
        Seen { at, version: "1".into(), owners: owners.to_vec(), finalizers, is_deleting }
    }

    fn told(step: &Step) -> String {
        match step {
            Step::Nothing => "nothing".into(),
            Step::Wait(due) => format!("wait for {}", due.join(",")),
            Step::Delete { at, policy, unblock, .. } => format!("delete {} {policy:?} unblock {}", at.name, unblock.len()),
            Step::SetOwners((_, _, owners)) => format!("owners {}", owners.iter().map(|it| it.uid.as_str()).collect::<Vec<_>>().join(",")),
            Step::SetFinalizers { dependents, finalizers, .. } if dependents.is_empty() => format!("finalizers {}", finalizers.join(",")),
            Step::SetFinalizers { dependents, finalizers, .. } => format!("orphan {} finalizers {}", dependents.len(), finalizers.join(",")),
        }
    }

    #[test]
    fn the_dependents_of_a_deleted_owner_go_in_the_background() {
        let mut graph = Graph::default();
        graph.saw("a", seen("a", &[], &[], false));
        assert_eq!(graph.saw("b", seen("b", &[owner("a", true)], &[], false)), Vec::<String>::new());
        assert_eq!(told(&graph.step("b", &HashMap::new())), "nothing");
        assert_eq!(graph.lost("a"), ["b"]);
        assert_eq!(graph.unknown_owners("b"), []);
        assert_eq!(told(&graph.step("b", &HashMap::new())), "delete b Background unblock 0");
    }

    #[test]
    fn an_owner_in_foreground_deletion_waits_for_those_that_block() {
        let mut graph = Graph::default();
        graph.saw("b", seen("b", &[owner("a", true)], &[], false));
        graph.saw("c", seen("c", &[owner("a", false)], &[], false));
        let mut due = graph.saw("a", seen("a", &[], &[FOREGROUND, "x"], true));
        due.sort();
        assert_eq!(due, ["a", "b", "c"]);
        assert_eq!(told(&graph.step("a", &HashMap::new())), "wait for b");
        assert_eq!(told(&graph.step("b", &HashMap::new())), "delete b Background unblock 0");
        graph.saw("d", seen("d", &[owner("b", true)], &[], false));
        assert_eq!(told(&graph.step("b", &HashMap::new())), "delete b Foreground unblock 0");
        assert_eq!(graph.lost("b").last().map(String::as_str), Some("a"));
        assert_eq!(told(&graph.step("a", &HashMap::new())), "finalizers x");
    }

    #[test]
    fn orphans_are_released_before_their_owner_goes() {
        let mut graph = Graph::default();
        graph.saw("b", seen("b", &[owner("a", true), owner("z", false)], &[], false));
        assert_eq!(graph.saw("a", seen("a", &[], &[ORPHAN], true)), ["a"]);
        assert_eq!(told(&graph.step("a", &HashMap::new())), "orphan 1 finalizers ");
    }

    #[test]
    fn owners_that_no_watch_showed_are_asked_for() {
        // (verdict on z, a is seen) -> what happens to b, owned by a and z
        let cases = [
            (Verdict::Gone, true, "owners a"),
            (Verdict::Solid, true, "nothing"),
            (Verdict::Unresolvable, true, "nothing"),
            (Verdict::Waiting, true, "owners a"),
        ];
        for (verdict, _, expected) in cases {
            let mut graph = Graph::default();
            graph.saw("a", seen("a", &[], &[], false));
            assert_eq!(graph.saw("b", seen("b", &[owner("a", true), owner("z", false)], &[], false)), ["b"]);
            assert_eq!(graph.unknown_owners("b").len(), 1);
            assert_eq!(told(&graph.step("b", &[("z".to_owned(), verdict)].into())), expected);
        }
    }

    #[test]
    fn an_owner_in_another_namespace_is_no_owner() {
        let mut graph = Graph::default();
        let mut elsewhere = seen("a", &[], &[], false);
        elsewhere.at.namespace = "other".into();
        graph.saw("a", elsewhere);
        graph.saw("b", seen("b", &[owner("a", true)], &[], false));
        assert_eq!(graph.unknown_owners("b").len(), 1, "the server is asked, in the dependent's namespace");
    }
}
