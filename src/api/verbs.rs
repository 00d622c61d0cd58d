//! What is done for each verb: one function a verb, for every kind.
//!
//! A request comes from `http.rs` authenticated and authorized; here its target is found, its body decoded, the verb carried out
//! (`list.rs`, `watch.rs`, `write.rs`, `delete.rs`), and the answer put into the form that the client asked for.

use std::{sync::Arc, time::Duration};

use ::http::header;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Request, Response, Server,
    admission::{self, Context, Operation, Requester},
    body, componentstatus, connect,
    delete::{self, Deleted, Deletion},
    forms, http,
    identity::{Attributes, User},
    list, negotiation::{self, Encoding, Form, Shape},
    patch, registration, reviews, subresources, target::Target, watch, websocket::Socket,
    write::{Admits, Writer, Written},
};
use crate::{
    kinds::{self, Action, CREATE_ONLY, READ_ONLY},
    meta::{
        Meta, Result, Status, Value,
        object::split_api_version,
        options::{DeleteOptions, FieldValidation, ListOptions, Query, WriteOptions},
    },
    schema::{self, codec::Notes, protobuf},
    store::{Snapshot, Stored},
};

/// One request, as the verbs see it.
pub struct Call {
    pub server: Arc<Server>,
    pub requester: Requester,
    pub info: Attributes,
    pub query: Query,
    /// Text of the `User-Agent` header up to the first slash.
    agent: String,
    pub target: Target,
    pub form: Form,
}

/// Carries out a request of the resource API.
pub async fn serve(server: Arc<Server>, user: User, info: Attributes, query: Query, request: Request) -> Result<Response> {
    registration::await_kind(&server, &info.group, &info.resource).await;
    let target = Target::find(&server.registry.load(), &info)?;
    let within = within(&query)?;
    let requester = Requester::new(user, Instant::now() + within.min(ADMITTED_WITHIN));
    let action = target.subresource.as_ref().map(|it| it.action.clone()).filter(is_stream);
    let form = if action.is_some() { Form { encoding: Encoding::Json, shape: Shape::Object, is_beta: false } } else { Form::negotiate(request.headers(), &query, target.kind.custom.is_none())? };
    let agent = request.headers().get(header::USER_AGENT).and_then(|it| it.to_str().ok()).unwrap_or("unknown");
    let agent = agent.split('/').next().unwrap_or_default().to_owned();
    let call = Call { server, requester, info, query, agent, target, form };
    let answered = match action {
        Some(action) => call.stream(&action, request).await,
        // A watch ends by a time of its own.
        None if call.info.verb == "watch" => call.dispatch(request).await,
        None => tokio::time::timeout(within, Box::pin(call.dispatch(request))).await.unwrap_or_else(|_| Err(overdue())),
    };
    // What has been said on the way is said of a refusal too.
    let mut response = answered.unwrap_or_else(|status| http::error(&status, form.encoding));
    let (deprecation, warnings) = (&call.target.version().deprecation, call.requester.warnings());
    deprecation.iter().map(AsRef::as_ref).chain(warnings.iter().map(String::as_str)).for_each(|it| warn(&mut response, it));
    Ok(response)
}

/// A request that is no watch may take this long (`--request-timeout`), and a write this long with admission (`requestTimeoutUpperBound`).
const TIMEOUT: Duration = Duration::from_secs(60);
const ADMITTED_WITHIN: Duration = Duration::from_secs(34);

/// How long the request may take: the client's `timeout`, and [`TIMEOUT`] at the most.
pub fn within(query: &Query) -> Result<Duration> {
    let asked = query.duration("timeout").map_err(|why| Status::bad_request(format!("invalid timeout specified in the request URL - {why}")))?;
    Ok(asked.filter(|it| !it.is_zero()).map_or(TIMEOUT, |it| it.min(TIMEOUT)))
}

/// Objects of a collection that are deleted at the same time: their writes share commits.
const DELETED_TOGETHER: usize = 64;

/// What one gets whose request took too long; it may still be carried out (`WithTimeoutForNonLongRunningRequests`).
fn overdue() -> Status {
    Status::timeout("Timeout: request did not complete within the allotted timeout")
}

fn is_stream(action: &Action) -> bool {
    matches!(action, Action::Log | Action::Exec | Action::Attach | Action::PortForward | Action::Proxy)
}

impl Call {
    /// Logs, exec, attach, port-forward and proxy: what leads to a node.
    async fn stream(&self, action: &Action, request: Request) -> Result<Response> {
        let mut target = self.target.clone();
        if *action == Action::Proxy
            && let Some((_, name, _)) = connect::split_target(&self.info.name)
        {
            target.name = name.to_owned();
        }
        if *action != Action::Log {
            self.admit_connection(self.info.proxied(request.uri().path())).await?;
        }
        let snapshot = self.server.store.snapshot();
        let object = snapshot.get(&target.key()).ok_or_else(|| Status::not_found(&target.resource(), &target.name))?;
        let object = self.server.served_one(target.view(), object).await?.value();
        self.server.nodes.connect(action, &object, &self.info, &self.query, request, &snapshot).await
    }

    /// Admission of a connection: its object is the options in the query.
    async fn admit_connection(&self, rest: &str) -> Result<()> {
        let snapshot = self.server.store.snapshot();
        let mut options = connect_options(&self.target, &self.query, rest);
        admission::admit(&self.context(&snapshot, Operation::Connect, &Value::Null, false), &mut options).await
    }

    /// Admission of what is created but not stored.
    pub async fn admit(&self, object: &mut Value, is_dry_run: bool) -> Result<()> {
        let snapshot = self.server.store.snapshot();
        let options = WriteOptions { is_dry_run, ..WriteOptions::from_query(&self.query, "CreateOptions")? }.to_value("CreateOptions");
        admission::admit(&self.context(&snapshot, Operation::Create, &options, is_dry_run), object).await
    }

    fn context<'a>(&'a self, snapshot: &'a Snapshot, operation: Operation, options: &'a Value, is_dry_run: bool) -> Context<'a> {
        Context { server: &self.server, requester: &self.requester, target: &self.target, snapshot, operation, old: None, options, is_dry_run }
    }

    async fn dispatch(&self, request: Request) -> Result<Response> {
        let (verb, is_named, part) = (self.info.verb.as_str(), !self.target.name.is_empty(), self.target.subresource.as_ref());
        let is_across = self.target.kind.is_namespaced() && self.target.namespace.is_empty();
        let is_accepted = match (part, verb) {
            (Some(part), _) => part.verbs.contains(&verb),
            // Across all namespaces objects are only read.
            (None, "create" | "deletecollection") if is_across => false,
            // A collection is created in, an object is updated: the other way round there is no such route.
            (None, "create") if is_named => false,
            (None, "update" | "patch") if !is_named => false,
            (None, _) => self.target.kind.verbs.iter().any(|it| it.as_str() == verb),
        };
        if !is_accepted {
            return Err(Status::method_not_allowed());
        }
        match (part, verb) {
            (Some(part), _) if !matches!(part.action, Action::Status | Action::Part) => subresources::serve(self, &part.action, request).await,
            (_, "get") => self.get().await,
            (_, "list") => self.list().await,
            (_, "watch") => self.watch(request).await,
            (_, "create") => self.create(request).await,
            (_, "update") => self.update(request).await,
            (_, "patch") => patch::patch(self, request).await,
            (_, "delete") => self.delete(request).await,
            _ => self.delete_collection(request).await,
        }
    }

    async fn get(&self) -> Result<Response> {
        if self.target.kind.verbs == READ_ONLY {
            return self.answer(200, componentstatus::one(&self.server, self.target.view(), &self.target.name).await?).await;
        }
        list::reached(&self.server, self.query.get("resourceVersion").unwrap_or_default()).await?;
        self.answer(200, self.stored()?).await
    }

    /// The stored object of the target; 404 without it.
    pub fn stored(&self) -> Result<Arc<Stored>> {
        let found = self.server.store.snapshot().get(&self.target.key());
        found.ok_or_else(|| Status::not_found(&self.target.resource(), &self.target.name))
    }

    /// The target as a tree.
    pub async fn value(&self) -> Result<Value> {
        Ok(self.server.served_one(self.target.view(), self.stored()?).await?.value())
    }

    async fn list(&self) -> Result<Response> {
        let options = ListOptions::from_query(&self.query)?;
        if self.target.kind.verbs == READ_ONLY {
            let (view, selection) = (self.target.view(), list::Selection::new(&self.target, &options)?);
            let all = componentstatus::all(&self.server, view).await;
            let chosen: Vec<&Stored> = all.iter().map(Arc::as_ref).filter(|it| selection.matches(it)).collect();
            return Ok(self.respond(200, view.list(&chosen, self.form, json!({}))?));
        }
        Ok(self.respond(200, list::list(&self.server, &self.target, &options, self.form).await?))
    }

    async fn watch(&self, mut request: Request) -> Result<Response> {
        let options = ListOptions::from_query(&self.query)?;
        if let Some(socket) = Socket::take(&mut request)? {
            let form = Form { encoding: Encoding::Json, ..self.form };
            let events = watch::watch(&self.server, self.target.clone(), &options, form).await?;
            return socket.send_events(events, &self.server.tasks);
        }
        let body = watch::watch(&self.server, self.target.clone(), &options, self.form).await?;
        let content_type = if self.form.encoding == Encoding::Protobuf { "application/vnd.kubernetes.protobuf;stream=watch" } else { body::JSON };
        Ok(body::respond(200, content_type, body))
    }

    async fn create(&self, request: Request) -> Result<Response> {
        let options = WriteOptions::from_query(&self.query, "CreateOptions")?;
        let (object, notes) = self.read(request).await?;
        self.strict(&options, &notes).map_err(|why| self.unfit(&why))?;
        if self.target.kind.verbs == CREATE_ONLY {
            // What is not stored has neither metadata nor rows.
            if self.form.shape != Shape::Object {
                return Err(Status::not_acceptable(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]));
            }
            return self.review(object, options.is_dry_run).await;
        }
        let written = self.writer(&options).create(object).await?;
        self.written(written).await
    }

    /// Kinds that are only an answer.
    async fn review(&self, mut object: Value, is_dry_run: bool) -> Result<Response> {
        self.admit(&mut object, is_dry_run).await?;
        if self.target.kind.kind == "Binding" {
            return subresources::bind(self, object.name(), &object).await;
        }
        let answer = reviews::answer(&self.server, &self.requester.user, &self.target.kind, &self.target.namespace, object).await?;
        self.answer_value(201, &answer)
    }

    async fn update(&self, request: Request) -> Result<Response> {
        let options = WriteOptions::from_query(&self.query, "UpdateOptions")?;
        let (object, notes) = self.read(request).await?;
        self.strict(&options, &notes).map_err(|why| self.unfit(&why))?;
        self.target.check_name(&object)?;
        let is_conditional = !object.resource_version().is_empty();
        let replace = |old: &Value| match object.uid().is_empty() || object.uid() == old.uid() {
            true => Ok(object.clone()),
            false => Err(Status::conflict(&self.target.resource(), old.name(), format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", object.uid(), old.uid()))),
        };
        let written = self.writer(&options).update(is_conditional, &replace, Some(object.clone())).await?;
        self.written(written).await
    }

    async fn delete(&self, request: Request) -> Result<Response> {
        let options = delete::options(&self.delete_body(request).await?, &self.query)?;
        match self.deletion(&self.target, &options).run().await? {
            Deleted::Waiting(object) => self.answer(200, object).await,
            Deleted::Gone(object) if self.target.kind.returns_deleted => self.answer(200, object).await,
            Deleted::Gone(object) => self.answer_value(200, &Status::success(&self.target.resource(), &object.key.name, &object.header.uid)),
        }
    }

    async fn delete_collection(&self, request: Request) -> Result<Response> {
        let options = delete::options(&self.delete_body(request).await?, &self.query)?;
        let selection = list::Selection::new(&self.target, &ListOptions::from_query(&self.query)?)?;
        let snapshot = self.server.store.snapshot();
        let all = snapshot.list(&self.target.kind.resource(), self.target.in_namespace(), None);
        let chosen = list::select(&self.server, &self.target, &selection, all).await?;
        let delete = async |object: &Arc<Stored>| self.deletion(&self.target.named(object), &options).run().await;
        let mut deletions = stream::iter(chosen.iter().map(delete)).buffer_unordered(DELETED_TOGETHER);
        while let Some(deleted) = deletions.next().await {
            match deleted {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => (),
            }
        }
        drop(deletions);
        let objects: Vec<&Stored> = chosen.iter().map(|it| it.as_ref()).collect();
        let metadata = json!({"resourceVersion": self.server.store.revision().to_string()});
        Ok(self.respond(200, self.target.view().list(&objects, self.form, metadata)?))
    }

    fn deletion<'a>(&'a self, target: &'a Target, options: &'a DeleteOptions) -> Deletion<'a> {
        Deletion { server: &self.server, target, options, requester: Some(&self.requester) }
    }

    /// `DeleteOptions` in the body, or null without one.
    async fn delete_body(&self, request: Request) -> Result<Value> {
        let headers = request.headers().clone();
        let bytes = body::read(request.into_body()).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        let encoding = negotiation::content_encoding(&headers)?;
        let schema = schema::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions").ok_or_else(|| Status::internal("no DeleteOptions"))?;
        let value = match encoding {
            Encoding::Json => schema::codec::parse_json(&bytes).map_err(|it| Status::bad_request(format!("couldn't get version/kind; json parse error: {}", it.message)))?.0,
            Encoding::Yaml => schema::codec::parse_yaml(&bytes)?.0,
            Encoding::Protobuf => return protobuf::decode(&bytes, &schema),
        };
        if !matches!(value.text("kind"), "" | "DeleteOptions") {
            return Err(Status::bad_request(format!("no kind {:?} is registered for version {:?} in scheme", value.text("kind"), value.text("apiVersion"))));
        }
        Ok(schema::codec::decode_value(value, &schema)?.0)
    }

    /// The object in the request's body: of the target's kind, or of what its subresource takes.
    pub async fn read(&self, request: Request) -> Result<(Value, Notes)> {
        let encoding = negotiation::content_encoding(request.headers())?;
        let bytes = body::read(request.into_body()).await?;
        let (api_version, kind) = self.target.body_type();
        let schema = self.target.body_schema().ok_or_else(|| Status::internal("no such type"))?;
        decode(&bytes, encoding, kind, &api_version, &schema)
    }

    /// The body is no object of its type.
    fn unfit(&self, why: &str) -> Status {
        let (api_version, kind) = self.target.body_type();
        unfit(kind, &api_version, kind, why)
    }

    pub fn writer<'a>(&'a self, options: &'a WriteOptions) -> Writer<'a> {
        Writer { server: &self.server, requester: &self.requester, target: &self.target, options, agent: &self.agent, admits: Admits::Object, applies: None }
    }

    /// The answer to a write: the object as it is now.
    pub async fn written(&self, written: Written) -> Result<Response> {
        self.answer(if written.is_created { 201 } else { 200 }, written.object).await
    }

    pub async fn answer(&self, code: u16, object: Arc<Stored>) -> Result<Response> {
        let object = self.server.served_one(self.target.view(), object).await?;
        Ok(self.respond(code, self.target.view().encode(&object, self.form)?))
    }

    pub fn answer_value(&self, code: u16, value: &Value) -> Result<Response> {
        Ok(self.respond(code, forms::encode(value, self.form.encoding)?))
    }

    fn respond(&self, code: u16, bytes: Bytes) -> Response {
        body::respond(code, self.form.encoding.media_type(), body::full(bytes))
    }

    /// What field validation makes of the notes on a body: nothing, warnings, or an error's text.
    pub fn strict(&self, options: &WriteOptions, notes: &Notes) -> std::result::Result<(), String> {
        let all = notes.all();
        match options.field_validation {
            FieldValidation::Ignore => (),
            FieldValidation::Warn => all.for_each(|it| self.requester.warn(it)),
            FieldValidation::Strict => {
                let all: Vec<&str> = all.map(String::as_str).collect();
                if !all.is_empty() {
                    return Err(format!("strict decoding error: {}", all.join(", ")));
                }
            }
        }
        Ok(())
    }
}

/// The object of a connection: what its query asks for, in the words of the options' type (`PodExecOptions` …).
fn connect_options(target: &Target, query: &Query, rest: &str) -> Value {
    let (api_version, kind) = target.body_type();
    let mut options = json!({"kind": kind, "apiVersion": api_version});
    let Some(shape) = target.body_schema() else { return options };
    for field in shape.as_struct().map(|it| it.fields.as_slice()).unwrap_or_default() {
        let Some(text) = query.get(&field.name).filter(|it| !it.is_empty()) else { continue };
        options[&field.name] = match field.schema.shape {
            schema::Shape::Bool if query.flag(&field.name) == Some(true) => true.into(),
            schema::Shape::List { ref items, .. } => {
                let number = |it: &str| it.parse::<i64>().map_or_else(|_| it.into(), Value::from);
                query.all(&field.name).map(|it| if matches!(items.shape, schema::Shape::String) { it.into() } else { number(it) }).collect()
            }
            schema::Shape::String => text.into(),
            _ => continue,
        };
    }
    if target.subresource_name() == "proxy" {
        options["path"] = if rest.is_empty() { "/" } else { rest }.into();
    }
    options
}

/// Decodes an object that must be of `kind`; 400 with upstream's sentence where it is not (`transformDecodeError`).
pub fn decode(bytes: &[u8], encoding: Encoding, kind: &str, api_version: &str, schema: &schema::Schema) -> Result<(Value, Notes)> {
    let unrecognized = |why: &str| Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({})", summary(bytes)));
    let explain = |status: Status| if status.code == 400 { unfit(kind, api_version, kind, &status.message) } else { status };
    let no_json = |why: &str| unrecognized(&format!("couldn't get version/kind; json parse error: {why}"));
    let (mut value, notes) = match encoding {
        Encoding::Protobuf => {
            let (found_version, found_kind) = protobuf::type_of(bytes).map_err(|it| unrecognized(&it.message))?;
            check_type(&found_version, &found_kind, kind, api_version, schema.is_builtin())?;
            (protobuf::decode(bytes, schema).map_err(explain)?, Notes::default())
        }
        Encoding::Json | Encoding::Yaml => {
            let mut parsed = match encoding {
                Encoding::Yaml => schema::codec::parse_yaml(bytes).map_err(|it| unrecognized(&it.message))?,
                _ => schema::codec::parse_object(bytes, schema).map_err(|it| no_json(&it.message))?,
            };
            if parsed.0.is_null() {
                parsed.0 = json!({});
            }
            let value = &parsed.0;
            if let Some(field) = ["kind", "apiVersion"].into_iter().find(|it| !schema.is_builtin() && value.is_object() && value.text(it).is_empty()) {
                let field = if field == "kind" { "Kind" } else { field };
                return Err(unrecognized(&format!("Object '{field}' is missing in '{}'", String::from_utf8_lossy(bytes))));
            }
            if !value.is_object() {
                return Err(no_json(&format!("json: cannot unmarshal {} into Go value of type {TYPE_META}", schema::codec::json_type(value))));
            }
            check_type(value.text("apiVersion"), value.text("kind"), kind, api_version, schema.is_builtin())?;
            schema::codec::decode(parsed, schema).map_err(explain)?
        }
    };
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    Ok((value, notes))
}

/// What Go calls the type that it reads an object's type into.
const TYPE_META: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// An object of type `found` is not one of `kind`.
fn unfit(found: &str, found_version: &str, kind: &str, why: &str) -> Status {
    let version = split_api_version(found_version).1;
    Status::bad_request(format!("{found} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// The beginning of a body, as errors show it (`summarizeData`).
fn summary(bytes: &[u8]) -> String {
    const MOST: usize = 30;
    let (shown, more) = (&bytes[..bytes.len().min(MOST)], if bytes.len() > MOST { " ..." } else { "" });
    match bytes.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(shown).into_owned() + more,
        Some(_) => shown.iter().map(|it| format!("{it:02x}")).collect::<String>() + more,
    }
}

/// What says nothing of its type is what is expected.
fn check_type(found_version: &str, found_kind: &str, kind: &str, api_version: &str, is_builtin: bool) -> Result<()> {
    let or = |text: &'_ str, default: &'_ str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let (version, found) = (or(found_version, api_version), or(found_kind, kind));
    // Evictions are taken in their older version too (`EvictionREST.AcceptsGroupVersion`).
    if (version.as_str(), found.as_str()) == (api_version, kind) || (kind, version.as_str()) == ("Eviction", "policy/v1beta1") {
        return Ok(());
    }
    let (group, name) = split_api_version(&version);
    if found != kind || is_builtin && schema::builtin(&kinds::definition(group, name, kind)).is_none() {
        return Err(unfit(&found, &version, kind, &format!("no kind {found:?} is registered for version {version:?} in scheme")));
    }
    Err(Status::bad_request(format!("the API version in the data ({version}) does not match the expected API version ({api_version})")))
}

/// Adds a `Warning` header (RFC 7234, code 299).
pub fn warn(response: &mut Response, text: &str) {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
    if let Ok(value) = format!("299 - \"{escaped}\"").parse() {
        response.headers_mut().append(header::WARNING, value);
    }
}
