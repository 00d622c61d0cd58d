//! Bodies: reading them whole, within a limit, and making answers.

use std::io::Write;

use bytes::{Bytes, BytesMut};
use flate2::{Compression, write::GzEncoder};
use futures::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Frame};

use super::{Body, BodyError, Response};
use crate::{
    base::tasks,
    meta::{Result, Status, Value},
};

/// The largest body of a request (`MaxRequestBodyBytes`).
pub const REQUEST_MAX: usize = 3 << 20;

pub const JSON: &str = "application/json";

/// What is read of a body that is too large, and dropped: a client that still writes reads its answer only afterwards.
const DRAINED_MAX: usize = 64 << 20;

/// Reads a body to its end; 413 for one that is too large.
pub async fn read(mut body: Body) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    let mut drained = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("the request body could not be read: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if drained == 0 && whole.len() + data.len() <= REQUEST_MAX {
                whole.extend_from_slice(&data);
                continue;
            }
            drained += data.len();
            if drained > DRAINED_MAX {
                break;
            }
        }
    }
    if drained > 0 {
        return Err(Status::too_large(format!("limit is {REQUEST_MAX}")));
    }
    Ok(whole.freeze())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    UnsyncBoxBody::new(Full::new(bytes.into()).map_err(|never| match never {}))
}

pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body of chunks as they come.
pub fn stream(chunks: impl Stream<Item = std::result::Result<Bytes, BodyError>> + Send + 'static) -> Body {
    use futures::TryStreamExt;
    UnsyncBoxBody::new(StreamBody::new(chunks.map_ok(Frame::data)))
}

pub fn respond(code: u16, content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

/// The answer to HEAD: it says how long the body is, and has none.
pub fn head(mut response: Response) -> Response {
    let length = response.body().size_hint().exact().map(HeaderValue::from);
    length.into_iter().for_each(|it| _ = response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(it));
    response.map(|_| empty())
}

pub fn json(code: u16, value: &Value) -> Response {
    respond(code, JSON, full(value.to_string()))
}

pub fn text(code: u16, text: impl Into<String>) -> Response {
    let mut response = respond(code, "text/plain; charset=utf-8", full(text.into()));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A document with an ETag of its content; 304 for a client that has it.
pub fn tagged(text: Bytes, content_type: &str, headers: &HeaderMap) -> Response {
    let tag = super::discovery::hash(&text);
    tagged_with(|| text, &tag, content_type, headers)
}

/// `text` is made where the client does not have it by its tag.
pub fn tagged_with(text: impl FnOnce() -> Bytes, tag: &str, content_type: &str, headers: &HeaderMap) -> Response {
    let etag = format!("\"{tag}\"");
    let is_known = headers.get(header::IF_NONE_MATCH).is_some_and(|it| it.as_bytes() == etag.as_bytes());
    let mut response = match is_known {
        true => respond(304, content_type, empty()),
        false => respond(200, content_type, full(text())),
    };
    if let Ok(value) = etag.parse() {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// From this length on an answer is worth packing (`defaultGzipThresholdBytes`).
const GZIP_FROM: u64 = 128 << 10;

pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
    accepted.map(|it| it.split(';').next().unwrap_or_default().trim()).any(|it| it == "gzip")
}

/// A long answer packed, others as they are. Streams have no length and stay so.
pub async fn gzipped(response: Response) -> Response {
    let is_long = response.body().size_hint().exact().is_some_and(|it| it >= GZIP_FROM);
    if !is_long || !response.status().is_success() || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, whole) = response.into_parts();
    let Ok(plain) = whole.collect().await else { return Response::from_parts(parts, empty()) };
    let plain = plain.to_bytes();
    let bytes = plain.clone();
    let packed = tasks::blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        encoder.write_all(&bytes).and_then(|()| encoder.finish())
    });
    let Ok(Ok(packed)) = packed.await else { return Response::from_parts(parts, full(plain)) };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Response::from_parts(parts, full(packed))
}
