//! Subresources that are no streams and no parts of their object: scale, binding, eviction, tokens.

use std::sync::LazyLock;

use http::Method;
use serde_json::json;

use super::{
    Request, Response, body, eviction, negotiation,
    patch::{self, APPLY_YAML, Patch},
    reviews,
    target::Target,
    verbs::Call,
    write::{self, Admits},
};
use crate::{
    base::clock,
    kinds::Action,
    meta::{FieldError, Meta, Path, Result, Status, Value, options::WriteOptions},
    schema::codec,
};

/// Carries out a request of the call's subresource.
pub async fn serve(call: &Call, action: &Action, request: Request) -> Result<Response> {
    match action {
        Action::Scale { .. } => scale(call, action, request).await,
        Action::Binding => {
            let (mut binding, _) = call.read(request).await?;
            if binding.name() != call.target.name {
                return Err(Status::bad_request("name in URL does not match name in Binding object"));
            }
            call.admit(&mut binding, WriteOptions::from_query(&call.query, "CreateOptions")?.is_dry_run).await?;
            bind(call, &call.target.name, &binding).await
        }
        Action::Eviction => eviction::evict(call, request).await,
        Action::Token => token(call, request).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// The scale writes one field of the main resource, under its rules.
async fn scale(call: &Call, action: &Action, request: Request) -> Result<Response> {
    let options = WriteOptions::from_query(&call.query, if *request.method() == Method::PATCH { "PatchOptions" } else { "UpdateOptions" })?;
    let schema = call.target.body_schema().ok_or_else(|| Status::internal("no Scale"))?;
    let wanted = match *request.method() {
        Method::PUT => {
            let (scale, _) = call.read(request).await?;
            call.target.check_name(&scale)?;
            Patch::Whole(scale)
        }
        Method::PATCH => {
            // To apply a scale, which has one field, is to merge it.
            let media_type = negotiation::media_type(request.headers()).to_owned();
            let bytes = body::read(request.into_body()).await?;
            match media_type.as_str() {
                APPLY_YAML => {
                    let (configuration, _) = codec::parse_yaml(&bytes)?;
                    patch::check_applied(&configuration, "autoscaling", "v1", "Scale")?;
                    Patch::Merge(configuration)
                }
                _ => Patch::read(&media_type, &bytes, call.target.kind.custom.is_some())?.0,
            }
        }
        _ => return call.answer_value(200, &write::scale(&call.value().await?, action)),
    };
    let main = call.target.with_subresource(None);
    let writer = write::Writer { target: &main, admits: Admits::Scale(&call.target, action), ..call.writer(&options) };
    let change = |old: &Value| {
        let (scale, _) = codec::decode_value(wanted.apply_to(&write::scale(old, action), &schema)?, &schema)?;
        let replicas = scale.int_at(&["spec", "replicas"]).unwrap_or(0);
        if replicas < 0 {
            let error = FieldError::invalid(&Path::new("spec").child("replicas"), replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", old.name(), vec![error]));
        }
        let mut new = old.clone();
        if !scale.resource_version().is_empty() {
            new.set_metadata("resourceVersion", scale.resource_version());
        }
        write::set_scale(&mut new, &scale, action);
        Ok(new)
    };
    let written = writer.update(true, &change, None).await?;
    let object = call.server.served_one(main.view(), written.object).await?.value();
    call.answer_value(200, &write::scale(&object, action))
}

/// `pods/binding`: gives a pod its node.
pub async fn bind(call: &Call, name: &str, binding: &Value) -> Result<Response> {
    let node = binding.text_at(&["target", "name"]);
    let main = Target::stored(call.server.registry.load().find("", "pods").ok_or_else(Status::no_route)?, &call.target.namespace, name);
    let bound = main.with_subresource(main.kind.subresource("binding").cloned());
    let options = WriteOptions::from_query(&call.query, "CreateOptions")?;
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
        new.set_at(&["spec", "nodeName"], node);
        binding.annotations().for_each(|(key, value)| new.set_at(&["metadata", "annotations", key], value));
        set_condition(&mut new, json!({"type": "PodScheduled", "status": "True"}));
        Ok(new)
    };
    writer.update(true, &change, None).await?;
    call.answer_value(201, &SUCCESS)
}

/// What is answered where nothing is left to be told.
pub static SUCCESS: LazyLock<Value> = LazyLock::new(|| json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}));

/// Sets a condition of a pod's status.
pub fn set_condition(pod: &mut Value, mut condition: Value) {
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = clock::now_rfc3339().into();
    let others = pod.items_at(&["status", "conditions"]).iter().filter(|it| it.text("type") != condition.text("type")).cloned();
    let all: Vec<Value> = others.chain([condition.clone()]).collect();
    pod.set_at(&["status", "conditions"], all);
}

async fn token(call: &Call, request: Request) -> Result<Response> {
    let (mut wanted, _) = call.read(request).await?;
    call.admit(&mut wanted, WriteOptions::from_query(&call.query, "CreateOptions")?.is_dry_run).await?;
    let account = call.value().await?;
    let answer = reviews::token_request(&call.server, &account, wanted).await?;
    call.answer_value(201, &answer)
}
