//! What is done for each verb: one function a verb, for every kind.
//!
//! A request comes from `http.rs` authenticated and authorized; here its target is found, its body decoded, the verb carried out
//! (`list.rs`, `watch.rs`, `write.rs`, `delete.rs`), and the answer put into the form that the client asked for.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::json;

use super::{
    Request, Response, Server, body, connect,
    delete::{self, Deleted},
    forms, identity::User,
    list, negotiation::{self, Encoding, Form, Shape},
    patch, request::RequestInfo, reviews, subresources, target::Target, watch,
    write::{Writer, Written},
};
use crate::{
    kinds::{Action, Kind, Verb},
    meta::{
        Meta, Result, Status, Value,
        options::{FieldValidation, ListOptions, Query, WriteOptions},
    },
    schema::{self, codec::Notes, protobuf},
    store::Stored,
};

/// One request, as the verbs see it.
pub struct Call {
    pub server: Arc<Server>,
    pub user: User,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub target: Target,
    pub form: Form,
}

/// Carries out a request of the resource API.
pub async fn serve(server: Arc<Server>, user: User, info: RequestInfo, query: Query, request: Request) -> Result<Response> {
    let mut target = Target::find(&server.registry.load(), &info)?;
    if let Some(action) = target.subresource.as_ref().map(|it| it.action.clone()).filter(is_stream) {
        return stream(&server, &mut target, &action, &info, request).await;
    }
    let form = Form::negotiate(request.headers(), &query)?;
    let call = Call { server, user, info, query, headers: request.headers().clone(), target, form };
    let deprecation = call.target.version().deprecation.clone();
    let mut response = call.dispatch(request).await?;
    if let Some(warning) = deprecation {
        warn(&mut response, &warning);
    }
    Ok(response)
}

fn is_stream(action: &Action) -> bool {
    matches!(action, Action::Log | Action::Exec | Action::Attach | Action::PortForward | Action::Proxy)
}

async fn stream(server: &Arc<Server>, target: &mut Target, action: &Action, info: &RequestInfo, request: Request) -> Result<Response> {
    if *action == Action::Proxy
        && let Some((_, name, _)) = connect::split_target(&info.name)
    {
        target.name = name.to_owned();
    }
    let snapshot = server.store.snapshot();
    let object = snapshot.get(&target.key()).ok_or_else(|| Status::not_found(&target.resource(), &target.name))?;
    let object = target.view().value(&object);
    server.nodes.connect(action, &object, &info.rest, request, &snapshot).await
}

impl Call {
    async fn dispatch(self, request: Request) -> Result<Response> {
        if self.target.subresource.is_some() {
            return subresources::serve(&self, request).await;
        }
        let verb = match self.info.verb.as_str() {
            "get" => Verb::Get,
            "list" => Verb::List,
            "watch" => Verb::Watch,
            "create" => Verb::Create,
            "update" => Verb::Update,
            "patch" => Verb::Patch,
            "delete" => Verb::Delete,
            "deletecollection" => Verb::DeleteCollection,
            _ => return Err(Status::method_not_allowed()),
        };
        // A collection is created in, an object is updated: the other way round there is no such route.
        let is_misplaced = match verb {
            Verb::Create => !self.target.name.is_empty(),
            Verb::Update | Verb::Patch => self.target.name.is_empty(),
            _ => false,
        };
        if is_misplaced || !self.target.kind.accepts(verb) {
            return Err(Status::method_not_allowed());
        }
        match verb {
            Verb::Get => self.get().await,
            Verb::List => self.list().await,
            Verb::Watch => self.watch().await,
            Verb::Create => self.create(request).await,
            Verb::Update => self.update(request).await,
            Verb::Patch => patch::patch(&self, request).await,
            Verb::Delete => self.delete(request).await,
            Verb::DeleteCollection => self.delete_collection(request).await,
        }
    }

    async fn get(&self) -> Result<Response> {
        list::reached(&self.server, self.query.get("resourceVersion").unwrap_or_default()).await?;
        self.answer(200, &*self.stored()?)
    }

    /// The stored object of the target; 404 without it.
    pub fn stored(&self) -> Result<Arc<Stored>> {
        let found = self.server.store.snapshot().get(&self.target.key());
        found.ok_or_else(|| Status::not_found(&self.target.resource(), &self.target.name))
    }

    async fn list(&self) -> Result<Response> {
        let options = ListOptions::from_query(&self.query)?;
        let bytes = list::list(&self.server, &self.target, &options, self.form).await?;
        Ok(body::respond(200, self.form.encoding.media_type(), body::full(bytes)))
    }

    async fn watch(self) -> Result<Response> {
        let options = ListOptions::from_query(&self.query)?;
        let body = watch::watch(&self.server, self.target, &options, self.form).await?;
        let content_type = if self.form.encoding == Encoding::Protobuf { self.form.encoding.stream_type() } else { body::JSON };
        Ok(body::respond(200, content_type, body))
    }

    async fn create(&self, request: Request) -> Result<Response> {
        let options = WriteOptions::from_query(&self.query)?;
        let (object, notes) = self.read(request).await?;
        let warnings = strict(&options, notes)?;
        if self.target.kind.verbs == crate::kinds::CREATE_ONLY {
            // What is not stored has neither metadata nor rows.
            if self.form.shape != Shape::Object {
                return Err(Status::not_acceptable(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]));
            }
            return self.review(object).await;
        }
        let written = self.writer(&options).create(object).await?;
        self.written(written, warnings)
    }

    /// Kinds that are only an answer.
    async fn review(&self, object: Value) -> Result<Response> {
        if self.target.kind.kind == "Binding" {
            return subresources::bind(self, object.name(), &object).await;
        }
        let answer = reviews::answer(&self.server, &self.user, &self.target.kind, &self.target.namespace, object).await?;
        self.answer_value(201, answer)
    }

    async fn update(&self, request: Request) -> Result<Response> {
        let options = WriteOptions::from_query(&self.query)?;
        let (object, notes) = self.read(request).await?;
        let warnings = strict(&options, notes)?;
        let written = self.replace(&options, object).await?;
        self.written(written, warnings)
    }

    /// Whether an object says that it is the target (`checkName`).
    pub fn check_name(&self, object: &Value) -> Result<()> {
        if object.name() != self.target.name {
            let message = match object.name() {
                "" => "name must be provided".to_owned(),
                name => format!("the name of the object ({name}) does not match the name on the URL ({})", self.target.name),
            };
            return Err(Status::bad_request(message));
        }
        if self.target.kind.is_namespaced() && !object.namespace().is_empty() && object.namespace() != self.target.namespace {
            return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
        }
        Ok(())
    }

    /// A PUT of the target or of one of its parts.
    pub async fn replace(&self, options: &WriteOptions, object: Value) -> Result<Written> {
        self.check_name(&object)?;
        let is_conditional = !object.resource_version().is_empty();
        self.writer(options).update(is_conditional, &|_| Ok(object.clone()), Some(object.clone())).await
    }

    async fn delete(&self, request: Request) -> Result<Response> {
        let options = delete::options(&self.delete_body(request).await?, &self.query)?;
        match delete::delete(&self.server, &self.target, &options).await? {
            Deleted::Waiting(object) => self.answer(200, &object),
            Deleted::Gone(object) if self.target.kind.strategy.grace.is_some() => self.answer(200, &object),
            Deleted::Gone(object) => {
                self.answer_value(200, Status::success(&self.target.resource(), &object.key.name, &object.header.uid))
            }
        }
    }

    async fn delete_collection(&self, request: Request) -> Result<Response> {
        let options = delete::options(&self.delete_body(request).await?, &self.query)?;
        let selection = list::Selection::new(&self.target, &ListOptions::from_query(&self.query)?)?;
        let snapshot = self.server.store.snapshot();
        let namespace = Some(self.target.namespace.as_str()).filter(|it| !it.is_empty());
        let resource = self.target.kind.resource();
        let chosen: Vec<&Arc<Stored>> = snapshot.list(&resource, namespace, None).filter(|it| selection.matches(it)).collect();
        for object in &chosen {
            match delete::delete(&self.server, &self.target.named(object), &options).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => (),
            }
        }
        let objects: Vec<&Stored> = chosen.iter().map(|it| it.as_ref()).collect();
        let metadata = json!({"resourceVersion": self.server.store.revision().to_string()});
        let bytes = self.target.view().list(&objects, self.form, metadata)?;
        Ok(body::respond(200, self.form.encoding.media_type(), body::full(bytes)))
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
            Encoding::Json => schema::codec::parse_json(&bytes)?.0,
            Encoding::Yaml => schema::codec::parse_yaml(&bytes)?.0,
            Encoding::Protobuf => return protobuf::decode(&bytes, &schema),
        };
        if !matches!(value.text("kind"), "" | "DeleteOptions") {
            return Err(Status::bad_request(format!("decoded object cannot be converted to DeleteOptions: unexpected kind {:?}", value.text("kind"))));
        }
        Ok(schema::codec::decode_value(value, &schema)?.0)
    }

    /// The object in the request's body, decoded as the target's kind.
    async fn read(&self, request: Request) -> Result<(Value, Notes)> {
        let encoding = negotiation::content_encoding(request.headers())?;
        let bytes = body::read(request.into_body()).await?;
        let (kind, version) = (&self.target.kind, self.target.version());
        decode(&bytes, encoding, kind, &self.target.view().api_version(), &version.schema)
    }

    pub fn writer<'a>(&'a self, options: &'a WriteOptions) -> Writer<'a> {
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|it| it.to_str().ok()).unwrap_or("unknown");
        Writer { server: &self.server, user: &self.user, target: &self.target, options, agent: agent.split('/').next().unwrap_or_default() }
    }

    /// The answer to a write: the object as it is now, and the warnings in headers.
    pub fn written(&self, written: Written, notes: Vec<String>) -> Result<Response> {
        let mut response = self.answer(if written.is_created { 201 } else { 200 }, &written.object)?;
        notes.iter().chain(&written.warnings).for_each(|it| warn(&mut response, it));
        Ok(response)
    }

    pub fn answer(&self, code: u16, object: &Stored) -> Result<Response> {
        let bytes = self.target.view().encode(object, self.form)?;
        Ok(body::respond(code, self.form.encoding.media_type(), body::full(bytes)))
    }

    pub fn answer_value(&self, code: u16, value: Value) -> Result<Response> {
        let bytes = forms::encode(&value, self.form.encoding)?;
        Ok(body::respond(code, self.form.encoding.media_type(), body::full(bytes)))
    }
}

/// Decodes an object that must be of `kind`; 400 with upstream's sentence where it is not.
pub fn decode(bytes: &[u8], encoding: Encoding, kind: &Kind, api_version: &str, schema: &schema::Schema) -> Result<(Value, Notes)> {
    let group_version = |text: &str| if text.is_empty() { api_version.to_owned() } else { text.to_owned() };
    let explain = |status: Status| match status.code {
        400 => {
            let (_, version) = crate::meta::object::split_api_version(api_version);
            Status::bad_request(format!("{} in version {version:?} cannot be handled as a {}: {}", kind.kind, kind.kind, status.message))
        }
        _ => status,
    };
    let (mut value, notes) = match encoding {
        Encoding::Protobuf => {
            let (found_version, found_kind) = protobuf::type_of(bytes)?;
            check_type(&group_version(&found_version), &found_kind, kind, api_version)?;
            (protobuf::decode(bytes, schema).map_err(explain)?, Notes::default())
        }
        Encoding::Json | Encoding::Yaml => {
            let (value, duplicate) = match encoding {
                Encoding::Yaml => schema::codec::parse_yaml(bytes).map_err(explain)?,
                _ => schema::codec::parse_json(bytes).map_err(explain)?,
            };
            if !value.is_object() {
                return Err(explain(schema::codec::decode_value(value, schema).err().unwrap_or_else(|| Status::bad_request("the object provided is unrecognized"))));
            }
            check_type(&group_version(value.text("apiVersion")), value.text("kind"), kind, api_version)?;
            let (value, notes) = schema::codec::decode_value(value, schema).map_err(explain)?;
            (value, Notes { duplicate, ..notes })
        }
    };
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.kind.as_ref().into();
    Ok((value, notes))
}

fn check_type(found_version: &str, found_kind: &str, kind: &Kind, api_version: &str) -> Result<()> {
    if !found_kind.is_empty() && found_kind != kind.kind {
        let (version, wanted) = (found_version, &kind.kind);
        return Err(Status::bad_request(format!("{found_kind} in version {:?} cannot be handled as a {wanted}: no kind {found_kind:?} is registered for version {version:?} in scheme", crate::meta::object::split_api_version(version).1)));
    }
    if found_version != api_version {
        let message = format!("the API version in the data ({found_version}) does not match the expected API version ({api_version})");
        return Err(Status::bad_request(message));
    }
    Ok(())
}

/// What field validation makes of the notes: nothing, warnings, or 400.
pub fn strict(options: &WriteOptions, notes: Notes) -> Result<Vec<String>> {
    let all: Vec<String> = notes.all().cloned().collect();
    match options.field_validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(all),
        FieldValidation::Strict if all.is_empty() => Ok(all),
        FieldValidation::Strict => Err(Status::bad_request(format!("strict decoding error: {}", all.join(", ")))),
    }
}

/// Adds a `Warning` header (RFC 7234, code 299).
pub fn warn(response: &mut Response, text: &str) {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
    if let Ok(value) = format!("299 - \"{escaped}\"").parse() {
        response.headers_mut().append(http::header::WARNING, value);
    }
}
