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

    const fn fixed(size: u64) -> Self {
        Self { min: size, max: size }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> Self {
        // A conversion to an integer stops at its largest.
        let scale = |it: u64| (it as f64 * factor).ceil() as u64;
        Self { min: scale(self.min), max: scale(self.max) }
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
            size = match (size, result) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => b.or(a),
            };
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
        if let Some((cost, size)) = self.library(call, overload) {
            return (cost.plus(args), size);
        }
        let arg = |at: usize| self.size_or_unknown(&call.args[at]);
        let traversed = |size: Range| (size.scaled(TRAVERSAL).plus(args), None);
        match overload {
            "logical_or" | "logical_and" => (Range { min: costs[0].min, max: costs[0].plus(costs[1]).max }, None),
            "conditional" => {
                let size = arg(1).union(arg(2));
                if let (Some(a), Some(b)) = (self.held_by(&call.args[1]), self.held_by(&call.args[2])) {
                    self.held.insert(expr.id, a.union(b));
                }
                (costs[0].plus(costs[1].union(costs[2])), Some(size))
            }
            "string_format" => traversed(call.target.as_ref().map_or(Range::UNKNOWN, |it| self.size_or_unknown(it))),
            "string_to_bytes" => (traversed(arg(0)).0, Some(Range { min: arg(0).min, max: arg(0).max.saturating_mul(4) })),
            "bytes_to_string" => (traversed(arg(0)).0, Some(Range { min: arg(0).min / 4, max: arg(0).max })),
            "strings_quote" => (traversed(arg(0)).0, Some(Range { min: arg(0).min.saturating_add(2), max: arg(0).max.saturating_mul(2).saturating_add(2) })),
            "starts_with_string" | "ends_with_string" => traversed(arg(0)),
            "in_list" => (arg(1).plus(args), None),
            "matches_string" => {
                let text = call.target.as_ref().map_or(Range::UNKNOWN, |it| self.size_or_unknown(it));
                (text.plus(Range::ONE).scaled(TRAVERSAL).times(arg(0).scaled(PATTERN)).plus(args), None)
            }
            "contains_string" => {
                let text = call.target.as_ref().map_or(Range::UNKNOWN, |it| self.size_or_unknown(it));
                (text.scaled(TRAVERSAL).times(arg(0).scaled(TRAVERSAL)).plus(args), None)
            }
            "add_string" | "add_bytes" | "add_list" => {
                let size = arg(0).plus(arg(1));
                if let (Some(a), Some(b)) = (self.held_by(&call.args[0]), self.held_by(&call.args[1])) {
                    self.held.insert(expr.id, a.union(b));
                }
                let cost = if overload == "add_list" { Range::ONE } else { size.scaled(TRAVERSAL) };
                (cost.plus(args), Some(size))
            }
            "equals" | "not_equals" => traversed(compared(arg(0), arg(1))),
            _ if (overload.starts_with("less_") || overload.starts_with("greater_")) && (overload.ends_with("_string") || overload.ends_with("_bytes")) => traversed(compared(arg(0), arg(1))),
            _ => (Range::ONE.plus(args), None),
        }
    }

    /// Functions of Kubernetes' libraries; the cost is without the arguments'.
    fn library(&self, call: &Call, overload: &str) -> Option<(Range, Option<Range>)> {
        let arg = |at: usize| self.size_or_unknown(&call.args[at]);
        let target = || call.target.as_ref().map(|it| self.size_or_unknown(it));
        let (one, few) = (Some((Range::ONE, None)), Range { min: 4, max: 16 });
        let parsed = |text: Range| Some((text.scaled(TRAVERSAL), None));
        if overload.starts_with("list_") || overload == "lists_range" {
            if let Some(found) = self.lists(call, overload) {
                return Some(found);
            }
        }
        match call.function.as_str() {
            "check" => Some((Range::fixed(CHECK), None)),
            "fieldSelector" | "labelSelector" => Some((selector(arg(0)), None)),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let list = call.target.as_ref()?;
                match self.types[list.id].params().first() {
                    None => Some((target()?.scaled(TRAVERSAL), None)),
                    Some(of) => {
                        let texts = if matches!(of, Type::String | Type::Bytes) { self.item_size(list).scaled(TRAVERSAL) } else { Range::ZERO };
                        Some((target()?.times(Range::ONE.plus(texts)), None))
                    }
                }
            }
            "url" | "jsonpatch.escapeKey" => Some((arg(0).scaled(TRAVERSAL), Some(arg(0)))),
            "lowerAscii" | "upperAscii" | "substring" | "trim" => Some((target()?.scaled(TRAVERSAL), target())),
            "replace" => Some((target()?.scaled(2.0 * TRAVERSAL), Some(replaced(target()?, arg(0), arg(1))))),
            "split" => {
                let limit = call.args.get(1).and_then(|it| if let Kind::Literal(Literal::Int(most)) = it.kind { Some(most as u64) } else { None });
                Some((target()?.scaled(2.0 * TRAVERSAL), Some(Range { min: 0, max: limit.unwrap_or(target()?.max) })))
            }
            "join" => {
                let list = call.target.as_ref()?;
                let less = |it: u64| it.saturating_sub(1);
                let separators = |count: Range| Range { min: less(count.min), max: less(count.max) };
                let mut size = target()?.times(self.item_size(list));
                if !call.args.is_empty() {
                    size = size.plus(arg(0).times(separators(target()?)));
                }
                Some((size.scaled(TRAVERSAL), Some(size)))
            }
            "find" | "findAll" => {
                let text = target()?.plus(Range::ONE).scaled(TRAVERSAL);
                Some((text.times(arg(0).scaled(PATTERN)), Some(Range { min: 0, max: target()?.max })))
            }
            "ip" if overload == "cidr_ip" => one,
            "ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => parsed(arg(0)),
            "ip.isCanonical" => Some((arg(0).scaled(2.0 * TRAVERSAL), None)),
            "containsIP" | "containsCIDR" => {
                let mut cost = few.plus(few).scaled(TRAVERSAL);
                if call.function == "containsCIDR" {
                    cost = cost.plus(few.scaled(TRAVERSAL)).plus(Range::ONE);
                }
                Some((if overload.ends_with("_string") { cost.plus(arg(0).scaled(TRAVERSAL)) } else { cost }, None))
            }
            "validate" => Some((arg(0).scaled(TRAVERSAL).scaled(FORMAT_PATTERN * PATTERN), None)),
            "_==_" => self.equality(call),
            _ => None,
        }
    }

    /// Functions that make lists, and those of sets (cel-go `ext/lists.go`, `ext/sets.go`).
    fn lists(&self, call: &Call, overload: &str) -> Option<(Range, Option<Range>)> {
        let arg = |at: usize| self.size_or_unknown(&call.args[at]);
        let target = || call.target.as_ref().map_or(Range::UNKNOWN, |it| self.size_or_unknown(it));
        let number = |at: usize, other: u64| match call.args.get(at).map(|it| &it.kind) {
            Some(Kind::Literal(Literal::Int(it))) => u64::try_from(*it).unwrap_or(0),
            _ => other,
        };
        let made = |factor: f64, size: Range| Some((size.scaled(factor).plus(Range::fixed(1 + LIST)), Some(size)));
        let sort_factor = |id: &str| if id.contains("string") || id.contains("bytes") { 2.0 + TRAVERSAL } else { 2.0 };
        match (call.function.as_str(), overload) {
            ("slice", _) => made(1.0, Range::fixed(number(1, u64::MAX).wrapping_sub(number(0, 0)))),
            ("flatten", "list_flatten_int") => made(number(0, u64::MAX) as f64, target()),
            ("flatten" | "reverse", _) => made(1.0, target()),
            ("lists.range", _) => made(1.0, Range::fixed(number(0, u64::MAX))),
            ("distinct", _) => made(2.0, target().times(target())),
            ("sort", id) => made(sort_factor(id), target().times(target())),
            ("@sortByAssociatedKeys", id) => made(sort_factor(id), arg(0).times(arg(0))),
            ("sets.contains" | "sets.intersects", _) => Some((arg(0).times(arg(1)).plus(Range::ONE), None)),
            ("sets.equivalent", _) => Some((arg(0).times(arg(1)).scaled(2.0).plus(Range::ONE), None)),
            _ => None,
        }
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

    fn equality(&self, call: &Call) -> Option<(Range, Option<Range>)> {
        let (Type::Opaque(name), Type::Opaque(other)) = (&self.types[call.args[0].id], &self.types[call.args[1].id]) else { return None };
        if name != other {
            return None;
        }
        let max = match *name {
            "kubernetes.NamedFormat" => 64,
            "kubernetes.URL" => self.size(&call.args[1]).map_or(1, |it| it.max),
            _ => return Some((Range::ONE, None)),
        };
        Some((Range { min: 1, max }.scaled(TRAVERSAL), None))
    }
}

fn compared(a: Range, b: Range) -> Range {
    let max = a.max.min(b.max);
    Range { min: max.min(1), max }
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(of) => is_scalar(of),
        _ => false,
    }
}

/// A selector is a list of requirements, two characters each at the least.
fn selector(length: Range) -> Range {
    Range::fixed(LIST).plus(length.scaled(TRAVERSAL)).plus(length.scaled(0.5).scaled((LIST + STRUCT) as f64))
}

pub fn selector_cost(length: u64) -> u64 {
    selector(Range::fixed(length)).max
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
