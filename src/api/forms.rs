//! Objects, lists and events in the form that a client asked for. The common case gathers stored bytes and parses nothing.

use bytes::Bytes;
use serde_json::json;

use super::negotiation::{Encoding, Form, Include, Shape, TableOptions};
use crate::{
    base::clock,
    kinds::{Column, Kind, Selectable, Version, check::each},
    meta::{Meta, Result, Status, Value, object::api_version},
    schema::{protobuf, tape::Tape},
    store::{Header, Stored},
};

/// One version of one kind: what an object is read and written as. Its functions take objects in the form that it serves
/// ([`Server::served`](super::Server::served)).
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub kind: &'a Kind,
    pub version: &'a Version,
}

/// What is added to a version's number for its forms beside JSON.
const FORM_PROTOBUF: u64 = 1;
const FORM_METADATA: u64 = 2;

impl<'a> View<'a> {
    /// The version in which a kind is stored.
    pub fn stored(kind: &'a Kind) -> Self {
        Self { kind, version: kind.stored_version() }
    }
}

impl View<'_> {
    pub fn api_version(&self) -> String {
        api_version(&self.kind.group, &self.version.name)
    }

    /// The number of the object's JSON in this version under this generation of the schema; other forms follow it.
    pub fn form_id(&self) -> u64 {
        let place = self.kind.versions.iter().position(|it| it.name == self.version.name).unwrap_or(0) as u64;
        let is_renamed = u64::from(self.kind.storage.is_some());
        (self.version.generation << 16) | (is_renamed << 12) | (place << 4)
    }

    /// One object in `form`.
    pub fn encode(&self, object: &Stored, form: Form) -> Result<Bytes> {
        if form.is_beta {
            return encode(&in_beta(parse(&self.encode(object, form.in_json())?)), form.encoding);
        }
        match (form.shape, form.encoding) {
            (Shape::Object, Encoding::Json) => Ok(object.json.text()),
            (Shape::Object, Encoding::Protobuf) => self.protobuf(object),
            (Shape::Metadata, Encoding::Json) => Ok(self.metadata(object)),
            (Shape::Table(options), _) => encode(&self.table(&[object], options, json!({"resourceVersion": object.revision.to_string()})), form.encoding),
            (_, encoding) => encode(&parse(&self.encode(object, form.in_json())?), encoding),
        }
    }

    fn protobuf(&self, object: &Stored) -> Result<Bytes> {
        if self.kind.custom.is_some() {
            return Err(Status::not_acceptable(&["application/json", "application/yaml"]));
        }
        // An object that has no protobuf form is a defect of the table; the client gets an empty body and the log the reason.
        Ok(object.forms.get_or_make(self.form_id() | FORM_PROTOBUF, || {
            protobuf::encode_text(&self.api_version(), &self.kind.kind, &object.json.text(), &self.version.schema).map(Bytes::from).unwrap_or_else(|error| {
                tracing::error!(%error, kind = %self.kind.kind, name = %object.key.name, "no protobuf form");
                Bytes::new()
            })
        }))
    }

    fn metadata(&self, object: &Stored) -> Bytes {
        object.forms.get_or_make(self.form_id() | FORM_METADATA, || {
            let text = object.json.text();
            let tape = Tape::read(&text).ok();
            let metadata = tape.as_ref().and_then(|it| it.root().members().find(|(name, _)| name == "metadata"));
            let metadata = metadata.map_or("{}", |(_, value)| value.text());
            format!("{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata}}}").into()
        })
    }

    /// A list in `form`; `continues` and `remaining` where there is more.
    pub fn list(&self, objects: &[&Stored], form: Form, metadata: Value) -> Result<Bytes> {
        if form.is_beta {
            return encode(&in_beta(parse(&self.list(objects, form.in_json(), metadata)?)), form.encoding);
        }
        match (form.shape, form.encoding) {
            (Shape::Object, Encoding::Json) => {
                let api_version = self.api_version();
                // Items of built-in kinds do not repeat what the list says of them, as Go's encoder leaves it out.
                let head = if self.kind.custom.is_none() { format!("{{\"apiVersion\":{api_version:?},\"kind\":{:?},", self.kind.kind) } else { String::new() };
                Ok(json_list(objects, &metadata, &api_version, &self.kind.list_kind, &head, |it| it.json.text()))
            }
            (Shape::Metadata, Encoding::Json) => Ok(json_list(objects, &metadata, "meta.k8s.io/v1", "PartialObjectMetadataList", "", |it| self.metadata(it))),
            (Shape::Object, Encoding::Protobuf) if self.kind.custom.is_none() => {
                // What a list makes is not kept: it may be of everything, and is rarely asked for again.
                let encoded = |it: &Stored| it.forms.get(self.form_id() | FORM_PROTOBUF).filter(|it| !it.is_empty());
                let items = objects.iter().map(|it| match encoded(it) {
                    Some(enveloped) => protobuf::message_of(&enveloped),
                    None => protobuf::message(&it.json.text(), &self.version.schema),
                });
                protobuf::encode_list(&self.api_version(), &self.kind.list_kind, &metadata, items).map(Bytes::from)
            }
            (Shape::Table(options), encoding) => encode(&self.table(objects, options, metadata), encoding),
            (_, encoding) => {
                let json = self.list(objects, Form { encoding: Encoding::Json, ..form }, metadata)?;
                encode(&parse(&json), encoding)
            }
        }
    }

    /// `meta.k8s.io/v1` Table.
    fn table(&self, objects: &[&Stored], options: TableOptions, metadata: Value) -> Value {
        let now = clock::now();
        let column = |it: &Column| json!({"name": it.name, "type": it.data_type, "format": it.format, "description": it.description, "priority": it.priority});
        let columns: Option<Vec<Value>> = (!options.is_headless).then(|| self.version.columns.iter().map(column).collect());
        let rows: Vec<Value> = objects.iter().map(|it| it.value()).map(|object| {
            let cells: Vec<Value> = self.version.columns.iter().map(|it| it.value(&object, now)).collect();
            let mut row = json!({"cells": cells});
            match options.include {
                Include::None => (),
                Include::Metadata => row["object"] = partial(&object),
                Include::Object => row["object"] = object,
            }
            row
        }).collect();
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
    }
}

/// What selectors and readers need of an object without parsing it: its labels, and the fields that `selectable` names.
pub fn header(object: &Value, selectable: &[Selectable], schema: u64) -> Header {
    let mut labels: Vec<(Box<str>, Box<str>)> = object.labels().map(|(key, value)| (key.into(), value.into())).collect();
    labels.sort();
    let mut fields: Vec<(Box<str>, Box<str>)> = selectable.iter().map(|it| (it.name.as_ref().into(), it.text(object).into())).collect();
    fields.sort();
    Header { uid: object.uid().into(), labels, fields, schema }
}

/// A list of texts; what an item begins with may be left out.
fn json_list(objects: &[&Stored], metadata: &Value, api_version: &str, kind: &str, head: &str, item: impl Fn(&Stored) -> Bytes) -> Bytes {
    let items: Vec<Bytes> = objects.iter().map(|it| item(it)).collect();
    let mut out = Vec::with_capacity(items.iter().map(|it| it.len() + 1).sum::<usize>() + 256);
    out.extend(format!("{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[", Value::from(kind), Value::from(api_version)).bytes());
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match item.strip_prefix(head.as_bytes()).filter(|_| !head.is_empty()) {
            Some(rest) => {
                out.push(b'{');
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(item),
        }
    }
    out.extend(b"]}");
    out.into()
}

/// A table, metadata or a list of these under their older name.
fn in_beta(mut value: Value) -> Value {
    const BETA: &str = "meta.k8s.io/v1beta1";
    value["apiVersion"] = BETA.into();
    each(&mut value, &["items"]).for_each(|it| it["apiVersion"] = BETA.into());
    let partials = each(&mut value, &["rows"]).filter_map(|it| it.get_mut("object")).filter(|it| it["kind"] == "PartialObjectMetadata");
    partials.for_each(|it| it["apiVersion"] = BETA.into());
    value
}

/// `PartialObjectMetadata` of an object.
fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata").cloned().unwrap_or_default()})
}

pub fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_default()
}

/// A tree as JSON or YAML; protobuf only for what is no kind of the table, such as Status.
pub fn encode(value: &Value, encoding: Encoding) -> Result<Bytes> {
    match encoding {
        Encoding::Json => Ok(value.to_string().into()),
        Encoding::Yaml => serde_saphyr::to_string(value).map(Bytes::from).map_err(Status::internal),
        Encoding::Protobuf => {
            let kind = value.text("kind");
            let schema = ["io.k8s.apimachinery.pkg.apis.meta.v1", "io.k8s.api.autoscaling.v1", "io.k8s.api.authentication.v1", "io.k8s.api.authorization.v1", "io.k8s.api.core.v1"]
                .iter()
                .find_map(|package| crate::schema::builtin(&format!("{package}.{kind}")));
            let schema = schema.ok_or_else(|| Status::not_acceptable(&["application/json", "application/yaml"]))?;
            protobuf::encode(value, &schema).map(Bytes::from)
        }
    }
}
