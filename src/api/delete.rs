//! Deletion: preconditions, grace, finalizers, and what becomes of the dependents.
//! Source: apiserver `pkg/registry/rest/delete.go`, `pkg/registry/generic/registry/store.go` (`deletionFinalizersForGarbageCollection`).

use std::sync::Arc;

use jiff::SignedDuration;

use super::{
    Server,
    admission::{self, Context, Operation, Requester},
    service,
    target::Target,
};
use crate::{
    base::clock,
    meta::{
        FieldError, FieldErrors, Meta, Path, Result, Status, Value,
        object::GroupResource,
        options::{DeleteOptions, Propagation, Query, dry_run, invalid},
    },
    store::{Change, Expect, Snapshot, Stored, Write},
};

/// Attempts at a deletion that others overtake.
const ATTEMPTS: u32 = 100;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion left.
pub enum Deleted {
    /// The object waits for its grace period or finalizers.
    Waiting(Arc<Stored>),
    Gone(Arc<Stored>),
}

/// The options of a deletion: from the body, and where it has none from the query.
pub fn options(body: &Value, query: &Query) -> Result<DeleteOptions> {
    let text = |path: &[&str]| Some(body.text_at(path)).filter(|it| !it.is_empty()).map(str::to_owned);
    let policy = text(&["propagationPolicy"]).or_else(|| query.get("propagationPolicy").map(str::to_owned));
    let (mut errors, path, by_flag) = (FieldErrors::new(), Path::new("propagationPolicy"), orphan_flag(body, query));
    let propagation = match policy.as_deref() {
        None | Some("") => by_flag,
        Some(policy) => {
            if by_flag.is_some() {
                errors.push(FieldError::invalid(&path, policy, "orphanDependents and deletionPropagation cannot be both set"));
            }
            let known = Propagation::parse(policy);
            errors.extend(known.is_none().then(|| FieldError::not_supported(&path, policy, &["Foreground", "Background", "Orphan", "nil"])));
            known
        }
    };
    let is_dry_run = dry_run(body.texts_at(&["dryRun"]).chain(query.all("dryRun")), &mut errors);
    if !errors.is_empty() {
        return Err(invalid("DeleteOptions", errors));
    }
    Ok(DeleteOptions {
        grace_period_seconds: match body.int_at(&["gracePeriodSeconds"]) {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        },
        uid: text(&["preconditions", "uid"]),
        resource_version: text(&["preconditions", "resourceVersion"]),
        propagation,
        is_dry_run,
    })
}

/// `orphanDependents`, the older word.
fn orphan_flag(body: &Value, query: &Query) -> Option<Propagation> {
    let flag = body.get("orphanDependents").and_then(Value::as_bool).or_else(|| query.flag("orphanDependents"))?;
    Some(if flag { Propagation::Orphan } else { Propagation::Background })
}

/// One object that is to go, and how.
pub struct Deletion<'a> {
    pub server: &'a Server,
    pub target: &'a Target,
    pub options: &'a DeleteOptions,
    /// Whose request it is; `None` where none is left to be admitted.
    pub requester: Option<&'a Requester>,
}

/// What is to change beside a deletion: in the object itself, and in others.
pub type Prepare<'a> = &'a (dyn Fn(&Snapshot, &mut Value) -> Result<Vec<Write>> + Send + Sync);

impl Deletion<'_> {
    /// Deletes the object, or begins to.
    pub async fn run(&self) -> Result<Deleted> {
        self.run_with(&|_, _| Ok(Vec::new())).await
    }

    pub async fn run_with(&self, prepare: Prepare<'_>) -> Result<Deleted> {
        let Self { server, target, options, .. } = *self;
        let resource = target.resource();
        for _ in 0..ATTEMPTS {
            let snapshot = server.store.snapshot();
            let stored = snapshot.get(&target.key()).ok_or_else(|| Status::not_found(&resource, &target.name))?;
            let old = server.served_one(target.view(), stored.clone()).await?.value();
            preconditions(target, &old, options)?;
            self.admit(&snapshot, &old).await?;
            let mut prepared = old.clone();
            let mut companions = prepare(&snapshot, &mut prepared)?;
            let (mut new, is_gone) = plan(target, prepared, options);
            if options.is_dry_run {
                return Ok(if is_gone { Deleted::Gone(stored) } else { Deleted::Waiting(stored) });
            }
            if new == old && !is_gone {
                return Ok(Deleted::Waiting(stored));
            }
            if !is_gone && target.kind.strategy.has_generation && old.deletion_timestamp().is_none() {
                new.set_metadata("generation", old.generation() + 1);
            }
            let draft = server.draft(target.view(), &new).await?;
            let change = if is_gone { Change::Delete(draft) } else { Change::Put(draft) };
            let write = Write { key: stored.key.clone(), expect: Expect::At(stored.revision), change };
            if is_gone {
                companions.extend(service::release(&snapshot, target, &new));
            }
            match server.submit(target, write, companions).await {
                Ok(object) => return Ok(if is_gone { Deleted::Gone(object) } else { Deleted::Waiting(object) }),
                Err(status) if status.is_conflict() => (),
                Err(status) => return Err(status),
            }
        }
        Err(Status::modified(&resource, &target.name))
    }

    async fn admit(&self, snapshot: &Snapshot, old: &Value) -> Result<()> {
        let Some(requester) = self.requester else { return Ok(()) };
        let Self { server, target, options, .. } = *self;
        let sent = options.to_value();
        let context = Context { server, requester, target, snapshot, operation: Operation::Delete, old: Some(old), options: &sent, is_dry_run: options.is_dry_run };
        admission::remove(&context).await
    }
}

fn preconditions(target: &Target, old: &Value, options: &DeleteOptions) -> Result<()> {
    let resource = target.resource();
    if target.kind.strategy.is_emptied && matches!(old.name(), "default" | "kube-system" | "kube-public") {
        return Err(Status::forbidden(&resource, old.name(), "this namespace may not be deleted"));
    }
    // `BeforeDelete` tells the kind in the place of the resource.
    let about = GroupResource::new(target.kind.group.clone(), target.kind.kind.clone());
    let fail = |what: &str, asked: &str, found: &str, maybe: &str| {
        let why = format!("the {what} in the precondition ({asked}) does not match the {what} in record ({found}). The object might have been {maybe}");
        Err(Status::conflict(&about, old.name(), why))
    };
    match (&options.uid, &options.resource_version) {
        (Some(uid), _) if *uid != old.uid() => fail("UID", uid, old.uid(), "deleted and then recreated"),
        (_, Some(revision)) if *revision != old.resource_version() => fail("ResourceVersion", revision, old.resource_version(), "modified"),
        _ => Ok(()),
    }
}

/// The object as the deletion leaves it, and whether it goes at once.
fn plan(target: &Target, mut new: Value, options: &DeleteOptions) -> (Value, bool) {
    let old = &new.clone();
    let strategy = target.kind.strategy;
    let asked = options.grace_period_seconds.map(|it| if it < 0 { 1 } else { it });
    let grace = strategy.grace.map_or(0, |it| it(old, asked));
    set_finalizers(&mut new, target, options);
    let is_held = target.kind.is_held(&new);
    // What goes at once is told as it was.
    if strategy.grace.is_none() && !is_held {
        return (new, true);
    }
    let running = old.int_at(&["metadata", "deletionGracePeriodSeconds"]);
    let is_shortened = match (old.deletion_timestamp(), running) {
        (None, _) => true,
        (Some(_), Some(running)) => options.grace_period_seconds.is_some() && grace < running,
        (Some(_), None) => false,
    };
    if is_shortened {
        let at = clock::now().checked_add(SignedDuration::from_secs(grace)).unwrap_or_else(|_| clock::now());
        new.set_metadata("deletionTimestamp", clock::rfc3339(at));
        new.set_metadata("deletionGracePeriodSeconds", grace);
    }
    if strategy.is_emptied {
        new.set_at(&["status", "phase"], "Terminating");
    }
    let left = new.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
    (new, !is_held && left == 0)
}

/// Orphaning and foreground deletion are finalizers that the garbage collector takes away.
fn set_finalizers(new: &mut Value, target: &Target, options: &DeleteOptions) {
    let has = |name: &str| new.finalizers().any(|it| it == name);
    let orphans = match options.propagation {
        Some(asked) => asked == Propagation::Orphan,
        None => has(ORPHAN) || (target.kind.strategy.orphans_by_default && !has(FOREGROUND)),
    };
    let is_foreground = options.propagation.map_or_else(|| has(FOREGROUND), |it| it == Propagation::Foreground);
    let mut finalizers: Vec<Value> = new.finalizers().filter(|it| !matches!(*it, ORPHAN | FOREGROUND)).map(Value::from).collect();
    finalizers.extend(orphans.then(|| ORPHAN.into()));
    finalizers.extend(is_foreground.then(|| FOREGROUND.into()));
    match finalizers.is_empty() {
        true => new.remove_metadata("finalizers"),
        false => new.set_metadata("finalizers", finalizers),
    }
}
