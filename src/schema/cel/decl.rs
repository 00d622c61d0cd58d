//! From schemas to CEL's types, with the sizes that cost estimates need.
//! Follows apiserver `pkg/cel/types.go`, `pkg/cel/escaping.go`, `pkg/cel/common/schemas.go`.

use std::{collections::BTreeMap, sync::Arc};

use super::types::Type;
use crate::{
    meta::{Meta, Value},
    schema::{Schema, Shape},
};

/// The largest request there may be (`MaxRequestSizeBytes`): what a field without a bound can hold at most.
pub const REQUEST_BYTES_MAX: i64 = 3 * 1024 * 1024;
/// How deep built-in types are followed: some of them contain themselves.
const BUILTIN_DEPTH_MAX: usize = 12;

/// A type and its sizes.
#[derive(Clone, Debug)]
pub struct Decl {
    pub ty: Type,
    /// Of a list or a map: what it holds.
    of: Option<Arc<Decl>>,
    /// The most characters, items or entries.
    pub max_elements: i64,
    /// The fewest bytes of such a value as JSON.
    pub min_size: i64,
}

/// A type with fields, by their escaped names.
#[derive(Debug, Default)]
pub struct Object {
    pub name: String,
    pub fields: BTreeMap<String, Decl>,
    /// Every field is there: the type of an object that an expression makes (`Object.spec`).
    pub is_open: bool,
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Object {
    /// The type of a field: `Object.spec.x` is an object type of that name itself.
    pub fn field(&self, name: &str) -> Option<Type> {
        if self.is_open {
            return Some(Type::DYN);
        }
        self.fields.get(name).map(|it| it.ty.clone())
    }
}

impl Decl {
    pub fn scalar(ty: Type) -> Self {
        Self::sized(ty, 1, 0)
    }

    fn sized(ty: Type, min_size: i64, max_elements: i64) -> Self {
        Self { ty, of: None, max_elements, min_size }
    }

    /// An object with fields, such as `request`.
    pub fn object<N: Into<String>>(name: &str, fields: impl IntoIterator<Item = (N, Decl)>) -> Self {
        let fields = fields.into_iter().map(|(name, decl)| (name.into(), decl)).collect();
        Self::sized(Type::Object(Arc::new(Object { name: name.to_owned(), fields, is_open: false })), 2, 0)
    }

    fn at_most(self, most: Option<i64>) -> Self {
        Self { max_elements: most.unwrap_or(self.max_elements), ..self }
    }

    pub fn list(of: Decl) -> Self {
        let most = (REQUEST_BYTES_MAX - 2) / (of.min_size + 1);
        Self { of: Some(Arc::new(of.clone())), ..Self::sized(Type::list(of.ty), 2, most) }
    }

    pub fn map(of: Decl) -> Self {
        let most = (REQUEST_BYTES_MAX - 2) / (of.min_size + 6);
        Self { of: Some(Arc::new(of.clone())), ..Self::sized(Type::map(Type::STRING, of.ty), 2, most) }
    }

    pub fn string() -> Self {
        Self::sized(Type::STRING, 2, REQUEST_BYTES_MAX - 2)
    }

    /// What a step of a path leads to: a field, or `@items`, `@values`, `@keys`.
    pub fn step(&self, name: &str) -> Option<Decl> {
        match (&self.ty, &self.of, name) {
            (Type::Of("list", _), Some(of), "@items") | (Type::Of("map", _), Some(of), "@values") => Some(of.as_ref().clone()),
            (Type::Of("map", _), Some(_), "@keys") => Some(Self::sized(Type::STRING, 2, 0)),
            (Type::Object(object), ..) => object.fields.get(name).cloned(),
            _ => None,
        }
    }

    /// Of a property; expressions do not see one whose name they cannot spell, but those of its own schema do.
    pub fn property(&self, name: &str, schema: &Value) -> Option<Decl> {
        match escape(name) {
            Some(escaped) => self.step(&escaped),
            None => Self::from_structural(schema, is_embedded(schema), "selfType"),
        }
    }

    /// The fewest times that a value of this kind can stand in a request (`maxCardinality`).
    pub fn max_cardinality(&self) -> u64 {
        u64::try_from(REQUEST_BYTES_MAX / (self.min_size + 1)).unwrap_or_default()
    }

    /// From a node of a structural schema; `None` for what expressions do not see.
    pub fn from_structural(schema: &Value, is_root: bool, name: &str) -> Option<Self> {
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Self::sized(Type::DYN, 1, bound(schema, "maxLength").map_or(REQUEST_BYTES_MAX - 2, |it| it * 4)));
        }
        let below = |part: &str, step: &str| {
            let below = schema.get(part)?;
            Self::from_structural(below, is_embedded(below), &format!("{name}.{step}"))
        };
        match schema.text("type") {
            "array" => Some(Self::list(below("items", "@idx")?).at_most(bound(schema, "maxItems"))),
            "object" if schema["additionalProperties"].is_object() => {
                Some(Self::map(below("additionalProperties", "@elem")?).at_most(bound(schema, "maxProperties")))
            }
            "object" => Some(Self::structural_object(schema, is_root, name)),
            "string" => Some(Self::structural_string(schema)),
            "boolean" => Some(Self::sized(Type::BOOL, 4, 0)),
            "number" => Some(Self::sized(Type::DOUBLE, 1, 0)),
            "integer" => Some(Self::sized(Type::INT, 1, 0)),
            _ => None,
        }
    }

    fn structural_object(schema: &Value, is_root: bool, name: &str) -> Self {
        let (mut fields, mut min_size) = (BTreeMap::new(), 2);
        let required = schema.items_at(&["required"]);
        for (field, property) in schema.map_at(&["properties"]).into_iter().flatten() {
            let Some(escaped) = escape(field) else { continue };
            let Some(decl) = Self::from_structural(property, is_embedded(property), &format!("{name}.{escaped}")) else { continue };
            if required.iter().any(|it| it == field) && property.get("default").is_none() {
                min_size += field.len() as i64 + decl.min_size + 4;
            }
            fields.insert(escaped, decl);
        }
        if is_root {
            let names = ["name", "generateName"].map(|it| (it, Self::string()));
            fields.insert("metadata".to_owned(), Self::object(&format!("{name}.metadata"), names));
            for field in ["apiVersion", "kind"] {
                fields.insert(field.to_owned(), Self::string());
            }
        }
        Self { min_size, ..Self::object(name, fields) }
    }

    fn structural_string(schema: &Value) -> Self {
        match schema.text("format") {
            "byte" => Self::sized(Type::BYTES, 2, bound(schema, "maxLength").unwrap_or(REQUEST_BYTES_MAX - 2)),
            "duration" => Self::sized(Type::DURATION, 3, 32),
            "date" => Self::sized(Type::TIMESTAMP, 12, 12),
            "date-time" => Self::sized(Type::TIMESTAMP, 21, 32),
            _ => {
                let longest = schema.texts_at(&["enum"]).map(|it| it.len() as i64).max();
                let most = bound(schema, "maxLength").map(|it| it * 4).or(longest).unwrap_or(REQUEST_BYTES_MAX - 2);
                Self::sized(Type::STRING, 2, most)
            }
        }
    }

    /// From a built-in schema, or any other, for the type check of policies.
    pub fn from_schema(schema: &Schema, name: &str) -> Self {
        Self::builtin(schema, name, BUILTIN_DEPTH_MAX)
    }

    fn builtin(schema: &Schema, name: &str, depth: usize) -> Self {
        if let Some(rules) = &schema.rules {
            return Self::from_structural(&rules.source, false, name).unwrap_or_else(|| Self::scalar(Type::DYN));
        }
        match &schema.shape {
            _ if depth == 0 => Self::scalar(Type::DYN),
            Shape::Bool => Self::scalar(Type::BOOL),
            Shape::Int32 | Shape::Int64 => Self::scalar(Type::INT),
            Shape::Float => Self::scalar(Type::DOUBLE),
            Shape::String | Shape::Quantity | Shape::Duration => Self::string(),
            Shape::Bytes => Self::sized(Type::BYTES, 2, REQUEST_BYTES_MAX - 2),
            Shape::Time | Shape::MicroTime => Self::sized(Type::TIMESTAMP, 21, 32),
            Shape::Map { values, .. } => Self::map(Self::builtin(values, &format!("{name}.@elem"), depth - 1)),
            Shape::List { items, .. } => Self::list(Self::builtin(items, &format!("{name}.@idx"), depth - 1)),
            Shape::Object(shape) => {
                let child = |field: &str, of: &Schema| Some((escape(field)?, Self::builtin(of, &format!("{name}.{field}"), depth - 1)));
                let meta: &[&str] = if shape.has_type_meta { &["apiVersion", "kind"] } else { &[] };
                let meta = meta.iter().map(|it| ((*it).to_owned(), Self::string()));
                Self::object(name, shape.fields.iter().filter_map(|it| child(&it.name, &it.schema)).chain(meta))
            }
            _ => Self::scalar(Type::DYN),
        }
    }
}

fn is_embedded(schema: &Value) -> bool {
    schema["x-kubernetes-embedded-resource"] == true
}

fn bound(schema: &Value, name: &str) -> Option<i64> {
    schema.int_at(&[name]).map(|it| it.max(0))
}

/// Words of the language, which name no variables, and no fields as they are.
pub const KEYWORDS: [&str; 21] = [
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return",
    "var", "void", "while",
];

/// The name of a field as expressions spell it; `None` where they cannot.
pub fn escape(field: &str) -> Option<String> {
    if KEYWORDS.contains(&field) {
        return Some(format!("__{field}__"));
    }
    let is_spellable = |it: char| it == '_' || it == '.' || it == '-' || it == '/' || it.is_ascii_alphanumeric();
    if field.is_empty() || field.starts_with(|it: char| it.is_ascii_digit()) || !field.chars().all(is_spellable) {
        return None;
    }
    Some(field.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

/// The field that an expression means.
pub fn unescape(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|it| it.strip_suffix("__")).filter(|it| KEYWORDS.contains(it)) {
        return word.to_owned();
    }
    if !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__slash__", "/").replace("__dash__", "-").replace("__dot__", ".").replace("__underscores__", "__")
}
