//! What a client sends and wants back: media types, and the forms of an object behind them.
//! Source: apiserver `pkg/endpoints/handlers/negotiation`.

use http::{HeaderMap, header};

use crate::meta::{FieldError, Path, Result, Status, options::Query};

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const ACCEPTED: [&str; 3] = [JSON, YAML, PROTOBUF];

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }

    fn parse(media_type: &str) -> Option<Self> {
        match media_type {
            JSON | "*/*" | "application/*" | "text/json" => Some(Self::Json),
            YAML | "text/yaml" | "application/x-yaml" => Some(Self::Yaml),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// What of an object is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    Object,
    /// `PartialObjectMetadata`.
    Metadata,
    Table(TableOptions),
}

/// How a table is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableOptions {
    pub include: Include,
    /// Its columns are known already: in a watch the first event tells them.
    pub is_headless: bool,
}

/// What stands in a table's rows beside the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Include {
    None,
    Metadata,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    pub encoding: Encoding,
    pub shape: Shape,
    /// A table or metadata are asked for in `meta.k8s.io/v1beta1`: the same under an older name.
    pub is_beta: bool,
}

impl Form {
    /// The same for the server itself: in `v1` and JSON.
    pub fn in_json(self) -> Self {
        Self { encoding: Encoding::Json, is_beta: false, ..self }
    }

    /// That of the events after the first of a watch.
    pub fn following(self) -> Self {
        match self.shape {
            Shape::Table(options) => Self { shape: Shape::Table(TableOptions { is_headless: true, ..options }), ..self },
            _ => self,
        }
    }

    /// The first acceptable clause of `Accept`; 406 when there is none.
    /// Where objects have no protobuf form, lists and tables of them may.
    pub fn negotiate(headers: &HeaderMap, query: &Query, has_protobuf: bool) -> Result<Self> {
        let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or("*/*");
        let mut clauses: Vec<Clause<'_>> = accept.split(',').map(Clause::parse).collect();
        clauses.sort_by_key(|it| std::cmp::Reverse(it.quality));
        let include = match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other => {
                let why = FieldError::invalid(&Path::new("includeObject"), other, "must be 'Metadata', 'Object', 'None', or empty");
                return Err(Status::bad_request(format!("Unable to convert to Table as requested: {why}")));
            }
        };
        let is_routed = clauses.iter().any(|it| Encoding::parse(it.media_type).is_some());
        let is_offered = |it: &Self| has_protobuf || it.encoding != Encoding::Protobuf || it.shape != Shape::Object;
        let offered = if has_protobuf { &ACCEPTED[..] } else { &ACCEPTED[..2] };
        let refusal = || if is_routed { Status::not_acceptable(offered) } else { Status::not_routed(406) };
        clauses.iter().find_map(|it| it.form(include).filter(is_offered)).ok_or_else(refusal)
    }
}

struct Clause<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    /// Thousandths.
    quality: u32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|it| it.split_once('=')).collect();
        let quality = parameters.iter().find(|(name, _)| *name == "q").and_then(|(_, value)| value.parse::<f32>().ok());
        Self { media_type, parameters, quality: quality.map_or(1000, |it| (it.clamp(0.0, 1.0) * 1000.0) as u32) }
    }

    fn parameter(&self, name: &str) -> &'a str {
        self.parameters.iter().find(|(it, _)| *it == name).map_or("", |(_, value)| value)
    }

    fn form(&self, include: Include) -> Option<Form> {
        let encoding = Encoding::parse(self.media_type)?;
        let is_beta = self.parameter("v") == "v1beta1" && !self.parameter("as").is_empty();
        let is_meta = self.parameter("g") == "meta.k8s.io" && (is_beta || self.parameter("v") == "v1");
        let shape = match self.parameter("as") {
            "" => Shape::Object,
            "Table" if is_meta => Shape::Table(TableOptions { include, is_headless: false }),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if is_meta => Shape::Metadata,
            _ => return None,
        };
        Some(Form { encoding, shape, is_beta })
    }
}

/// The encoding of a request's body; 415 for one that is not known. Without a type it is JSON.
pub fn content_encoding(headers: &HeaderMap) -> Result<Encoding> {
    let content_type = media_type(headers);
    if content_type.is_empty() {
        return Ok(Encoding::Json);
    }
    Encoding::parse(content_type).filter(|_| content_type != "*/*").ok_or_else(|| Status::unsupported_media_type(&ACCEPTED))
}

/// The media type of a request's body, without its parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_acceptable_clause_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            ("*/*", Some((Encoding::Json, Shape::Object))),
            (table, Some((Encoding::Json, Shape::Table(TableOptions { include: Include::Metadata, is_headless: false })))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Encoding::Protobuf, Shape::Object))),
            ("application/json;as=Table;v=v2;g=meta.k8s.io,application/yaml", Some((Encoding::Yaml, Shape::Object))),
            ("application/json;q=0.1,application/yaml", Some((Encoding::Yaml, Shape::Object))),
            ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", Some((Encoding::Json, Shape::Metadata))),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Some((Encoding::Json, Shape::Table(TableOptions { include: Include::Metadata, is_headless: false })))),
            ("image/png", None),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a header"));
            let form = Form::negotiate(&headers, &Query::default(), true);
            assert_eq!(form.map(|it| (it.encoding, it.shape)).ok(), expected, "{accept}");
        }
    }
}
