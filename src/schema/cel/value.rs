//! The values that expressions work with. JSON is looked at where it stands: nothing of an object is copied before an expression needs it.
//! Follows cel-go `common/types` and apiserver `pkg/cel/common/valuesunstructured.go`.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{authorizer::Check, decl, functions::string_of, kube::Kube};
use crate::meta::{Meta, Value};

#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Cow<'a, str>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(jiff::Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    /// The type of that name.
    Type(String),
    Optional(Option<Arc<Val<'a>>>),
    /// A value of one of Kubernetes' own types.
    Kube(Arc<Kube>),
    /// A question to the authorizer, as far as it is put together, or its answer.
    Check(Arc<Check<'a>>),
    /// An object that an expression makes: its type and fields.
    Object(Arc<(String, BTreeMap<String, Val<'a>>)>),
    /// Data without a schema: it can be compared, no more.
    Unknown(&'a Value),
    /// The variables of a policy, computed when they are asked for.
    Variables,
}

/// A list in JSON with its schema, or one that an expression made, which keeps the schema of the list that it was made from.
#[derive(Clone, Debug)]
pub enum List<'a> {
    Json(&'a [Value], Option<&'a Value>),
    Made(Arc<Vec<Val<'a>>>, Option<&'a Value>),
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    Json(&'a serde_json::Map<String, Value>, Option<&'a Value>),
    Made(Arc<BTreeMap<Key, (Val<'a>, Val<'a>)>>),
}

/// A map's key: numbers of every type that are equal are one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Number(i128),
    /// The bits of a double that is no whole number.
    Double(u64),
    Text(String),
}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// In cel-go's words.
    #[error("{0}")]
    Failed(String),
    /// This one evaluation costs more than any may.
    #[error("operation cancelled: actual cost limit exceeded")]
    TooCostly,
    /// The evaluations together cost more than they may.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    OutOfBudget,
}

pub type Eval<T> = Result<T, EvalError>;

pub fn fail<T>(message: impl Into<String>) -> Eval<T> {
    Err(EvalError::Failed(message.into()))
}

pub fn no_overload<T>() -> Eval<T> {
    fail("no such overload")
}

/// What was found, or why there is nothing.
pub fn or_fail<T>(found: Option<T>, why: impl Into<String>) -> Eval<T> {
    found.map_or_else(|| fail(why), Ok)
}

impl<'a> Val<'a> {
    /// A value of no declared type.
    pub fn json(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(it) => Self::Bool(*it),
            Value::Number(it) => it.as_i64().map_or_else(|| Self::Double(it.as_f64().unwrap_or_default()), Self::Int),
            Value::String(it) => Self::String(Cow::Borrowed(it)),
            Value::Array(it) => Self::List(List::Json(it, None)),
            Value::Object(it) => Self::Map(Map::Json(it, None)),
        }
    }

    /// A value that a structural schema describes (`UnstructuredToVal`).
    pub fn typed(value: &'a Value, schema: &'a Value) -> Eval<Self> {
        if value.is_null() {
            return if schema["nullable"] == true { Ok(Self::Null) } else { fail("invalid data, got null for schema with nullable=false") };
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return match value {
                Value::String(_) => Ok(Self::json(value)),
                Value::Number(it) if it.is_i64() => Ok(Self::json(value)),
                _ => fail("invalid data, expected XIntOrString value to be either a string or integer"),
            };
        }
        match (schema.text("type"), value) {
            ("object", Value::Object(map)) => Ok(Self::Map(Map::Json(map, Some(schema)))),
            ("object", _) => fail("invalid data, expected a map for the provided schema with type=object"),
            ("array", Value::Array(list)) => Ok(Self::List(List::Json(list, Some(schema)))),
            ("array", _) => fail("invalid data, expected an array for the provided schema with type=array"),
            ("string", Value::String(text)) => formatted(text, schema.text("format")),
            ("number", Value::Number(it)) => Ok(Self::Double(it.as_f64().unwrap_or_default())),
            ("integer", Value::Number(it)) => or_fail(it.as_i64().map(Self::Int), "invalid data, expected int, got float64"),
            ("boolean", Value::Bool(it)) => Ok(Self::Bool(*it)),
            ("", _) => Ok(Self::Unknown(value)),
            (wanted, _) => fail(format!("invalid data, expected {wanted}")),
        }
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self::String(Cow::Owned(text.into()))
    }

    pub fn list(items: Vec<Val<'a>>) -> Self {
        Self::List(List::Made(Arc::new(items), None))
    }

    pub fn some(value: Val<'a>) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    pub fn none() -> Self {
        Self::Optional(None)
    }

    pub fn kube(value: Kube) -> Self {
        Self::Kube(Arc::new(value))
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) | Self::Variables => "map",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Kube(it) => it.type_name(),
            Self::Check(it) => it.type_name(),
            Self::Object(it) => &it.0,
            Self::Unknown(_) => "unknown",
        }
    }

    /// What `size()` says, and what costs are reckoned by; one for what has no size.
    pub fn size(&self) -> u64 {
        match self {
            Self::String(it) => it.chars().count() as u64,
            Self::Bytes(it) => it.len() as u64,
            Self::List(it) => it.len() as u64,
            Self::Map(it) => it.len() as u64,
            Self::Kube(it) => it.size(),
            Self::Optional(Some(it)) => it.size(),
            _ => 1,
        }
    }

    /// Field or entry; `None` when it is not there.
    pub fn find(&self, key: &Val<'_>) -> Eval<Option<Val<'a>>> {
        match (self, key) {
            (Self::Map(map), _) => map.find(key),
            (Self::Object(it), Val::String(name)) => Ok(it.1.get(name.as_ref()).cloned()),
            (Self::Optional(None), _) => Ok(Some(Self::none())),
            (Self::Optional(Some(it)), _) => Ok(Some(Self::Optional(it.find(key)?.map(Arc::new)))),
            _ => no_overload(),
        }
    }

    /// `a[b]` and `a.b`
    pub fn index(&self, key: &Val<'_>) -> Eval<Val<'a>> {
        match (self, key) {
            (Self::List(list), _) => {
                let at = match key {
                    Val::Int(at) => *at,
                    Val::Uint(at) => i64::try_from(*at).unwrap_or(i64::MAX),
                    Val::Double(at) if at.fract() == 0.0 => *at as i64,
                    Val::Bool(_) | Val::String(_) | Val::Double(_) => return fail(format!("unsupported index type '{}' in list", key.type_name())),
                    _ => return no_overload(),
                };
                list.get(or_fail(usize::try_from(at).ok().filter(|at| *at < list.len()), format!("index out of bounds: {at}"))?)
            }
            (Self::Optional(Some(it)), _) if matches!(it.as_ref(), Self::List(_)) => Ok(it.index(key).map_or_else(|_| Self::none(), Self::some)),
            _ => self.find(key)?.map_or_else(|| fail(format!("no such key: {}", key.shown())), Ok),
        }
    }

    /// A value as `%v` shows it in messages.
    pub fn shown(&self) -> String {
        match self {
            Self::String(_) | Self::Int(_) | Self::Uint(_) | Self::Bool(_) | Self::Double(_) => string_of(self).unwrap_or_default(),
            other => other.to_json().map_or_else(|_| other.type_name().to_owned(), |it| it.to_string()),
        }
    }

    /// Values of different types are different, numbers excepted, which compare by what they are.
    pub fn equals(&self, other: &Val<'_>) -> bool {
        match (self, other) {
            (Self::Null, Val::Null) => true,
            (Self::Type(a), Val::Type(b)) => a == b,
            (Self::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (a, b) => a.is_none() && b.is_none(),
            },
            (Self::List(a), Val::List(b)) => a.equals(b),
            (Self::Map(a), Val::Map(b)) => a.equals(b),
            (Self::Kube(a), Val::Kube(b)) => a == b,
            (Self::Object(a), Val::Object(b)) => a.0 == b.0 && a.1.len() == b.1.len() && a.1.iter().all(|(key, value)| b.1.get(key).is_some_and(|it| value.equals(it))),
            (Self::Unknown(a), Val::Unknown(b)) => a == b,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// The order of two values that have one.
    pub fn compare(&self, other: &Val<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Double(a), Val::Double(b)) => a.partial_cmp(b),
            (Self::Double(a), b) => compare_mixed(*a, b.whole()?),
            (a, Val::Double(b)) => compare_mixed(*b, a.whole()?).map(Ordering::reverse),
            (Self::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Val::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (a, b) => Some(a.whole()?.cmp(&b.whole()?)),
        }
    }

    /// The value of a whole number.
    pub fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(it) => Some(i128::from(*it)),
            Self::Uint(it) => Some(i128::from(*it)),
            _ => None,
        }
    }

    /// The value as JSON, as CEL's conversion to `google.protobuf.Value` has it.
    pub fn to_json(&self) -> Eval<Value> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(it) => (*it).into(),
            Self::Int(it) => (*it).into(),
            Self::Uint(it) => (*it).into(),
            Self::Double(it) => (*it).into(),
            Self::String(it) => it.as_ref().into(),
            Self::Bytes(it) => BASE64.encode(it).into(),
            Self::Duration(it) => super::time::duration_text(*it).into(),
            Self::Timestamp(it) => it.to_string().into(),
            Self::List(it) => Value::Array(it.iter().map(|it| it?.to_json()).collect::<Eval<_>>()?),
            Self::Map(Map::Json(it, _)) => Value::Object((*it).clone()),
            Self::Map(Map::Made(it)) => Value::Object(it.values().map(|(key, value)| Ok((key.shown(), value.to_json()?))).collect::<Eval<_>>()?),
            Self::Object(it) => {
                let present = it.1.iter().filter(|(_, value)| !matches!(value, Self::Optional(None)));
                Value::Object(present.map(|(key, value)| Ok((decl::unescape(key), value.to_json()?))).collect::<Eval<_>>()?)
            }
            Self::Optional(Some(it)) => it.to_json()?,
            Self::Optional(None) => Value::Null,
            Self::Unknown(it) => (*it).clone(),
            Self::Kube(_) | Self::Check(_) | Self::Type(_) | Self::Variables => return fail(format!("unsupported conversion from '{}' to JSON", self.type_name())),
        })
    }
}

/// A double beside a whole number, without losing digits.
fn compare_mixed(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    if a.abs() > 1e30 {
        return Some(if a > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    Some((a.floor() as i128).cmp(&b).then(if a.fract() == 0.0 { Ordering::Equal } else { Ordering::Greater }))
}

fn formatted<'a>(text: &'a str, format: &str) -> Eval<Val<'a>> {
    let (read, name) = match format {
        "duration" => (super::time::parse_duration(text).map(Val::Duration), "duration"),
        "date" => {
            let midnight = text.parse().and_then(|it: jiff::civil::Date| it.to_zoned(jiff::tz::TimeZone::UTC));
            (midnight.ok().map(|it| Val::Timestamp(it.timestamp())), "date formatted string")
        }
        "date-time" => (text.parse().ok().map(Val::Timestamp), "date-time formatted string"),
        "byte" => (BASE64.decode(text).ok().map(|it| Val::Bytes(it.into())), "byte formatted string"),
        _ => return Ok(Val::String(Cow::Borrowed(text))),
    };
    or_fail(read, format!("Invalid {name} {text}"))
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(list, _) => list.len(),
            Self::Made(list, _) => list.len(),
        }
    }

    pub fn get(&self, at: usize) -> Eval<Val<'a>> {
        match self {
            Self::Json(list, None) => Ok(Val::json(&list[at])),
            Self::Json(list, Some(schema)) => Val::typed(&list[at], &schema["items"]),
            Self::Made(list, _) => Ok(list[at].clone()),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Eval<Val<'a>>> + '_ {
        (0..self.len()).map(|at| self.get(at))
    }

    pub fn to_vec(&self) -> Eval<Vec<Val<'a>>> {
        self.iter().collect()
    }

    fn schema(&self) -> Option<&'a Value> {
        match self {
            Self::Json(_, schema) | Self::Made(_, schema) => *schema,
        }
    }

    /// What makes an item the same item: its keys in a list map, all of it in a set; `None` where the place counts.
    fn identity(&self, item: &Val<'a>) -> Option<Vec<Val<'a>>> {
        let schema = self.schema()?;
        match schema.text("x-kubernetes-list-type") {
            "set" => Some(vec![item.clone()]),
            "map" => {
                let keys = schema.texts_at(&["x-kubernetes-list-map-keys"]);
                Some(keys.map(|key| item.find(&Val::text(decl::escape(key).unwrap_or_default())).ok().flatten().unwrap_or(Val::Null)).collect())
            }
            _ => None,
        }
    }

    fn equals(&self, other: &List<'_>) -> bool {
        if self.len() != other.len() {
            return false;
        }
        let (Ok(own), Ok(others)) = (self.to_vec(), other.to_vec()) else { return false };
        match own.first().and_then(|it| self.identity(it)) {
            // Sets and list maps are equal in whatever order.
            Some(_) => others.iter().all(|other| own.iter().any(|it| it.equals(other))),
            None => own.iter().zip(&others).all(|(a, b)| a.equals(b)),
        }
    }

    /// `a + b`: sets are united, list maps merged, others joined.
    pub fn join(self, other: List<'a>) -> Eval<List<'a>> {
        let schema = self.schema();
        let more = other.to_vec()?;
        let identity = |item: &Val<'a>| List::Made(Arc::default(), schema).identity(item);
        let mut items = match self {
            Self::Made(list, _) => list,
            Self::Json(..) => Arc::new(self.to_vec()?),
        };
        let list = Arc::make_mut(&mut items);
        for item in more {
            let same = match identity(&item) {
                Some(id) => list.iter().position(|it| identity(it).is_some_and(|other| id.iter().zip(&other).all(|(a, b)| a.equals(b)))),
                None => None,
            };
            match same {
                Some(at) => list[at] = item,
                None => list.push(item),
            }
        }
        Ok(Self::Made(items, schema))
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(map, _) => map.len(),
            Self::Made(map) => map.len(),
        }
    }

    pub fn find(&self, key: &Val<'_>) -> Eval<Option<Val<'a>>> {
        match self {
            Self::Made(map) => Ok(Key::of(key).ok().and_then(|it| map.get(&it)).map(|it| it.1.clone())),
            Self::Json(map, schema) => {
                let Val::String(name) = key else { return if schema.is_some() { no_overload() } else { Ok(None) } };
                match schema {
                    None => Ok(map.get(name.as_ref()).map(Val::json)),
                    Some(schema) => typed_entry(map, schema, name),
                }
            }
        }
    }

    pub fn keys(&self) -> Vec<Val<'a>> {
        match self {
            Self::Made(map) => map.values().map(|it| it.0.clone()).collect(),
            Self::Json(map, schema) => {
                let is_object = schema.is_some_and(|it| it.get("properties").is_some());
                map.keys().map(|it| if is_object { Val::text(decl::escape(it).unwrap_or_else(|| it.clone())) } else { Val::String(Cow::Borrowed(it)) }).collect()
            }
        }
    }

    pub fn entries(&self) -> Eval<Vec<(Val<'a>, Val<'a>)>> {
        let entry = |key: Val<'a>| self.find(&key).map(|value| (key, value.unwrap_or(Val::Null)));
        self.keys().into_iter().map(entry).collect()
    }

    fn equals(&self, other: &Map<'_>) -> bool {
        if self.len() != other.len() {
            return false;
        }
        if let (Self::Json(a, _), Map::Json(b, _)) = (self, other)
            && a == b
        {
            return true;
        }
        self.keys().iter().all(|key| match (self.find(key), other.find(key)) {
            (Ok(Some(a)), Ok(Some(b))) => a.equals(&b),
            (Ok(None), Ok(None)) => true,
            _ => false,
        })
    }
}

/// A field of an object with properties, or an entry of one with additional properties.
fn typed_entry<'a>(map: &'a serde_json::Map<String, Value>, schema: &'a Value, name: &str) -> Eval<Option<Val<'a>>> {
    static TEXT: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| serde_json::json!({"type": "string"}));
    let is_embedded = schema["x-kubernetes-embedded-resource"] == true;
    if schema.get("properties").is_some() || is_embedded {
        let field = decl::unescape(name);
        let Some(value) = map.get(&field).filter(|it| !it.is_null()) else { return Ok(None) };
        return match schema.at(&["properties", &field]) {
            Some(property) => Val::typed(value, property).map(Some),
            None if field == "metadata" => Ok(Some(Val::json(value))),
            None if matches!(field.as_str(), "apiVersion" | "kind") => Val::typed(value, &TEXT).map(Some),
            None => Ok(None),
        };
    }
    match (map.get(name), schema.get("additionalProperties").filter(|it| it.is_object())) {
        (Some(value), Some(schema)) => Val::typed(value, schema).map(Some),
        _ => Ok(None),
    }
}

impl Key {
    pub fn of(value: &Val<'_>) -> Eval<Self> {
        Ok(match value {
            Val::Bool(it) => Self::Bool(*it),
            Val::Double(it) if it.fract() == 0.0 && it.abs() < 1e30 => Self::Number(*it as i128),
            Val::Double(it) => Self::Double(it.to_bits()),
            Val::String(it) => Self::Text(it.to_string()),
            other => Self::Number(or_fail(other.whole(), format!("unsupported key type: {}", value.type_name()))?),
        })
    }
}
