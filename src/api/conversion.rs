//! Objects in another version than they are stored in: the stage between the store and every answer, and between every write and the store.
//!
//! Stored bytes are the truth only for the schema that they were written under. Where that is not the one asked for, the object is converted
//! (by a function of the kind, or by the webhook of its definition), pruned and defaulted once, and kept with the stored object.
//! Source: apiextensions-apiserver `pkg/apiserver/conversion/{converter,webhook_converter}.go`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Server,
    forms::{View, header, parse},
    outgoing::{Destination, Review},
};
use crate::{
    kinds::{Convert, Webhook, metadata},
    meta::{FieldErrors, GroupVersionKind, Map, Meta, Path, Result, Status, Value, status::aggregate},
    schema::{codec, default},
    store::{Draft, Header, Stored},
};

/// How long a webhook has for its answer (upstream's client).
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects sent to a webhook at once.
const BATCH: usize = 100;

impl Server {
    /// The objects as `view` serves them, in their order.
    pub async fn served(&self, view: View<'_>, mut objects: Vec<Arc<Stored>>) -> Result<Vec<Arc<Stored>>> {
        let missing: Vec<usize> = (0..objects.len()).filter(|at| !view.is_served_form(&objects[*at])).collect();
        let mut to_convert = Vec::new();
        for at in missing {
            match objects[at].forms.get(view.form_id()) {
                Some(json) => objects[at] = Arc::new(view.reformed(&objects[at], json)),
                None => to_convert.push(at),
            }
        }
        for batch in to_convert.chunks(BATCH) {
            let values = batch.iter().map(|at| objects[*at].value()).collect();
            for (at, value) in batch.iter().zip(self.from_stored(view, values).await?) {
                let json = objects[*at].forms.get_or_make(view.form_id(), || value.to_string().into());
                objects[*at] = Arc::new(view.reformed(&objects[*at], json));
            }
        }
        Ok(objects)
    }

    pub async fn served_one(&self, view: View<'_>, object: Arc<Stored>) -> Result<Arc<Stored>> {
        if view.is_served_form(&object) {
            return Ok(object);
        }
        let mut served = self.served(view, vec![object]).await?;
        served.pop().ok_or_else(|| Status::internal("nothing was converted"))
    }

    /// Brings an object from one version of a store to another.
    pub async fn convert(&self, from: View<'_>, to: View<'_>, mut value: Value) -> Result<Value> {
        if from.api_version() == to.api_version() {
            return Ok(value);
        }
        if let Convert::Fn { to_stored, .. } = from.version.convert {
            to_stored(&mut value);
        }
        let mut converted = self.from_stored(to, vec![value]).await?;
        converted.pop().ok_or_else(|| Status::internal("nothing was converted"))
    }

    /// An object in its stored version, ready for the store's writer.
    pub async fn draft(&self, from: View<'_>, object: &Value) -> Result<Draft> {
        let registry = self.registry.load_full();
        // The definition may have got another storage version since the request began.
        let view = View::stored(registry.by_storage(&from.kind.resource()).map_or(from.kind, |it| it));
        let mut value = self.convert(from, view, object.clone()).await?;
        view.name(&mut value);
        Ok(Draft::new(&value, view.header(&value)))
    }

    async fn from_stored(&self, view: View<'_>, mut values: Vec<Value>) -> Result<Vec<Value>> {
        match &view.version.convert {
            Convert::Same => (),
            Convert::Fn { from_stored, .. } => values.iter_mut().for_each(from_stored),
            Convert::Webhook(webhook) => self.ask(webhook, &view.api_version(), &mut values).await?,
        }
        values.iter_mut().for_each(|it| view.shape(it));
        Ok(values)
    }

    /// Lets the webhook convert those that are in another version.
    async fn ask(&self, webhook: &Webhook, wanted: &str, values: &mut [Value]) -> Result<()> {
        let mut others: Vec<&mut Value> = values.iter_mut().filter(|it| it.text("apiVersion") != wanted).collect();
        let Some(first) = others.first() else { return Ok(()) };
        let what = GroupVersionKind::of(first);
        let failed = |why: String| Status::new(500, "", format!("conversion webhook for {what} {why}"));
        let objects: Vec<Value> = others.iter().map(|it| Value::clone(it)).collect();
        let destination = Destination::new(&webhook.client_config).map_err(|why| failed(format!("failed: {why}")))?;
        let review = review(webhook, wanted, objects).ok_or_else(|| Status::new(500, "", "no supported conversion review versions"))?;
        let answer = self.outgoing.post(&destination, &review.value, Some(Instant::now() + TIMEOUT)).await;
        let converted = answer.and_then(|it| read(&review, it)).map_err(|why| failed(format!("failed: {why}")))?;
        if converted.len() != others.len() {
            return Err(failed(format!("returned {} objects, expected {}", converted.len(), others.len())));
        }
        for (at, (original, converted)) in others.iter_mut().zip(converted).enumerate() {
            let checked = checked(original, converted, wanted);
            **original = checked.map_err(|why| failed(format!("returned invalid converted object at index {at}: {why}")))?;
        }
        Ok(())
    }
}

impl View<'_> {
    /// What a stored object's header says of bytes that are in this version under this schema.
    fn schema_id(&self) -> u64 {
        match self.version.convert {
            Convert::Fn { .. } => BY_FUNCTION | self.form_id(),
            Convert::Same | Convert::Webhook(_) => self.version.generation,
        }
    }

    /// Whether the bytes of an object are what this version serves.
    pub fn is_served_form(&self, object: &Stored) -> bool {
        let has_fields = self.kind.custom.is_none() || object.header.fields.len() == self.version.selectable.len();
        object.header.schema == self.schema_id() && has_fields
    }

    /// Whether selectors see objects as this version serves them: the fields of a custom resource are its version's. Those of built-in kinds
    /// are the stored ones.
    pub fn selects_served(&self) -> bool {
        self.kind.custom.is_some()
    }

    /// What every conversion ends with: the version's name, and for custom resources its schema.
    fn shape(&self, value: &mut Value) {
        self.name(value);
        if self.kind.custom.is_some() {
            codec::prune(value, &self.version.schema);
            default::default(value, &self.version.schema);
        }
    }

    fn name(&self, value: &mut Value) {
        value["apiVersion"] = self.api_version().into();
        value["kind"] = self.kind.kind.as_ref().into();
    }

    /// A stored object in the form that this view serves.
    fn reformed(&self, object: &Stored, json: Bytes) -> Stored {
        let is_seen = matches!(self.version.convert, Convert::Webhook(_)) || !self.version.selectable.is_empty();
        let header = match self.selects_served() && is_seen {
            true => self.header(&parse(&json)),
            false => Header { schema: self.schema_id(), ..object.header.clone() },
        };
        Stored { key: object.key.clone(), revision: object.revision, json: json.into(), header, forms: object.forms.clone() }
    }

    /// The header of an object in this version.
    pub fn header(&self, object: &Value) -> Header {
        header(object, &self.version.selectable, self.schema_id())
    }
}

/// Marks the header of an object that a function of its kind has converted.
const BY_FUNCTION: u64 = 1 << 63;

/// Or why not, in words that end up in the error of the request.
type Told<T> = std::result::Result<T, String>;

fn review(webhook: &Webhook, wanted: &str, objects: Vec<Value>) -> Option<Review> {
    Review::new("apiextensions.k8s.io", "ConversionReview", &webhook.review_versions, json!({"desiredAPIVersion": wanted, "objects": objects}))
}

/// The converted objects of an answer (`getConvertedObjectsFromResponse`).
fn read(review: &Review, mut answer: Value) -> Told<Vec<Value>> {
    review.check_type(&answer)?;
    let response = answer.get_mut("response").filter(|it| it.is_object()).ok_or("no response provided")?;
    review.check_uid(response)?;
    match (response.text_at(&["result", "status"]), response.text_at(&["result", "message"])) {
        ("Success", _) => Ok(response.get_mut("convertedObjects").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default()),
        (status, "") => Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => Err(message.to_owned()),
    }
}

/// A converted object with the metadata of the original: only labels and annotations are the webhook's.
fn checked(original: &Value, mut converted: Value, wanted: &str) -> Told<Value> {
    if converted.text("apiVersion") != wanted {
        return Err(format!("invalid groupVersion (expected {wanted}, received {})", converted.text("apiVersion")));
    }
    if converted.text("kind") != original.text("kind") {
        return Err(format!("invalid kind (expected {}, received {})", original.text("kind"), converted.text("kind")));
    }
    for (what, field) in [("name", "name"), ("namespace", "namespace"), ("UID", "uid")] {
        let (before, after) = (original.metadata(field), converted.metadata(field));
        if before != after {
            return Err(format!("must have the same {what}: {before} != {after}"));
        }
    }
    let given = converted.get("metadata").cloned().ok_or("missing metadata in converted object")?;
    converted["metadata"] = original.get("metadata").cloned().unwrap_or_else(|| json!({}));
    for field in ["labels", "annotations"] {
        match given.get(field) {
            None | Some(Value::Null) => converted.remove_metadata(field),
            Some(texts) => {
                check_texts(field, texts, original.at(&["metadata", field]))?;
                converted.set_metadata(field, texts.clone());
            }
        }
    }
    Ok(converted)
}

/// Labels and annotations that a webhook has changed must be valid.
fn check_texts(field: &str, given: &Value, before: Option<&Value>) -> Told<()> {
    let map: &Map<String, Value> = given.as_object().ok_or_else(|| format!("invalid metadata.{field} in converted object"))?;
    if let Some(key) = map.iter().find(|(_, it)| !it.is_string()).map(|it| it.0) {
        return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
    }
    if Some(given) == before {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    match field {
        "labels" => metadata::labels(Some(map), &Path::new("metadata").child("labels"), &mut errors),
        _ => metadata::annotations(Some(map), &Path::new("metadata").child("annotation"), &mut errors),
    }
    aggregate(&errors.iter().map(ToString::to_string).collect::<Vec<_>>()).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(versions: &[&str]) -> Webhook {
        Webhook { client_config: Value::Null, review_versions: versions.iter().map(|it| (*it).to_owned()).collect() }
    }

    #[test]
    fn an_answer_is_taken_only_when_it_answers() {
        let review = super::review(&webhook(&["v3", "v1", "v1beta1"]), "g/v2", vec![json!({})]).expect("a known version");
        assert_eq!(review.value["request"]["desiredAPIVersion"], "g/v2");
        let answer = |uid: &str, result: Value| {
            json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": {"uid": uid, "result": result, "convertedObjects": [{"a": 1}]}})
        };
        let uid = review.uid().to_owned();
        let cases = [
            (answer(&uid, json!({"status": "Success"})), Ok(vec![json!({"a": 1})])),
            (answer(&uid, json!({"status": "Failed", "message": "no"})), Err("no".to_owned())),
            (answer(&uid, json!({})), Err("response.result.status was '', not 'Success'".to_owned())),
            (answer("x", json!({"status": "Success"})), Err(format!("expected response.uid={uid:?}, got \"x\""))),
            (json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1"}), Err("no response provided".to_owned())),
            (
                json!({"kind": "X", "apiVersion": "y/v1"}),
                Err("expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got y/v1, Kind=X".to_owned()),
            ),
        ];
        for (answer, expected) in cases {
            assert_eq!(read(&review, answer.clone()), expected, "{answer}");
        }
        assert!(super::review(&webhook(&["v2"]), "g/v2", Vec::new()).is_none());
    }

    #[test]
    fn only_labels_and_annotations_are_the_webhooks() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "uid": "u", "generation": 3, "labels": {"a": "b"}}, "old": 1});
        let converted = |metadata: Value| json!({"apiVersion": "g/v2", "kind": "K", "metadata": metadata, "new": 1});
        let good = checked(&original, converted(json!({"name": "n", "uid": "u", "generation": 9, "annotations": {"c": "d"}})), "g/v2");
        assert_eq!(good, Ok(converted(json!({"name": "n", "uid": "u", "generation": 3, "annotations": {"c": "d"}}))));
        let cases = [
            (converted(json!({"name": "m", "uid": "u"})), "must have the same name: n != m"),
            (converted(json!({"name": "n", "uid": "v"})), "must have the same UID: u != v"),
            (original.clone(), "invalid groupVersion (expected g/v2, received g/v1)"),
            (json!({"apiVersion": "g/v2", "kind": "L", "metadata": {}}), "invalid kind (expected K, received L)"),
            (converted(json!({"name": "n", "uid": "u", "labels": {"a": 1}})), "metadata.labels[a] must be a string in converted object"),
        ];
        for (converted, expected) in cases {
            assert_eq!(checked(&original, converted.clone(), "g/v2"), Err(expected.to_owned()), "{converted}");
        }
    }
}
