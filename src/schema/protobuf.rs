//! Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`): the magic `k8s\0`, then `runtime.Unknown` around the message.

use super::Schema;
use crate::meta::{Result, Value};

/// apiVersion and kind of an enveloped object, before its schema is known.
pub fn type_of(bytes: &[u8]) -> Result<(String, String)> {
    let _ = bytes;
    todo!()
}

/// An enveloped object as JSON with `apiVersion` and `kind`.
pub fn decode(bytes: &[u8], schema: &Schema) -> Result<Value> {
    let _ = (bytes, schema);
    todo!()
}

/// A JSON object as an enveloped message.
pub fn encode(value: &Value, schema: &Schema) -> Result<Vec<u8>> {
    let _ = (value, schema);
    todo!()
}

/// A list: the envelope of `list_kind`, the ListMeta, and items already encoded by [`encode_message`].
pub fn encode_list(api_version: &str, list_kind: &str, metadata: &Value, items: &[Vec<u8>]) -> Result<Vec<u8>> {
    let _ = (api_version, list_kind, metadata, items);
    todo!()
}

/// The bare message of an object, without the envelope.
pub fn encode_message(value: &Value, schema: &Schema) -> Result<Vec<u8>> {
    let _ = (value, schema);
    todo!()
}

/// A watch event, framed as upstream's length-delimited stream: 4 bytes of length, then the envelope-free `WatchEvent`
/// whose object is an enveloped one.
pub fn encode_watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let _ = (kind, object);
    todo!()
}
