//! What an expression may cost at most, known before it runs: upstream refuses rules that could be too costly, so these numbers are part of the API.
//! Follows cel-go `checker/cost.go` and apiserver `pkg/cel/library/cost.go`.

use std::collections::HashMap;

use super::{
    Environment,
    ast::{ACCUMULATOR, Call, Expr, Fold, Kind, Literal},
    types::Type,
};

/// From the least to the most; both stop at the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

/// A tenth of a unit for every character that is looked at (`StringTraversalCostFactor`).
pub const TRAVERSAL: f64 = 0.1;
/// A quarter for every character of a pattern (`RegexStringLengthCostFactor`).
pub const PATTERN: f64 = 0.25;
pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const STRUCT: u64 = 40;
/// A question to the authorizer: no more than two of them in one expression.
pub const CHECK: u64 = 350_000;
/// The size of a format's pattern (`MaxNameFormatRegexSize`).
const FORMAT_PATTERN: f64 = 128.0;

impl Range {
    const ZERO: Self = Self::fixed(0);
    const ONE: Self = Self::fixed(1);
    const UNKNOWN: Self = Self { min: 0, max: u64::MAX };

    pub const fn fixed(size: u64) -> Self {
        Self { min: size, max: size }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    pub fn scaled(self, factor: f64) -> Self {
        // A conversion to an integer stops at its largest.
        let scale = |it: u64| (it as f64 * factor).ceil() as u64;
        Self { min: scale(self.min), max: scale(self.max) }
    }

    pub fn traversed(self) -> Self {
        self.scaled(TRAVERSAL)
    }

    /// The size of the shorter of two that are compared.
    fn shorter(self, other: Self) -> Self {
        let max = self.max.min(other.max);
        Self { min: max.min(1), max }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Sizes of what a list or map holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    is_list: bool,
    key: Range,
    value: Range,
}

impl Held {
    fn union(self, other: Self) -> Self {
        Self { key: self.key.union(other.key), value: self.value.union(other.value), ..self }
    }
}

/// A variable of a macro: the path it stands for, and what is known of its size.
struct Local {
    name: String,
    path: Vec<String>,
    size: Option<Range>,
    held: Option<Held>,
}

pub fn estimate(expr: &Expr, types: &[Type], environment: &Environment) -> Range {
    Coster { types, environment, paths: HashMap::new(), sizes: HashMap::new(), held: HashMap::new(), locals: Vec::new() }.cost(expr)
}

struct Coster<'a> {
    types: &'a [Type],
    environment: &'a Environment,
    paths: HashMap<usize, Vec<String>>,
    sizes: HashMap<usize, Range>,
    held: HashMap<usize, Held>,
    locals: Vec<Local>,
}

impl Coster<'_> {
    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            Kind::Literal(_) | Kind::Broken => Range::ZERO,
            Kind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |it| it.path.clone());
                self.paths.insert(expr.id, path);
                Range::ONE
            }
            Kind::Select { operand, is_test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let cost = self.cost(operand);
                let is_counted = matches!(self.types[operand.id], Type::Map(_) | Type::Object(_) | Type::Param(_) | Type::Opaque(_));
                let mut path = self.path(operand);
                path.push(field.clone());
                self.paths.insert(expr.id, path);
                cost.plus(if is_counted { Range::ONE } else { Range::ZERO })
            }
            Kind::Call(call) => self.call(expr, call),
            Kind::List(items) => {
                let (mut sum, mut value) = (Range::ZERO, Range { min: if items.is_empty() { 0 } else { u64::MAX }, max: 0 });
                for item in items {
                    sum = sum.plus(self.cost(&item.value));
                    value = value.union(self.size_or_unknown(&item.value));
                }
                self.held.insert(expr.id, Held { is_list: true, key: Range::ONE, value });
                sum.plus(Range::fixed(LIST))
            }
            Kind::Map(entries) => {
                let nothing = Range { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut sum, mut key, mut value) = (Range::ZERO, nothing, nothing);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.held.insert(expr.id, Held { is_list: false, key, value });
                sum.plus(Range::fixed(MAP))
            }
            Kind::Struct(_, fields) => fields.iter().fold(Range::fixed(STRUCT), |sum, it| sum.plus(self.cost(&it.value))),
            Kind::Fold(fold) if fold.is_bind() => self.bind(expr, fold),
            Kind::Fold(fold) => self.fold(expr, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|it| it.name == name)
    }

    fn path(&self, expr: &Expr) -> Vec<String> {
        let local = match &expr.kind {
            Kind::Ident(name) => self.local(name).map(|it| it.path.clone()),
            _ => None,
        };
        local.or_else(|| self.paths.get(&expr.id).cloned()).unwrap_or_default()
    }

    fn push(&mut self, name: &str, expr: &Expr) {
        let local = Local { name: name.to_owned(), path: self.path(expr), size: self.size(expr), held: self.held_by(expr) };
        self.locals.push(local);
    }

    fn bind(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let cost = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push(&fold.accu, &fold.init);
        let cost = cost.plus(self.cost(&fold.result));
        self.locals.pop();
        self.copy_sizes(expr, &fold.result);
        cost
    }

    fn fold(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push(&fold.accu, &fold.init);
        let held = self.held_by(&fold.range);
        let is_list = held.map_or(matches!(self.types[fold.range.id], Type::List(_)), |it| it.is_list);
        let path = self.path(&fold.range);
        let mut declare = |name: &str, is_key: bool| {
            let step = match (is_key, is_list) {
                (true, true) => "@indices",
                (true, false) => "@keys",
                (false, true) => "@items",
                (false, false) => "@values",
            };
            let path = path.iter().cloned().chain([step.to_owned()]).collect();
            let size = held.map(|it| if is_key { it.key } else { it.value });
            self.locals.push(Local { name: name.to_owned(), path, size, held: None });
        };
        declare(&fold.var, fold.var2.is_some() || !is_list);
        if let Some(var2) = &fold.var2 {
            declare(var2, false);
        }
        let step = self.cost(&fold.condition).plus(self.cost(&fold.step));
        self.locals.truncate(self.locals.len() - 1 - usize::from(fold.var2.is_some()));
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        match &fold.init.kind {
            Kind::Literal(_) => self.set_size(expr, self.size(&fold.init)),
            Kind::List(_) | Kind::Map(_) => {
                self.set_size(expr, Some(count));
                if let Some(held) = self.held_by(&fold.step) {
                    self.held.insert(expr.id, held);
                }
            }
            _ => (),
        }
        sum.plus(count.times(step))
    }

    fn set_size(&mut self, expr: &Expr, size: Option<Range>) {
        if let Some(size) = size {
            self.sizes.insert(expr.id, size);
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        self.set_size(to, self.size(from));
        if let Some(held) = self.held_by(from) {
            self.held.insert(to.id, held);
        }
    }

    fn held_by(&self, expr: &Expr) -> Option<Held> {
        let local = || match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|it| it.held),
            _ => None,
        };
        self.held.get(&expr.id).copied().or_else(local)
    }

    fn size_or_unknown(&self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    /// What is known of a value's size: from the expression, from the schema, from the type.
    fn size(&self, expr: &Expr) -> Option<Range> {
        if let Some(known) = self.sizes.get(&expr.id) {
            return Some(*known);
        }
        match &expr.kind {
            Kind::Literal(Literal::String(text)) => return Some(Range::fixed(text.chars().count() as u64)),
            Kind::Literal(Literal::Bytes(bytes)) => return Some(Range::fixed(bytes.len() as u64)),
            Kind::Literal(_) => return Some(Range::ONE),
            Kind::List(items) => return Some(Range::fixed(items.len() as u64)),
            Kind::Map(entries) => return Some(Range::fixed(entries.len() as u64)),
            _ => (),
        }
        let local = || match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|it| it.size),
            _ => None,
        };
        self.declared(&self.path(expr)).or_else(|| is_scalar(&self.types[expr.id]).then_some(Range::ONE)).or_else(local)
    }

    fn declared(&self, path: &[String]) -> Option<Range> {
        let max = self.environment.max_elements(path)?;
        Some(Range { min: 0, max })
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> Range {
        if call.function == "dyn" {
            let cost = self.cost(&call.args[0]);
            self.copy_sizes(expr, &call.args[0]);
            return cost.plus(Range::ONE);
        }
        let costs: Vec<Range> = call.args.iter().map(|it| self.cost(it)).collect();
        if call.overloads.is_empty() {
            return Range::ZERO;
        }
        let target = call.target.as_ref().map_or(Range::ZERO, |it| self.cost(it));
        let (mut cost, mut size): (Range, Option<Range>) = (Range { min: u64::MAX, max: 0 }, None);
        for overload in &call.overloads {
            let (own, result) = self.overload(expr, call, overload, &costs);
            cost = cost.union(own);
            size = size.zip(result).map(|(a, b)| a.union(b)).or(result).or(size);
            let step = match *overload {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let Some(step) = step {
                size = self.held_by(&call.args[0]).map(|it| it.value);
                let path = self.path(&call.args[0]).into_iter().chain([step.to_owned()]).collect();
                self.paths.insert(expr.id, path);
            }
            size = size.or_else(|| self.size(expr));
        }
        self.set_size(expr, size);
        target.plus(cost)
    }

    /// The cost of a call of that overload, its arguments included, and the size of the result where it can be told.
    fn overload(&mut self, expr: &Expr, call: &Call, overload: &str, costs: &[Range]) -> (Range, Option<Range>) {
        let args = costs.iter().fold(Range::ZERO, |sum, it| sum.plus(*it));
        if let Some((cost, size)) = self.lists(call, overload) {
            return (cost.plus(args), Some(size));
        }
        let result = self.result(expr, call, overload);
        let cost = match overload {
            "logical_or" | "logical_and" => Range { min: costs[0].min, max: costs[0].plus(costs[1]).max },
            "conditional" => costs[0].plus(costs[1].union(costs[2])),
            _ => self.own(call, overload, result).plus(args),
        };
        (cost, result)
    }

    /// The receiver's size is the first.
    fn size_of(&self, call: &Call, at: usize) -> Range {
        call.all().nth(at).map_or(Range::UNKNOWN, |it| self.size_or_unknown(it))
    }

    /// What a call costs without its arguments.
    fn own(&self, call: &Call, overload: &str, result: Option<Range>) -> Range {
        let size = |at: usize| self.size_of(call, at);
        match (call.function.as_str(), &call.target) {
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(list)) => match self.types[list.id].params().first() {
                None => size(0).traversed(),
                Some(Type::String | Type::Bytes) => size(0).times(Range::ONE.plus(self.item_size(list).traversed())),
                Some(_) => size(0),
            },
            ("startsWith" | "endsWith", _) => size(1).traversed(),
            ("join", _) => result.unwrap_or(Range::UNKNOWN).traversed(),
            ("containsIP" | "containsCIDR", _) => {
                let text = if overload.ends_with("_string") { size(1) } else { Range::ZERO };
                held_in(&call.function, Range { min: 4, max: 16 }, text)
            }
            ("validate", _) => size(1).traversed().scaled(FORMAT_PATTERN * PATTERN),
            ("_==_", _) => self.equality(call).unwrap_or_else(|| by_size("_==_", overload, size)),
            (function, _) => by_size(function, overload, size),
        }
    }

    /// The size of what a call makes.
    fn result(&mut self, expr: &Expr, call: &Call, overload: &str) -> Option<Range> {
        let size = |at: usize| self.size_of(call, at);
        let both = |at: usize| Some((self.held_by(call.args.get(at)?)?, self.held_by(call.args.get(at + 1)?)?));
        let (size, held) = match (call.function.as_str(), overload) {
            ("_?_:_", _) => (size(1).union(size(2)), both(1)),
            (_, "add_string" | "add_bytes" | "add_list") => (size(0).plus(size(1)), both(0)),
            (_, "string_to_bytes") => (Range { min: size(0).min, max: size(0).max.saturating_mul(4) }, None),
            (_, "bytes_to_string") => (Range { min: size(0).min / 4, max: size(0).max }, None),
            ("strings.quote", _) => (size(0).plus(Range { min: 2, max: size(0).max.saturating_add(2) }), None),
            ("url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim", _) => (size(0), None),
            ("replace", _) => (replaced(size(0), size(1), size(2)), None),
            ("split", _) => (Range { min: 0, max: number(call, 1).map_or(size(0).max, |it| it as u64) }, None),
            ("find" | "findAll", _) => (Range { min: 0, max: size(0).max }, None),
            ("join", _) => {
                let less = |it: u64| it.saturating_sub(1);
                let separators = if call.args.is_empty() { Range::ZERO } else { size(1).times(Range { min: less(size(0).min), max: less(size(0).max) }) };
                (size(0).times(self.item_size(call.target.as_ref()?)).plus(separators), None)
            }
            _ => return None,
        };
        if let Some((a, b)) = held {
            self.held.insert(expr.id, a.union(b));
        }
        Some(size)
    }

    /// Cost and size of the lists that functions make (cel-go `ext/lists.go`).
    fn lists(&self, call: &Call, overload: &str) -> Option<(Range, Range)> {
        let size = |at: usize| self.size_of(call, at);
        let number = |at: usize, other: u64| number(call, at).map_or(other, |it| u64::try_from(it).unwrap_or(0));
        let sorted = if overload.contains("string") || overload.contains("bytes") { 2.0 + TRAVERSAL } else { 2.0 };
        let (factor, made) = match call.function.as_str() {
            "slice" => (1.0, Range::fixed(number(1, u64::MAX).wrapping_sub(number(0, 0)))),
            "flatten" if overload == "list_flatten_int" => (number(0, u64::MAX) as f64, size(0)),
            "flatten" | "reverse" => (1.0, size(0)),
            "lists.range" => (1.0, Range::fixed(number(0, u64::MAX))),
            "distinct" => (2.0, size(0).times(size(0))),
            "sort" => (sorted, size(0).times(size(0))),
            "@sortByAssociatedKeys" => (sorted, size(1).times(size(1))),
            _ => return None,
        };
        Some((made.scaled(factor).plus(Range::fixed(1 + LIST)), made))
    }

    /// The size of what a list holds, by its path.
    fn item_size(&self, list: &Expr) -> Range {
        let mut path = self.path(list);
        if path.first().is_some_and(|it| it == ACCUMULATOR) {
            path.clear();
        }
        if !path.is_empty() {
            path.push("@items".to_owned());
        }
        self.declared(&path).unwrap_or(Range::UNKNOWN)
    }

    fn equality(&self, call: &Call) -> Option<Range> {
        let (Type::Opaque(name), Type::Opaque(other)) = (&self.types[call.args[0].id], &self.types[call.args[1].id]) else { return None };
        if name != other {
            return None;
        }
        let max = match *name {
            "kubernetes.NamedFormat" => 64,
            "kubernetes.URL" => self.size(&call.args[1]).map_or(1, |it| it.max),
            _ => return Some(Range::ONE),
        };
        Some(Range { min: 1, max }.traversed())
    }
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(of) => is_scalar(of),
        _ => false,
    }
}

/// What a call costs by the sizes of its arguments, the receiver first: before it runs and, with fixed sizes, when it has run. The few calls that
/// differ in this stand where they are asked about.
pub fn by_size(function: &str, overload: &str, size: impl Fn(usize) -> Range) -> Range {
    match function {
        "check" => Range::fixed(CHECK),
        // A list of requirements, two characters each at the least.
        "fieldSelector" | "labelSelector" => Range::fixed(LIST).plus(size(1).traversed()).plus(size(1).scaled(0.5).scaled((LIST + STRUCT) as f64)),
        "ip" if overload == "cidr_ip" => Range::ONE,
        "url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "strings.quote" | "format" => size(0).traversed(),
        "ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => size(0).traversed(),
        "replace" | "split" | "ip.isCanonical" => size(0).scaled(2.0 * TRAVERSAL),
        "find" | "findAll" => matched(size(0), size(1)),
        "sets.contains" | "sets.intersects" => size(0).times(size(1)).plus(Range::ONE),
        "sets.equivalent" => size(0).times(size(1)).scaled(2.0).plus(Range::ONE),
        "_==_" | "_!=_" => size(0).shorter(size(1)).traversed(),
        "_<_" | "_<=_" | "_>_" | "_>=_" if overload.ends_with("_string") || overload.ends_with("_bytes") => size(0).shorter(size(1)).traversed(),
        _ => match overload {
            "matches_string" => matched(size(0), size(1)),
            "contains_string" => size(0).traversed().times(size(1).traversed()),
            "in_list" => size(1),
            "add_string" | "add_bytes" => size(0).plus(size(1)).traversed(),
            "string_to_bytes" | "bytes_to_string" => size(0).traversed(),
            _ => Range::ONE,
        },
    }
}

/// A pattern tried on a text.
pub fn matched(text: Range, pattern: Range) -> Range {
    text.plus(Range::ONE).traversed().times(pattern.scaled(PATTERN))
}

/// Whether a range of addresses of that size holds another or an address; `text` is the size of one that has to be read first.
pub fn held_in(function: &str, net: Range, text: Range) -> Range {
    let twice = net.plus(net).traversed().plus(text.traversed());
    if function == "containsCIDR" { twice.plus(net.traversed()).plus(Range::ONE) } else { twice }
}

/// An argument that is written as a number.
fn number(call: &Call, at: usize) -> Option<i64> {
    match call.args.get(at)?.kind {
        Kind::Literal(Literal::Int(it)) => Some(it),
        _ => None,
    }
}

/// How long a text can be after a replacement.
fn replaced(text: Range, old: Range, new: Range) -> Range {
    let (mut count, mut kept) = (Range::ZERO, Range::ZERO);
    if old.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if new.max <= old.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / old.min as f64).ceil() as u64;
    }
    if old.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if old.max <= new.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / old.max as f64).ceil() as u64;
    }
    count.times(new).plus(kept)
}
