//! CEL's types, and when one fits another. Follows cel-go `common/types/types.go` and `checker/types.go`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::decl::Object;

#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// The type of a type.
    Type(Arc<Type>),
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// A type variable: of a signature, or one that the checker made.
    Param(String),
    /// Kubernetes' own: `net.IP`, `kubernetes.Quantity` and so on.
    Opaque(&'static str),
    Object(Arc<Object>),
}

/// Types that libraries add, beyond the language's.
pub const OPAQUE: [&str; 11] = [
    "kubernetes.Quantity", "kubernetes.URL", "kubernetes.Semver", "kubernetes.NamedFormat", "net.IP", "net.CIDR", "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck", "kubernetes.authorization.GroupCheck", "kubernetes.authorization.ResourceCheck", "kubernetes.authorization.Decision",
];

impl Type {
    pub fn list(of: Type) -> Self {
        Self::List(Arc::new(of))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    pub fn optional(of: Type) -> Self {
        Self::Optional(Arc::new(of))
    }

    /// Reads `list(map(string, A))`, as the table of overloads writes it; what is no type's name is a variable.
    pub fn parse(text: &str) -> Self {
        let (name, inner) = match text.split_once('(') {
            Some((name, rest)) => (name, split(rest.strip_suffix(')').unwrap_or(rest))),
            None => (text, Vec::new()),
        };
        let mut inner = inner.into_iter().map(Self::parse);
        let mut next = || inner.next().unwrap_or(Self::Dyn);
        match name {
            "dyn" => Self::Dyn,
            "null_type" => Self::Null,
            "bool" => Self::Bool,
            "int" => Self::Int,
            "uint" => Self::Uint,
            "double" => Self::Double,
            "string" => Self::String,
            "bytes" => Self::Bytes,
            "duration" | "google.protobuf.Duration" => Self::Duration,
            "timestamp" | "google.protobuf.Timestamp" => Self::Timestamp,
            "list" => Self::list(next()),
            "map" => Self::map(next(), next()),
            "optional_type" => Self::optional(next()),
            "type" => Self::Type(Arc::new(next())),
            name => OPAQUE.iter().find(|it| **it == name).map_or_else(|| Self::Param(name.to_owned()), |it| Self::Opaque(it)),
        }
    }

    /// The type of that name, for expressions such as `type(x) == int`.
    pub fn named(name: &str) -> Option<Self> {
        Some(Self::parse(name)).filter(|it| it.runtime_name() == name && !matches!(it, Self::Dyn | Self::Param(_)))
    }

    /// What a value of this type says its type is.
    pub fn runtime_name(&self) -> &str {
        match self {
            Self::Dyn => "dyn",
            Self::Error => "error",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Param(name) => name,
            Self::Opaque(name) => name,
            Self::Object(object) => &object.name,
        }
    }

    pub fn params(&self) -> Vec<&Type> {
        match self {
            Self::List(of) | Self::Optional(of) | Self::Type(of) => vec![of],
            Self::Map(pair) => vec![&pair.0, &pair.1],
            _ => Vec::new(),
        }
    }

    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    pub fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    fn is_same_kind(&self, other: &Type) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.runtime_name_if_named() == other.runtime_name_if_named()
    }

    fn runtime_name_if_named(&self) -> &str {
        match self {
            Self::Param(_) | Self::Opaque(_) | Self::Object(_) => self.runtime_name(),
            _ => "",
        }
    }

    /// Null may stand for it without an error of types.
    fn is_nullable(&self) -> bool {
        matches!(self, Self::Null | Self::Duration | Self::Timestamp | Self::Object(_) | Self::Opaque(_) | Self::Optional(_))
    }

    fn is_equal_or_less_specific(&self, other: &Type) -> bool {
        if self.is_dyn() || matches!(self, Self::Param(_)) {
            return true;
        }
        if other.is_dyn() || matches!(other, Self::Param(_)) || !self.is_same_kind(other) {
            return false;
        }
        matches!(self, Self::Type(_)) || self.params().into_iter().zip(other.params()).all(|(a, b)| a.is_equal_or_less_specific(b))
    }

    /// The more general of two types that fit.
    pub fn most_general(self, other: &Type) -> Type {
        if self.is_equal_or_less_specific(other) { self } else { other.clone() }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        self.is_same_kind(other) && self.params() == other.params()
    }
}

/// As messages show a type (`FormatCELType`).
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Error => f.write_str("!error!"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            _ => {
                f.write_str(self.runtime_name())?;
                let params: Vec<String> = self.params().into_iter().map(ToString::to_string).collect();
                if params.is_empty() { Ok(()) } else { write!(f, "({})", params.join(", ")) }
            }
        }
    }
}

/// The parts between commas that stand in no brackets.
pub fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => (),
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|it| !it.is_empty());
    parts
}

/// What type variables stand for, as far as the checker has found out.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    known: BTreeMap<String, Type>,
    /// What an attempt has changed, to be undone when it fails.
    undo: Vec<(String, Option<Type>)>,
}

impl Mapping {
    pub fn add(&mut self, param: &str, to: Type) {
        let before = self.known.insert(param.to_owned(), to);
        self.undo.push((param.to_owned(), before));
    }

    fn find(&self, param: &Type) -> Option<&Type> {
        match param {
            Type::Param(name) => self.known.get(name),
            _ => None,
        }
    }

    /// The type with all known variables replaced; the unknown ones become `dyn` when `to_dyn`.
    pub fn substitute(&self, ty: &Type, to_dyn: bool) -> Type {
        if let Some(known) = self.find(ty) {
            return self.substitute(known, to_dyn);
        }
        match ty {
            Type::Param(_) if to_dyn => Type::Dyn,
            Type::List(of) => Type::list(self.substitute(of, to_dyn)),
            Type::Optional(of) => Type::optional(self.substitute(of, to_dyn)),
            Type::Type(of) => Type::Type(Arc::new(self.substitute(of, to_dyn))),
            Type::Map(pair) => Type::map(self.substitute(&pair.0, to_dyn), self.substitute(&pair.1, to_dyn)),
            other => other.clone(),
        }
    }

    /// Whether `from` fits `to`; learns what the variables stand for if so.
    pub fn assign(&mut self, to: &Type, from: &Type) -> bool {
        self.assign_all(std::slice::from_ref(to), std::slice::from_ref(from))
    }

    pub fn assign_all(&mut self, to: &[Type], from: &[Type]) -> bool {
        self.undo.clear();
        let fits = to.len() == from.len() && to.iter().zip(from).all(|(to, from)| self.fits(to, from));
        while let Some((param, before)) = self.undo.pop().filter(|_| !fits) {
            match before {
                Some(before) => _ = self.known.insert(param, before),
                None => _ = self.known.remove(&param),
            }
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
            _ if to.is_dyn_or_error() || from.is_dyn_or_error() => true,
            (Type::Null, other) | (other, Type::Null) => other.is_nullable(),
            (Type::Type(_), Type::Type(_)) => true,
            _ => to.is_same_kind(from) && to.params().into_iter().zip(from.params()).all(|(to, from)| self.fits(to, from)),
        }
    }

    /// Whether the variable may be `ty`, and whether it was known before.
    fn try_variable(&mut self, ty: &Type, variable: &Type) -> (bool, bool) {
        let Type::Param(name) = variable else { return (false, false) };
        if ty == variable {
            return (true, true);
        }
        if let Some(known) = self.find(variable).cloned() {
            if *ty == known {
                return (true, true);
            }
            if !self.fits(ty, &known) {
                return (false, true);
            }
            let general = ty.clone().most_general(&known);
            if self.is_free_of(variable, &general) {
                self.add(name, general);
            }
            return (true, true);
        }
        let is_free = self.is_free_of(variable, ty);
        if is_free {
            self.add(name, ty.clone());
        }
        (is_free, false)
    }

    fn is_free_of(&self, variable: &Type, within: &Type) -> bool {
        if variable == within {
            return false;
        }
        match self.find(within) {
            Some(known) => self.is_free_of(variable, known),
            None => within.params().into_iter().all(|it| self.is_free_of(variable, it)),
        }
    }
}
