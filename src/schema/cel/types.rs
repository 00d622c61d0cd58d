//! CEL's types, and when one fits another. Follows cel-go `common/types/types.go` and `checker/types.go`.

use std::{fmt, sync::Arc};

use rpds::RedBlackTreeMap;

use super::decl::Object;

#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// One of [`NAMES`] and what it is of: `int`, `list(string)`, `net.IP`.
    Of(&'static str, Vec<Type>),
    /// A type variable: of a signature, or one that the checker made.
    Param(String),
    Object(Arc<Object>),
}

/// All names, and of how many types each one is. Null may stand for those with a dot: the well-known types, and Kubernetes' own.
const NAMES: [(&str, usize); 26] = [
    ("dyn", 0), ("error", 0), ("null_type", 0), ("bool", 0), ("int", 0), ("uint", 0), ("double", 0), ("string", 0), ("bytes", 0),
    ("google.protobuf.Duration", 0), ("google.protobuf.Timestamp", 0), ("type", 1), ("list", 1), ("map", 2), ("optional_type", 1),
    ("kubernetes.Quantity", 0), ("kubernetes.URL", 0), ("kubernetes.Semver", 0), ("kubernetes.NamedFormat", 0), ("net.IP", 0), ("net.CIDR", 0),
    ("kubernetes.authorization.Authorizer", 0), ("kubernetes.authorization.PathCheck", 0), ("kubernetes.authorization.GroupCheck", 0),
    ("kubernetes.authorization.ResourceCheck", 0), ("kubernetes.authorization.Decision", 0),
];

impl Type {
    pub const DYN: Self = Self::simple("dyn");
    pub const ERROR: Self = Self::simple("error");
    pub const NULL: Self = Self::simple("null_type");
    pub const BOOL: Self = Self::simple("bool");
    pub const INT: Self = Self::simple("int");
    pub const DOUBLE: Self = Self::simple("double");
    pub const STRING: Self = Self::simple("string");
    pub const BYTES: Self = Self::simple("bytes");
    pub const DURATION: Self = Self::simple("google.protobuf.Duration");
    pub const TIMESTAMP: Self = Self::simple("google.protobuf.Timestamp");

    pub const fn simple(name: &'static str) -> Self {
        Self::Of(name, Vec::new())
    }

    pub fn list(of: Type) -> Self {
        Self::Of("list", vec![of])
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Of("map", vec![key, value])
    }

    pub fn optional(of: Type) -> Self {
        Self::Of("optional_type", vec![of])
    }

    /// The type of a type.
    pub fn of_type(of: Type) -> Self {
        Self::Of("type", vec![of])
    }

    /// Reads `list(map(string,A))`, as the table of overloads writes it; what is no type's name is a variable.
    pub fn parse(text: &str) -> Self {
        let (name, of) = text.strip_suffix(')').and_then(|it| it.split_once('(')).unwrap_or((text, ""));
        match name {
            "duration" => Self::DURATION,
            "timestamp" => Self::TIMESTAMP,
            name => match (NAMES.iter().find(|it| it.0 == name), of.split_once(',')) {
                (Some((name @ "map", _)), Some((key, value))) => Self::Of(name, vec![Self::parse(key), Self::parse(value)]),
                (Some((name, 0)), _) => Self::simple(name),
                (Some((name, _)), _) => Self::Of(name, vec![Self::parse(of)]),
                (None, _) => Self::Param(name.to_owned()),
            },
        }
    }

    /// The type of that name, for expressions such as `type(x) == int`.
    pub fn named(name: &str) -> Option<Self> {
        let (name, count) = NAMES.iter().find(|it| it.0 == name && !matches!(name, "dyn" | "error"))?;
        Some(Self::Of(name, vec![Self::DYN; *count]))
    }

    /// What a value of this type says its type is.
    pub fn name(&self) -> &str {
        match self {
            Self::Of(name, _) => name,
            Self::Param(name) => name,
            Self::Object(object) => &object.name,
        }
    }

    /// The types that it is of.
    pub fn params(&self) -> &[Type] {
        match self {
            Self::Of(_, params) => params,
            _ => &[],
        }
    }

    pub fn is_dyn(&self) -> bool {
        *self == Self::DYN
    }

    /// Kubernetes' own: `net.IP`, `kubernetes.Quantity` and so on.
    pub fn is_opaque(&self) -> bool {
        matches!(self, Self::Of(name, _) if name.starts_with("kubernetes.") || name.starts_with("net."))
    }

    fn is_same_kind(&self, other: &Type) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.name() == other.name()
    }

    /// Null may stand for it without an error of types.
    fn is_nullable(&self) -> bool {
        match self {
            Self::Of(name, _) => name.contains('.') || matches!(*name, "null_type" | "optional_type"),
            Self::Param(_) => false,
            Self::Object(_) => true,
        }
    }

    fn is_equal_or_less_specific(&self, other: &Type) -> bool {
        if self.is_dyn() || matches!(self, Self::Param(_)) {
            return true;
        }
        if other.is_dyn() || matches!(other, Self::Param(_)) || !self.is_same_kind(other) {
            return false;
        }
        self.name() == "type" || self.params().iter().zip(other.params()).all(|(a, b)| a.is_equal_or_less_specific(b))
    }

    /// The more general of two types that fit.
    pub fn most_general(self, other: &Type) -> Type {
        if self.is_equal_or_less_specific(other) { self } else { other.clone() }
    }

    /// The type with other types in place of some of its variables.
    pub fn replaced(&self, by: &mut dyn FnMut(&str) -> Option<Type>) -> Self {
        match self {
            Self::Of(name, of) => Self::Of(name, of.iter().map(|it| it.replaced(by)).collect()),
            Self::Param(name) => by(name).unwrap_or_else(|| self.clone()),
            Self::Object(_) => self.clone(),
        }
    }
}

/// As messages show a type (`FormatCELType`).
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.name() {
            "null_type" => "null",
            "error" => "!error!",
            "google.protobuf.Duration" => "duration",
            "google.protobuf.Timestamp" => "timestamp",
            name => name,
        })?;
        let params: Vec<String> = self.params().iter().map(ToString::to_string).collect();
        if params.is_empty() { Ok(()) } else { write!(f, "({})", params.join(", ")) }
    }
}

/// What type variables stand for, as far as the checker has found out.
#[derive(Default)]
pub struct Mapping {
    known: RedBlackTreeMap<String, Type>,
}

impl Mapping {
    /// The type with all known variables replaced; the unknown ones become `dyn` when `to_dyn`.
    pub fn substitute(&self, ty: &Type, to_dyn: bool) -> Type {
        ty.replaced(&mut |name| match self.known.get(name) {
            Some(known) => Some(self.substitute(known, to_dyn)),
            None => to_dyn.then_some(Type::DYN),
        })
    }

    /// Whether `from` fits `to`; learns what the variables stand for if so.
    pub fn assign(&mut self, to: &Type, from: &Type) -> bool {
        self.assign_all(std::slice::from_ref(to), std::slice::from_ref(from))
    }

    pub fn assign_all(&mut self, to: &[Type], from: &[Type]) -> bool {
        let before = self.known.clone();
        let fits = to.len() == from.len() && to.iter().zip(from).all(|(to, from)| self.fits(to, from));
        if !fits {
            self.known = before;
        }
        fits
    }

    fn fits(&mut self, to: &Type, from: &Type) -> bool {
        if matches!(from, Type::Param(_)) {
            let (is_valid, is_known) = self.try_variable(to, from);
            if is_valid || is_known {
                return is_valid;
            }
        }
        if matches!(to, Type::Param(_)) {
            return self.try_variable(from, to).0;
        }
        match (to, from) {
            (Type::Of("dyn" | "error", _), _) | (_, Type::Of("dyn" | "error", _)) => true,
            (null, other) | (other, null) if *null == Type::NULL => other.is_nullable(),
            _ => to.is_same_kind(from) && (to.name() == "type" || to.params().iter().zip(from.params()).all(|(to, from)| self.fits(to, from))),
        }
    }

    /// Whether the variable may be `ty`, and whether it was known before.
    fn try_variable(&mut self, ty: &Type, variable: &Type) -> (bool, bool) {
        let Type::Param(name) = variable else { return (false, false) };
        if ty == variable {
            return (true, true);
        }
        if let Some(known) = self.known.get(name).cloned() {
            if *ty == known {
                return (true, true);
            }
            if !self.fits(ty, &known) {
                return (false, true);
            }
            let general = ty.clone().most_general(&known);
            if self.is_free_of(variable, &general) {
                self.known.insert_mut(name.clone(), general);
            }
            return (true, true);
        }
        let is_free = self.is_free_of(variable, ty);
        if is_free {
            self.known.insert_mut(name.clone(), ty.clone());
        }
        (is_free, false)
    }

    fn is_free_of(&self, variable: &Type, within: &Type) -> bool {
        if variable == within {
            return false;
        }
        match within {
            Type::Param(name) => self.known.get(name).is_none_or(|it| self.is_free_of(variable, it)),
            other => other.params().iter().all(|it| self.is_free_of(variable, it)),
        }
    }
}
