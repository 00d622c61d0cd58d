//! Subresources that are no streams: status and other parts, scale, binding, eviction, tokens.

use http::Method;
use serde_json::json;

use super::{
    Request, Response, body, eviction,
    negotiation::{self, Encoding},
    patch, reviews,
    target::Target,
    verbs::{Call, strict},
    write::{self, Admits},
};
use crate::{
    base::clock,
    kinds::Action,
    meta::{
        Meta, Result, Status, Value,
        options::WriteOptions,
    },
    schema::{self, protobuf},
};

/// Carries out a request of the call's subresource.
pub async fn serve(call: &Call, request: Request) -> Result<Response> {
    let Some(subresource) = &call.target.subresource else { return Err(Status::no_route()) };
    if !subresource.verbs.contains(&call.info.verb.as_str()) {
        return Err(Status::method_not_allowed());
    }
    match &subresource.action {
        Action::Status | Action::Part => part(call, request).await,
        Action::Scale { .. } => scale(call, request).await,
        Action::Binding => {
            let mut binding = read(&request.headers().clone(), request, "io.k8s.api.core.v1.Binding").await?;
            call.admit(&mut binding, WriteOptions::from_query(&call.query)?.is_dry_run).await?;
            bind(call, &call.target.name, &binding).await
        }
        Action::Eviction => eviction::evict(call, request).await,
        Action::Token => token(call, request).await,
        Action::Log | Action::Exec | Action::Attach | Action::PortForward | Action::Proxy => Err(Status::method_not_allowed()),
    }
}

async fn part(call: &Call, request: Request) -> Result<Response> {
    match *request.method() {
        Method::PUT => {
            let options = WriteOptions::from_query(&call.query)?;
            let encoding = negotiation::content_encoding(request.headers())?;
            let bytes = body::read(request.into_body()).await?;
            let view = call.target.view();
            let (object, notes) = super::verbs::decode(&bytes, encoding, &call.target.kind, &view.api_version(), &call.target.version().schema)?;
            let warnings = strict(&options, notes)?;
            let written = call.replace(&options, object).await?;
            call.written(written, warnings).await
        }
        Method::PATCH => patch::patch(call, request).await,
        _ => call.answer(200, call.stored()?).await,
    }
}

/// An object of a built-in type in the request's body.
pub async fn read(headers: &http::HeaderMap, request: Request, type_name: &str) -> Result<Value> {
    let encoding = negotiation::content_encoding(headers)?;
    let bytes = body::read(request.into_body()).await?;
    let schema = schema::builtin(type_name).ok_or_else(|| Status::internal("no such type"))?;
    match encoding {
        Encoding::Protobuf => protobuf::decode(&bytes, &schema),
        Encoding::Yaml => Ok(schema::codec::decode_yaml(&bytes, &schema)?.0),
        Encoding::Json => Ok(schema::codec::decode_json(&bytes, &schema)?.0),
    }
}

async fn scale(call: &Call, request: Request) -> Result<Response> {
    let Some(action) = call.target.subresource.as_ref().map(|it| it.action.clone()) else { return Err(Status::no_route()) };
    let options = WriteOptions::from_query(&call.query)?;
    let wanted: Box<dyn Fn(&Value) -> Result<Value> + Send + Sync> = match *request.method() {
        Method::PUT => {
            let scale = read(&request.headers().clone(), request, "io.k8s.api.autoscaling.v1.Scale").await?;
            Box::new(move |_: &Value| Ok(scale.clone()))
        }
        Method::PATCH => {
            let media_type = negotiation::media_type(request.headers()).to_owned();
            let patch = schema::codec::parse_json(&body::read(request.into_body()).await?)?.0;
            let operations = if media_type == "application/json-patch+json" {
                Some(serde_json::from_value::<json_patch::Patch>(patch.clone()).map_err(|error| Status::bad_request(error.to_string()))?)
            } else {
                None
            };
            let action = action.clone();
            Box::new(move |object: &Value| {
                let mut scale = write::scale(object, &action);
                match &operations {
                    Some(operations) => json_patch::patch(&mut scale, operations).map_err(|error| Status::new(422, "Invalid", error.to_string()))?,
                    None => json_patch::merge(&mut scale, &patch),
                }
                Ok(scale)
            })
        }
        _ => return call.answer_value(200, write::scale(&call.value().await?, &action)),
    };
    // The scale writes one field of the main resource, under its rules.
    let main = call.target.with_subresource(None);
    let writer = write::Writer { target: &main, admits: Admits::Scale(&call.target, &action), ..call.writer(&options) };
    let change = |old: &Value| {
        let scale = wanted(old)?;
        let replicas = scale.int_at(&["spec", "replicas"]).unwrap_or(0);
        if replicas < 0 {
            let errors = vec![crate::meta::FieldError::invalid(&crate::meta::Path::new("spec").child("replicas"), replicas, "must be greater than or equal to 0")];
            return Err(Status::invalid(&crate::meta::object::GroupKind::new("autoscaling", "Scale"), old.name(), errors));
        }
        let mut new = old.clone();
        let asked = scale.resource_version();
        new.set_metadata("resourceVersion", if asked.is_empty() { old.resource_version().to_owned() } else { asked.to_owned() });
        write::set_scale(&mut new, &scale, &action);
        Ok(new)
    };
    let written = writer.update(true, &change, None).await?;
    let object = call.server.served_one(main.view(), written.object).await?.value();
    call.answer_value(200, write::scale(&object, &action))
}

/// `pods/binding`: gives a pod its node.
pub async fn bind(call: &Call, name: &str, binding: &Value) -> Result<Response> {
    let node = binding.text_at(&["target", "name"]).to_owned();
    let main = Target::stored(call.server.registry.load().find("", "pods").ok_or_else(Status::no_route)?, &call.target.namespace, name);
    let bound = main.with_subresource(main.kind.subresource("binding").cloned());
    let options = WriteOptions::from_query(&call.query)?;
    let annotations: Vec<(String, String)> = binding.annotations().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let writer = write::Writer { target: &bound, admits: Admits::Nothing, ..call.writer(&options) };
    let change = |old: &Value| {
        let conflict = |why: String| Err(Status::conflict(&main.resource(), old.name(), why));
        if node.is_empty() {
            return Err(Status::bad_request("target.name: Required value"));
        }
        if old.deletion_timestamp().is_some() {
            return conflict(format!("pod {} is being deleted, cannot be assigned to a host", old.name()));
        }
        let assigned = old.text_at(&["spec", "nodeName"]);
        if !assigned.is_empty() {
            return conflict(format!("pod {} is already assigned to node {assigned:?}", old.name()));
        }
        let mut new = old.clone();
        new.set_at(&["spec", "nodeName"], node.as_str());
        annotations.iter().for_each(|(key, value)| new.set_at(&["metadata", "annotations", key], value.as_str()));
        set_condition(&mut new, "PodScheduled");
        Ok(new)
    };
    writer.update(true, &change, None).await?;
    call.answer_value(201, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

/// Sets a condition of a pod's status to true.
fn set_condition(pod: &mut Value, kind: &str) {
    let mut conditions: Vec<Value> = pod.items_at(&["status", "conditions"]).iter().filter(|it| it.text("type") != kind).cloned().collect();
    conditions.push(json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": clock::now_rfc3339()}));
    pod.set_at(&["status", "conditions"], conditions);
}

async fn token(call: &Call, request: Request) -> Result<Response> {
    let mut wanted = read(&request.headers().clone(), request, "io.k8s.api.authentication.v1.TokenRequest").await?;
    call.admit(&mut wanted, WriteOptions::from_query(&call.query)?.is_dry_run).await?;
    let account = call.value().await?;
    let answer = reviews::token_request(&call.server, &account, wanted).await?;
    call.answer_value(201, answer)
}
