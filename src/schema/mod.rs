//! One schema type for built-in and custom kinds, and its interpreters.
//!
//! A [`Schema`] is a node of a tree: what JSON may stand at one place, and everything that any interpreter needs to know
//! about it. Built-in nodes are made once from the table of type facts (`types.txt`) and may refer to each other in
//! circles; those of a custom resource are made from its CRD and may refer to built-in ones (`ObjectMeta`).
//! Each interpreter is a file: it walks a value and a schema together and knows no kind.

pub mod apply;
pub mod cel;
pub mod codec;
mod correlation;
pub mod default;
mod formats;
pub mod merge;
pub mod openapi;
pub mod protobuf;
pub mod rules;
pub mod structural;
pub mod tape;
pub mod types;
pub mod validate;

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, LazyLock},
};

use crate::meta::Value;

/// What may stand at one place of an object.
#[derive(Debug, Default)]
pub struct Schema {
    /// `io.k8s.api.core.v1.Container`; empty for nodes of custom resources and for scalars.
    pub name: String,
    pub shape: Shape,
    /// Custom resources: `null` is a value of its own. Built-in fields drop `null`.
    pub is_nullable: bool,
    /// The declared default, filled in where the field is absent (`// +default`, OpenAPI `default`).
    pub default: Option<Value>,
    /// The root of a custom resource only: what its values must be; see `structural.rs`.
    pub rules: Option<Box<structural::Rules>>,
}

#[derive(Debug, Default)]
pub enum Shape {
    /// Any JSON: no type is declared, or `x-kubernetes-preserve-unknown-fields` without properties; `runtime.RawExtension`.
    #[default]
    Any,
    Bool,
    Int32,
    Int64,
    Float,
    String,
    /// Base64 in JSON.
    Bytes,
    /// `metav1.Time`
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// The three unions of JSONSchemaProps, which have their own wire forms.
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
    Object(Struct),
    Map { values: SchemaRef, is_atomic: bool },
    List { items: SchemaRef, topology: ListTopology },
}

/// An object with declared fields.
#[derive(Debug, Default)]
pub struct Struct {
    /// In the order of their protobuf numbers; those of custom resources as declared.
    pub fields: Vec<Field>,
    /// JSON name → place in `fields`; fields of inlined structs stand here too.
    pub by_name: HashMap<String, usize>,
    /// Server-side apply owns the object as a whole (`x-kubernetes-map-type: atomic`).
    pub is_atomic: bool,
    /// Fields that no schema declares are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserves_unknown: bool,
    /// Custom resources: fields beside the declared ones, checked by this schema (`additionalProperties` with `properties` is not structural).
    /// An embedded resource has `apiVersion`, `kind` and `metadata` of its own.
    pub is_embedded_resource: bool,
    /// The object is a top-level one: it has `apiVersion` and `kind`.
    pub has_type_meta: bool,
}

#[derive(Debug, Default)]
pub struct Field {
    pub name: String,
    pub schema: SchemaRef,
    /// Protobuf field number; 0 for custom resources.
    pub number: u32,
    /// For a field of an inlined struct: the numbers of the messages that lead to it (`VolumeSource` in `Volume`), outermost first.
    pub within: Box<[u32]>,
    /// Protobuf and Go: a pointer, so that absent and zero differ.
    pub is_pointer: bool,
    /// Go's encoder writes the zero value too (no `omitempty`).
    pub keeps_zero: bool,
    pub is_required: bool,
    /// This field's default, over its schema's.
    pub default: Option<Box<Value>>,
    /// What Go fills in by code (`SetDefaults_*`), which OpenAPI does not tell.
    pub implied: Option<Box<Value>>,
    /// This field is atomic for server-side apply, whatever its schema says.
    pub is_atomic: bool,
    /// This field is granular for server-side apply though its schema is atomic.
    pub is_granular: bool,
    pub patch: PatchStrategy,
    /// The name of the enum type whose values are allowed; for OpenAPI.
    pub enumeration: Option<&'static [&'static str]>,
}

/// How strategic merge patch treats a field (`patchStrategy`, `patchMergeKey`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub is_merge: bool,
    pub is_replace: bool,
    pub retains_keys: bool,
    pub merge_key: Option<Box<str>>,
}

/// How server-side apply sees a list (`x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListTopology {
    #[default]
    Atomic,
    Set,
    /// The names of the fields that identify an item.
    Map(Vec<String>),
}

/// A reference to a schema: built-in ones live for the whole process, custom ones with their kind.
#[derive(Clone, Debug)]
pub enum SchemaRef {
    /// Place in the table of built-in types.
    Builtin(usize),
    Custom(Arc<Schema>),
    Lazy(Arc<LazySchema>),
}

/// Made when the first object needs it: of hundreds of custom resources few are in use.
type LazySchema = LazyLock<Schema, Box<dyn FnOnce() -> Schema + Send>>;

impl Deref for SchemaRef {
    type Target = Schema;

    fn deref(&self) -> &Schema {
        match self {
            Self::Builtin(at) => &types::table().nodes[*at],
            Self::Custom(schema) => schema,
            Self::Lazy(schema) => schema,
        }
    }
}

impl SchemaRef {
    pub fn lazy(make: impl FnOnce() -> Schema + Send + 'static) -> Self {
        Self::Lazy(Arc::new(LazyLock::new(Box::new(make))))
    }
}

impl From<Schema> for SchemaRef {
    fn from(schema: Schema) -> Self {
        Self::Custom(Arc::new(schema))
    }
}

impl Default for SchemaRef {
    fn default() -> Self {
        Schema::default().into()
    }
}

/// The schema of a built-in type by its OpenAPI name, such as `io.k8s.api.apps.v1.Deployment`.
pub fn builtin(name: &str) -> Option<SchemaRef> {
    types::table().by_name.get(name).map(|at| SchemaRef::Builtin(*at))
}

impl Struct {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).map(|at| &self.fields[*at])
    }
}

impl Schema {
    /// Of the table of types, not of a CRD.
    pub fn is_builtin(&self) -> bool {
        !self.name.is_empty()
    }

    pub fn as_struct(&self) -> Option<&Struct> {
        match &self.shape {
            Shape::Object(it) => Some(it),
            _ => None,
        }
    }

    /// The declared field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.as_struct()?.field(name)
    }

    /// The schema of what stands under a name: of a declared field, or of a map's values.
    pub fn below(&self, name: &str) -> Option<&Schema> {
        match &self.shape {
            Shape::Map { values, .. } => Some(values),
            _ => self.field(name).map(|it| &*it.schema),
        }
    }
}
