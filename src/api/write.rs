//! The write path: what every create and update goes through, whatever the kind.
//!
//! The object is made from a snapshot, defaulted, admitted, prepared and validated outside the store's writer, then submitted
//! under the condition that nothing has changed; when something has, all of it runs again, as upstream's `GuaranteedUpdate`.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    Server,
    admission::{self, Context, Operation, Requester},
    quota, service,
    target::Target,
};
use crate::{
    base::{backoff::Backoff, clock},
    kinds::{Action, Change as Step, pipeline::SERVER_OWNED},
    meta::{Meta, Path, Result, Status, Value, options::WriteOptions},
    schema::apply,
    store::{Change, Expect, Key, Rejected, Snapshot, Stored, Transaction, Write},
};

/// Attempts at a write that others keep overtaking (`MaxRetryWhenPatchConflicts`).
const ATTEMPTS: u32 = 5;
/// Attempts at an update whose client asked for no particular revision; the bound only stops a livelock.
const ATTEMPTS_UNCONDITIONAL: u32 = 100;
/// How long a create waits that was overtaken by others which write the same quota: in the longest time some dozens of them are through.
const AGAIN_FIRST: Duration = Duration::from_millis(1);
const AGAIN_MOST: Duration = Duration::from_millis(64);
/// Attempts at a generated name (`maxNameGenerationCreateAttempts`).
const NAME_ATTEMPTS: u32 = 8;
/// The random letters of a generated name: no vowels, so that no words appear.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX: usize = 5;
/// The longest prefix of a generated name (`maxGeneratedNameLength`).
const NAME_PREFIX_MAX: usize = 63 - NAME_SUFFIX;

/// Who writes, and how.
pub struct Writer<'a> {
    pub server: &'a Server,
    pub requester: &'a Requester,
    pub target: &'a Target,
    pub options: &'a WriteOptions,
    /// Text of the `User-Agent` header up to the first slash; the field manager when none is named.
    pub agent: &'a str,
    pub admits: Admits<'a>,
    /// The configuration that is applied (server-side apply), if this is not an update.
    pub applies: Option<&'a Value>,
}

/// What admission sees of an update.
#[derive(Clone, Copy)]
pub enum Admits<'a> {
    /// The object.
    Object,
    /// Its scale, through which the write came.
    Scale(&'a Target, &'a Action),
    /// Nothing: what led to the write was admitted instead.
    Nothing,
}

/// What a write left behind.
pub struct Written {
    pub object: Arc<Stored>,
    pub is_created: bool,
}

impl Writer<'_> {
    /// Creates `object`, which is decoded in the target's version.
    pub async fn create(&self, mut object: Value) -> Result<Written> {
        self.place(&mut object)?;
        self.admit_new(&mut object).await?;
        let is_generated = object.name().is_empty() && !object.metadata("generateName").is_empty();
        let mut names_left = if is_generated { NAME_ATTEMPTS } else { 1 };
        let mut last = Status::modified(&self.target.resource(), object.name());
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        for _ in 0..ATTEMPTS_UNCONDITIONAL {
            let mut new = object.clone();
            if is_generated {
                new.set_metadata("name", generated_name(object.metadata("generateName")));
            }
            let name = new.name().to_owned();
            match self.try_create(new).await? {
                Ok(object) => return Ok(Written { object, is_created: true }),
                Err(status) if status.is_already_exists() => {
                    names_left -= 1;
                    if names_left == 0 {
                        return Err(if is_generated { Status::generate_name_conflict(&self.target.resource(), &name, 1) } else { status });
                    }
                }
                // Of a quota, or of the addresses, somebody else has taken meanwhile.
                Err(overtaken) => {
                    last = overtaken;
                    tokio::time::sleep(backoff.next_delay_by_chance()).await;
                }
            }
        }
        Err(last)
    }

    /// What comes before the object has its name and uid: defaults, managers, and the admission that may change it.
    async fn admit_new(&self, object: &mut Value) -> Result<()> {
        SERVER_OWNED.iter().for_each(|it| object.remove_metadata(it));
        self.target.fill(object);
        self.record(&Value::Null, object)?;
        let (snapshot, options) = (self.server.store.snapshot(), self.options.to_value("CreateOptions"));
        admission::mutate(&self.context(&snapshot, Operation::Create, None, &options), object).await?;
        self.place(object)
    }

    /// Records whose fields are whose; what is applied is brought together with what is there.
    fn record(&self, old: &Value, new: &mut Value) -> Result<()> {
        let (target, now) = (self.target, clock::now_rfc3339());
        let (kind, schema) = (&target.kind, &target.version().schema);
        let name = if self.options.field_manager.is_empty() { self.agent } else { &self.options.field_manager };
        let manager = apply::Manager { name, api_version: &target.view().api_version(), subresource: target.subresource_name(), now: &now };
        let reset: &[&[&str]] = match target.subresource_name() {
            "" if kind.strategy.resets_status => &[&["status"]],
            "status" => &[&["spec"]],
            _ => &[],
        };
        let Some(configuration) = self.applies else {
            apply::update(old, new, schema, &manager, reset);
            return Ok(());
        };
        let mut merged = apply::apply(old, configuration, schema, &manager, self.options.is_forced.unwrap_or(false), reset)?;
        match old {
            Value::Null => new.set_metadata("managedFields", merged["metadata"]["managedFields"].take()),
            old => *new = kind.confine(target.subresource.as_ref(), old, merged),
        }
        Ok(())
    }

    fn context<'c>(&'c self, snapshot: &'c Snapshot, operation: Operation, old: Option<&'c Value>, options: &'c Value) -> Context<'c> {
        let Self { server, requester, target, .. } = *self;
        Context { server, requester, target, snapshot, operation, old, options, is_dry_run: self.options.is_dry_run }
    }

    /// The namespace and, for a named target, the name must be the path's.
    fn place(&self, object: &mut Value) -> Result<()> {
        self.target.check_name(object)?;
        if self.target.kind.is_namespaced() {
            object.set_metadata("namespace", self.target.namespace.as_str());
        }
        Ok(())
    }

    async fn try_create(&self, mut new: Value) -> Attempted {
        let snapshot = self.server.store.snapshot();
        self.target.kind.start(self.target.version(), &mut new);
        new.set_metadata("uid", uuid::Uuid::new_v4().to_string());
        new.set_metadata("creationTimestamp", clock::now_rfc3339());
        self.target.fill(&mut new);
        let options = self.options.to_value("CreateOptions");
        let context = self.context(&snapshot, Operation::Create, None, &options);
        let companions = self.finish(&context, &mut new, Step::Create).await?;
        if !new.resource_version().is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let key = self.target.key_of(new.name());
        if self.options.is_dry_run && snapshot.get(&key).is_some() {
            return Ok(Err(Status::already_exists(&self.target.resource(), &key.name)));
        }
        self.submit(&context, key, Expect::Absent, &new, companions).await
    }

    /// The last steps before an object is written: what the kind and the cluster make of it, and whether it may be so. Returns what is to be
    /// written beside it.
    async fn finish(&self, context: &Context<'_>, new: &mut Value, step: Step<'_>) -> Result<Vec<Write>> {
        let kind = &self.target.kind;
        kind.prepare(self.target.version(), new, step);
        let companions = service::allocate(context, new)?;
        if let Some(old) = step.old() {
            kind.count(self.target.subresource.as_ref(), old, new);
        }
        let (errors, warnings) = kind.check(self.target.version(), new, step);
        warnings.iter().for_each(|it| self.requester.warn(it));
        if !errors.is_empty() {
            return Err(kind.invalid(new.name(), errors));
        }
        self.validate(context, new).await?;
        Ok(companions)
    }

    /// Writes the object, or says in a dry run what would be written. One that has waited only for this write goes with it.
    async fn submit(&self, context: &Context<'_>, key: Key, expect: Expect, new: &Value, mut companions: Vec<Write>) -> Attempted {
        let (server, target) = (self.server, self.target);
        companions.extend(quota::charge(context, new)?);
        if self.options.is_dry_run {
            return Ok(Ok(Arc::new(self.dry(key, new))));
        }
        let draft = server.draft(target.view(), new).await?;
        let grace = new.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
        let is_gone = new.deletion_timestamp().is_some() && grace == 0 && !target.kind.is_held(new);
        if is_gone {
            companions.extend(service::release(context.snapshot, target, new));
        }
        let change = if is_gone { Change::Delete(draft) } else { Change::Put(draft) };
        match server.submit(target, Write { key, expect, change }, companions).await {
            Err(status) if status.is_conflict() || status.is_already_exists() => Ok(Err(status)),
            other => other.map(Ok),
        }
    }

    /// Changes the object that is there: `change` gets it in the target's version and returns it as it should be.
    /// `create` is made when nothing is there and the kind allows it.
    pub async fn update(&self, is_conditional: bool, change: Make<'_>, create: Option<Value>) -> Result<Written> {
        let attempts = if is_conditional { ATTEMPTS } else { ATTEMPTS_UNCONDITIONAL };
        let mut last = Status::modified(&self.target.resource(), &self.target.name);
        for _ in 0..attempts {
            let snapshot = self.server.store.snapshot();
            let Some(stored) = snapshot.get(&self.target.key()) else {
                return match create {
                    Some(object) if self.target.kind.strategy.creates_on_update => self.create(object).await,
                    _ => Err(Status::not_found(&self.target.resource(), &self.target.name)),
                };
            };
            match self.try_update(&snapshot, &stored, change).await? {
                Ok(object) => return Ok(Written { object, is_created: false }),
                Err(overtaken) => last = overtaken,
            }
        }
        Err(last)
    }

    /// Applies a configuration (server-side apply).
    pub async fn apply(&self, configuration: Value) -> Result<Written> {
        let (writer, target) = (Writer { applies: Some(&configuration), ..*self }, self.target);
        if target.subresource.is_none() && self.server.store.snapshot().get(&target.key()).is_none() {
            match writer.create(configuration.clone()).await {
                Err(status) if status.is_already_exists() => (),
                other => return other,
            }
        }
        let expected = configuration.resource_version().to_owned();
        let keep = |old: &Value| match expected.is_empty() || expected == old.resource_version() {
            true => Ok(old.clone()),
            false => Err(Status::modified(&target.resource(), old.name())),
        };
        writer.update(false, &keep, None).await
    }

    async fn try_update(&self, snapshot: &Snapshot, stored: &Arc<Stored>, change: Make<'_>) -> Attempted {
        let kind = &self.target.kind;
        let old = self.server.served_one(self.target.view(), stored.clone()).await?.value();
        let wanted = change(&old)?;
        self.preconditions(&old, &wanted)?;
        let mut new = kind.confine(self.target.subresource.as_ref(), &old, wanted);
        let settle = |new: &mut Value| {
            kind.keep(&old, new);
            self.target.fill(new);
        };
        // What a client sends has its defaults before it is told who owns what; what it applies gets them afterwards.
        match self.applies {
            None => {
                settle(&mut new);
                self.record(&old, &mut new)?;
            }
            Some(_) => {
                self.record(&old, &mut new)?;
                settle(&mut new);
            }
        }
        let options = self.options.to_value("UpdateOptions");
        let context = self.context(snapshot, Operation::Update, Some(&old), &options);
        self.mutate(&context, &mut new).await?;
        let step = self.target.subresource.as_ref().map_or(Step::Update(&old), |it| Step::Part(it.name, &old));
        let companions = self.finish(&context, &mut new, step).await?;
        if new == old {
            return Ok(Ok(stored.clone()));
        }
        self.submit(&context, stored.key.clone(), Expect::At(stored.revision), &new, companions).await
    }

    async fn mutate(&self, context: &Context<'_>, new: &mut Value) -> Result<()> {
        match self.admits {
            Admits::Nothing => Ok(()),
            Admits::Object => admission::mutate(context, new).await,
            Admits::Scale(target, action) => {
                let (old, mut changed) = (context.old.map(|it| scale(it, action)), scale(new, action));
                admission::mutate(&Context { target, old: old.as_ref(), ..*context }, &mut changed).await?;
                set_scale(new, &changed, action);
                Ok(())
            }
        }
    }

    async fn validate(&self, context: &Context<'_>, new: &Value) -> Result<()> {
        match self.admits {
            Admits::Nothing => Ok(()),
            Admits::Object => admission::validate(context, new).await,
            Admits::Scale(target, action) => {
                let old = context.old.map(|it| scale(it, action));
                admission::validate(&Context { target, old: old.as_ref(), ..*context }, &scale(new, action)).await
            }
        }
    }

    fn preconditions(&self, old: &Value, new: &Value) -> Result<()> {
        let resource = self.target.resource();
        let asked = new.resource_version();
        if asked != old.resource_version() && asked.parse::<u64>().is_err() && !asked.is_empty() {
            return Err(Status::bad_request(format!("strconv.ParseUint: parsing {asked:?}: invalid syntax")));
        }
        if !asked.is_empty() && asked != old.resource_version() {
            return Err(Status::modified(&resource, old.name()));
        }
        if asked.is_empty() && !self.target.kind.strategy.updates_unconditionally {
            let errors = vec![crate::meta::FieldError::invalid(&Path::new("metadata").child("resourceVersion"), 0, "must be specified for an update")];
            return Err(Status::invalid(&resource.group, &resource.resource, old.name(), errors));
        }
        Ok(())
    }

    /// What a dry run answers: the object as it would be stored.
    fn dry(&self, key: Key, object: &Value) -> Stored {
        let mut value = object.clone();
        value["apiVersion"] = self.target.view().api_version().into();
        value["kind"] = self.target.kind.kind.as_ref().into();
        let revision = value.resource_version().parse().unwrap_or_default();
        Stored { key, revision, header: self.target.view().header(&value), json: value.to_string().into(), forms: Default::default() }
    }
}

/// The inner error says that somebody else wrote first: what was written, or written beside it, is no more as it was read.
type Attempted = Result<Result<Arc<Stored>>>;
/// Makes the new object from the old one.
pub type Make<'a> = &'a (dyn Fn(&Value) -> Result<Value> + Send + Sync);
impl Server {
    /// Submits the write of a target's object and what goes with it; the error is what a refusal means to a client.
    pub async fn submit(&self, target: &Target, write: Write, companions: Vec<Write>) -> Result<Arc<Stored>> {
        let own = write.key.clone();
        let writes = std::iter::once(write).chain(companions).collect();
        let rejected = match self.store.submit(Transaction { writes }).await {
            Ok(committed) => return committed.objects.into_iter().next().flatten().ok_or_else(|| Status::internal("nothing was written")),
            Err(rejected) => rejected,
        };
        Err(match rejected {
            Rejected::Exists(existing) if existing.key == own => Status::already_exists(&target.resource(), &own.name),
            Rejected::Changed { key, current: None } if key == own => Status::not_found(&target.resource(), &own.name),
            Rejected::Exists(_) | Rejected::Changed { .. } => Status::modified(&target.resource(), &own.name),
            Rejected::TooLarge(size) => Status::too_large(format!("Request is too large: an object of {size} bytes")),
            Rejected::Full(_) => Status::new(507, "InsufficientStorage", rejected.to_string()),
            Rejected::Unavailable(why) => Status::unavailable(why),
        })
    }
}

/// `prefix` and five random letters.
fn generated_name(prefix: &str) -> String {
    let end = prefix.char_indices().map(|(at, _)| at).take_while(|at| *at <= NAME_PREFIX_MAX).last().unwrap_or(0);
    let prefix = if prefix.len() > NAME_PREFIX_MAX { &prefix[..end] } else { prefix };
    let random = uuid::Uuid::new_v4();
    let letters = random.as_bytes().iter().take(NAME_SUFFIX).map(|byte| char::from(NAME_LETTERS[usize::from(*byte) % NAME_LETTERS.len()]));
    prefix.chars().chain(letters).collect()
}

/// The scale of an object as `autoscaling/v1` Scale.
pub fn scale(object: &Value, action: &Action) -> Value {
    let Action::Scale { spec, status, selector } = action else { return Value::Null };
    let path = |path: &[std::borrow::Cow<'static, str>]| path.iter().try_fold(object, |value, field| value.get(field.as_ref())).cloned();
    let chosen = match path(selector) {
        Some(Value::String(text)) => text,
        Some(Value::Object(map)) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
            crate::meta::LabelSelector::from_value(Some(&Value::Object(map))).map(|it| it.to_string()).unwrap_or_default()
        }
        Some(Value::Object(map)) => crate::meta::LabelSelector::from_map(map.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))).to_string(),
        _ => String::new(),
    };
    let metadata = |field: &str| object.at(&["metadata", field]).cloned().unwrap_or_default();
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": object.name(), "namespace": object.namespace(), "uid": object.uid(), "resourceVersion": object.resource_version(), "creationTimestamp": metadata("creationTimestamp")},
        "spec": {"replicas": path(spec).unwrap_or_else(|| 0.into())},
        "status": {"replicas": path(status).unwrap_or_else(|| 0.into())},
    });
    if scale["spec"]["replicas"] == 0 {
        scale["spec"] = json!({});
    }
    if !chosen.is_empty() {
        scale["status"]["selector"] = chosen.into();
    }
    scale
}

/// Writes the replicas of a scale into its object.
pub fn set_scale(object: &mut Value, scale: &Value, action: &Action) {
    if let Action::Scale { spec, .. } = action {
        let path: Vec<&str> = spec.iter().map(AsRef::as_ref).collect();
        object.set_at(&path, scale.int_at(&["spec", "replicas"]).unwrap_or(0));
    }
}
