//! What an expression may cost at most, known before it runs: upstream refuses rules that could be too costly, so these numbers are part of the API.
//! And what a call has cost that has run. Follows cel-go `checker/cost.go` and apiserver `pkg/cel/library/cost.go`.

use super::{
    Decl, Environment,
    ast::{Call, Expr, Fold, Kind},
    kube::Kube,
    types::Type,
    value::{Eval, Val},
};

/// From the least to the most; both stop at the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

/// A tenth of a unit for every character that is looked at (`StringTraversalCostFactor`).
const TRAVERSAL: f64 = 0.1;
/// A quarter for every character of a pattern (`RegexStringLengthCostFactor`).
const PATTERN: f64 = 0.25;
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

    fn traversed(self) -> Self {
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

/// What is known of an expression: what it costs; its place in the schema, where it is a path, which may lead nowhere; its size; what it holds.
#[derive(Clone, Debug)]
struct Known {
    cost: Range,
    place: Option<Option<Decl>>,
    size: Option<Range>,
    held: Option<Held>,
}

impl Known {
    const fn costing(cost: Range) -> Self {
        Self { cost, place: None, size: None, held: None }
    }

    fn size(&self) -> Range {
        self.size.unwrap_or(Range::UNKNOWN)
    }

    fn declared(&self) -> Option<Range> {
        let max = u64::try_from(self.place.as_ref()?.as_ref()?.max_elements).ok()?;
        Some(Range { min: 0, max })
    }
}

pub fn estimate(expr: &Expr, types: &[Type], environment: &Environment) -> Range {
    Coster { types, environment, locals: Vec::new() }.known(expr).cost
}

struct Coster<'a> {
    types: &'a [Type],
    environment: &'a Environment,
    /// Variables of macros, the innermost last.
    locals: Vec<(String, Known)>,
}

impl Coster<'_> {
    fn known(&mut self, expr: &Expr) -> Known {
        let mut known = self.node(expr);
        if known.size.is_none() {
            let local = || if let Kind::Ident(name) = &expr.kind { self.local(name)?.size } else { None };
            known.size = known.declared().or_else(|| is_scalar(&self.types[expr.id]).then_some(Range::ONE)).or_else(local);
        }
        known
    }

    fn node(&mut self, expr: &Expr) -> Known {
        match &expr.kind {
            Kind::Literal(literal) => Known { size: Some(Range::fixed(literal.size())), ..Known::costing(Range::ZERO) },
            Kind::Broken => Known::costing(Range::ZERO),
            Kind::Ident(name) => match self.local(name) {
                Some(local) => Known { cost: Range::ONE, size: None, ..local.clone() },
                None => Known { place: Some(self.environment.place(name)), ..Known::costing(Range::ONE) },
            },
            Kind::Select { operand, is_test: true, .. } => Known::costing(self.known(operand).cost),
            Kind::Select { operand, field, .. } => {
                let of = self.known(operand);
                let ty = &self.types[operand.id];
                let is_counted = ty.name() == "map" || ty.is_opaque() || matches!(ty, Type::Object(_) | Type::Param(_));
                Known { place: self.step(&of, field), ..Known::costing(of.cost.plus(Range::fixed(is_counted.into()))) }
            }
            Kind::Call(call) => self.call(expr, call),
            Kind::List(items) => {
                let items: Vec<Known> = items.iter().map(|it| self.known(&it.value)).collect();
                let held = Held { is_list: true, key: Range::ONE, value: either(&items) };
                Known { size: Some(Range::fixed(items.len() as u64)), held: Some(held), ..Known::costing(total(&items).plus(Range::fixed(LIST))) }
            }
            Kind::Map(entries) => {
                let keys: Vec<Known> = entries.iter().map(|it| self.known(&it.key)).collect();
                let values: Vec<Known> = entries.iter().map(|it| self.known(&it.value)).collect();
                let held = Held { is_list: false, key: either(&keys), value: either(&values) };
                let cost = total(&keys).plus(total(&values)).plus(Range::fixed(MAP));
                Known { size: Some(Range::fixed(entries.len() as u64)), held: Some(held), ..Known::costing(cost) }
            }
            Kind::Struct(_, fields) => Known::costing(fields.iter().fold(Range::fixed(STRUCT), |sum, it| sum.plus(self.known(&it.value).cost))),
            Kind::Fold(fold) if fold.is_bind() => self.bind(fold),
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Known> {
        self.locals.iter().rev().find(|it| it.0 == name).map(|it| &it.1)
    }

    /// A path that begins with no variable is taken from `self`, as upstream does.
    fn step(&self, of: &Known, name: &str) -> Option<Option<Decl>> {
        Some(match &of.place {
            None => self.environment.place(name),
            Some(place) => place.as_ref().and_then(|it| it.step(name)),
        })
    }

    fn bind(&mut self, fold: &Fold) -> Known {
        let (range, init) = (self.known(&fold.range).cost, self.known(&fold.init));
        let cost = range.plus(init.cost);
        self.locals.push((fold.accu.clone(), init));
        let result = self.known(&fold.result);
        self.locals.pop();
        Known { cost: cost.plus(result.cost), place: None, ..result }
    }

    fn fold(&mut self, fold: &Fold) -> Known {
        let (range, init) = (self.known(&fold.range), self.known(&fold.init));
        let is_list = range.held.map_or(self.types[fold.range.id].name() == "list", |it| it.is_list);
        let [key, value] = if is_list { ["@indices", "@items"] } else { ["@keys", "@values"] };
        let key = Known { size: range.held.map(|it| it.key), place: self.step(&range, key), ..Known::costing(Range::ZERO) };
        let value = Known { size: range.held.map(|it| it.value), place: self.step(&range, value), ..Known::costing(Range::ZERO) };
        let depth = self.locals.len();
        self.locals.push((fold.accu.clone(), init.clone()));
        match &fold.var2 {
            Some(var2) => self.locals.extend([(fold.var.clone(), key), (var2.clone(), value)]),
            None => self.locals.push((fold.var.clone(), if is_list { value } else { key })),
        }
        let (condition, step) = (self.known(&fold.condition).cost, self.known(&fold.step));
        self.locals.truncate(depth + 1);
        let result = self.known(&fold.result).cost;
        self.locals.truncate(depth);
        let cost = range.cost.plus(init.cost).plus(result).plus(range.size().times(condition.plus(step.cost)));
        let known = Known::costing(cost);
        match &fold.init.kind {
            Kind::Literal(_) => Known { size: init.size, ..known },
            Kind::List(_) | Kind::Map(_) => Known { size: Some(range.size()), held: step.held, ..known },
            _ => known,
        }
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> Known {
        let all: Vec<Known> = call.all().map(|it| self.known(it)).collect();
        let args = &all[usize::from(call.target.is_some())..];
        if call.function == "dyn" {
            return Known { cost: args[0].cost.plus(Range::ONE), place: None, ..args[0].clone() };
        }
        let item = all.first().filter(|it| it.place.is_some()).and_then(|it| Known { place: self.step(it, "@items"), ..it.clone() }.declared());
        let call = Costs { call, types: self.types, all: &all, args, item: item.unwrap_or(Range::UNKNOWN) };
        let mut known = Known::costing(Range { min: u64::MAX, max: 0 });
        for overload in &call.call.overloads {
            let (cost, result) = call.overload(overload);
            known.cost = known.cost.union(cost);
            known.size = known.size.zip(result).map(|(a, b)| a.union(b)).or(result).or(known.size);
            known.held = call.held(overload).or(known.held);
            let step = match *overload {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let Some(step) = step {
                known.size = args[0].held.map(|it| it.value);
                known.place = self.step(&args[0], step);
            }
            let scalar = is_scalar(&self.types[expr.id]).then_some(Range::ONE);
            known.size = known.size.or_else(|| known.declared()).or(scalar);
        }
        let target = call.call.target.as_ref().map_or(Range::ZERO, |_| all[0].cost);
        Known { cost: target.plus(known.cost), ..known }
    }
}

/// What parts cost together.
fn total(parts: &[Known]) -> Range {
    parts.iter().fold(Range::ZERO, |sum, it| sum.plus(it.cost))
}

/// The size that each of the parts may have.
fn either(parts: &[Known]) -> Range {
    parts.iter().map(Known::size).reduce(Range::union).unwrap_or(Range::ZERO)
}

/// A call whose arguments are known.
struct Costs<'a> {
    call: &'a Call,
    types: &'a [Type],
    /// The receiver first, if there is one.
    all: &'a [Known],
    args: &'a [Known],
    /// The size of what the first one holds, by its place.
    item: Range,
}

impl Costs<'_> {
    fn size(&self, at: usize) -> Range {
        self.all.get(at).map_or(Range::UNKNOWN, Known::size)
    }

    /// The cost of a call of that overload, its arguments included, and the size of the result where it can be told.
    fn overload(&self, overload: &str) -> (Range, Option<Range>) {
        if let Some((cost, size)) = self.lists(overload) {
            return (cost.plus(total(self.args)), Some(size));
        }
        let result = self.result(overload);
        let cost = |at: usize| self.args[at].cost;
        let cost = match overload {
            "logical_or" | "logical_and" => Range { min: cost(0).min, max: cost(0).plus(cost(1)).max },
            "conditional" => cost(0).plus(cost(1).union(cost(2))),
            _ => self.own(overload, result).plus(total(self.args)),
        };
        (cost, result)
    }

    /// What a call costs without its arguments.
    fn own(&self, overload: &str, result: Option<Range>) -> Range {
        let size = |at: usize| self.size(at);
        match (self.call.function.as_str(), &self.call.target) {
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(list)) => match self.types[list.id].params().first().map(Type::name) {
                None => size(0).traversed(),
                Some("string" | "bytes") => size(0).times(Range::ONE.plus(self.item.traversed())),
                Some(_) => size(0),
            },
            ("startsWith" | "endsWith", _) => size(1).traversed(),
            ("join", _) => result.unwrap_or(Range::UNKNOWN).traversed(),
            ("containsIP" | "containsCIDR", _) => {
                let text = if overload.ends_with("_string") { size(1) } else { Range::ZERO };
                held_in(&self.call.function, Range { min: 4, max: 16 }, text)
            }
            ("validate", _) => size(1).traversed().scaled(FORMAT_PATTERN * PATTERN),
            ("_==_", _) => self.equality().unwrap_or_else(|| by_size("_==_", overload, size)),
            (function, _) => by_size(function, overload, size),
        }
    }

    /// The size of what a call makes.
    fn result(&self, overload: &str) -> Option<Range> {
        let size = |at: usize| self.size(at);
        Some(match (self.call.function.as_str(), overload) {
            ("_?_:_", _) => size(1).union(size(2)),
            (_, "add_string" | "add_bytes" | "add_list") => size(0).plus(size(1)),
            (_, "string_to_bytes") => Range { min: size(0).min, max: size(0).max.saturating_mul(4) },
            (_, "bytes_to_string") => Range { min: size(0).min / 4, max: size(0).max },
            ("strings.quote", _) => size(0).plus(Range { min: 2, max: size(0).max.saturating_add(2) }),
            ("url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim", _) => size(0),
            ("replace", _) => replaced(size(0), size(1), size(2)),
            ("split", _) => Range { min: 0, max: number(self.call, 1).map_or(size(0).max, |it| it as u64) },
            ("find" | "findAll", _) => Range { min: 0, max: size(0).max },
            ("join", _) => {
                let less = |it: u64| it.saturating_sub(1);
                let separators = if self.args.is_empty() { Range::ZERO } else { size(1).times(Range { min: less(size(0).min), max: less(size(0).max) }) };
                size(0).times(self.item).plus(separators)
            }
            _ => return None,
        })
    }

    /// What a list or map may hold that is one of two, or both together.
    fn held(&self, overload: &str) -> Option<Held> {
        let [.., a, b] = self.args else { return None };
        let is_either = self.call.function == "_?_:_" || matches!(overload, "add_string" | "add_bytes" | "add_list");
        if is_either { Some(a.held?.union(b.held?)) } else { None }
    }

    /// Cost and size of the lists that functions make (cel-go `ext/lists.go`).
    fn lists(&self, overload: &str) -> Option<(Range, Range)> {
        let size = |at: usize| self.size(at);
        let number = |at: usize, other: u64| number(self.call, at).map_or(other, |it| u64::try_from(it).unwrap_or(0));
        let sorted = if overload.contains("string") || overload.contains("bytes") { 2.0 + TRAVERSAL } else { 2.0 };
        let (factor, made) = match self.call.function.as_str() {
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

    fn equality(&self) -> Option<Range> {
        let [left, right] = [0, 1].map(|at| &self.types[self.call.args[at].id]);
        if !left.is_opaque() || left != right {
            return None;
        }
        let max = match left.name() {
            "kubernetes.NamedFormat" => 64,
            "kubernetes.URL" => self.args[1].size.map_or(1, |it| it.max),
            _ => return Some(Range::ONE),
        };
        Some(Range { min: 1, max }.traversed())
    }
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Of("optional_type", of) => is_scalar(&of[0]),
        ty => matches!(ty.name(), "bool" | "double" | "int" | "uint" | "google.protobuf.Duration" | "google.protobuf.Timestamp"),
    }
}

/// What a call costs by the sizes of its arguments, the receiver first: before it runs and, with fixed sizes, when it has run. The few calls that
/// differ in this stand where they are asked about.
fn by_size(function: &str, overload: &str, size: impl Fn(usize) -> Range) -> Range {
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

/// What a call has cost, its arguments not included.
pub fn spent(call: &Call, args: &[Val<'_>], result: &Eval<Val<'_>>) -> u64 {
    let size = |at: usize| Range::fixed(args.get(at).map_or(1, Val::size));
    let made = |otherwise: u64| result.as_ref().map_or(otherwise, Val::size);
    let overload = if let [one] = call.overloads[..] { one } else { "" };
    let cost = match call.function.as_str() {
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => return args.first().map_or(1, traversal),
        "ip" | "_==_" if matches!(args.first(), Some(Val::Kube(_) | Val::Check(_))) => return 1,
        "lists.range" | "slice" | "reverse" => return 1 + LIST + made(1),
        "flatten" => {
            let depth = if let Some(Val::Int(depth)) = args.get(1) { depth.unsigned_abs() } else { 1 };
            return (1 + LIST).saturating_add(size(0).max.saturating_mul(depth));
        }
        "distinct" | "sort" => return compared_all(args.first()),
        "@sortByAssociatedKeys" => return compared_all(args.get(1)),
        "join" => Range::fixed(made(0)).scaled(2.0 * TRAVERSAL),
        "startsWith" | "endsWith" => size(0).traversed(),
        "containsIP" | "containsCIDR" => {
            let is_text = matches!(args.get(1), Some(Val::String(_))) && !overload.is_empty();
            held_in(&call.function, size(0), if is_text { size(1) } else { Range::fixed(0) })
        }
        "validate" => match args.first() {
            Some(Val::Kube(it)) if let Kube::Format(format) = it.as_ref() => matched(size(1), Range::fixed(format.regex_size)),
            _ => return 1,
        },
        function => by_size(function, overload, size),
    };
    cost.max
}

/// A list whose items are all compared with each other.
fn compared_all(list: Option<&Val<'_>>) -> u64 {
    let Some(Val::List(list)) = list else { return 1 };
    let size = list.len() as f64;
    let is_text = list.iter().next().is_some_and(|it| matches!(it, Ok(Val::String(_) | Val::Bytes(_))));
    (size * size * if is_text { 2.0 + TRAVERSAL } else { 2.0 }) as u64 + 1 + LIST
}

/// What it costs to look at all of a value.
fn traversal(value: &Val<'_>) -> u64 {
    match value {
        Val::String(it) => (it.len() as f64 * TRAVERSAL) as u64,
        Val::Bytes(it) => (it.len() as f64 * TRAVERSAL) as u64,
        Val::List(list) => list.iter().map(|it| it.as_ref().map_or(1, traversal)).sum(),
        Val::Map(map) => map.entries().unwrap_or_default().iter().map(|(key, value)| traversal(key) + traversal(value)).sum(),
        _ => 1,
    }
}

/// A pattern tried on a text.
fn matched(text: Range, pattern: Range) -> Range {
    text.plus(Range::ONE).traversed().times(pattern.scaled(PATTERN))
}

/// Whether a range of addresses of that size holds another or an address; `text` is the size of one that has to be read first.
fn held_in(function: &str, net: Range, text: Range) -> Range {
    let twice = net.plus(net).traversed().plus(text.traversed());
    if function == "containsCIDR" { twice.plus(net.traversed()).plus(Range::ONE) } else { twice }
}

/// An argument that is written as a number.
fn number(call: &Call, at: usize) -> Option<i64> {
    if let Val::Int(it) = call.args.get(at)?.literal()? { Some(*it) } else { None }
}

/// How long a text can be after a replacement.
fn replaced(text: Range, old: Range, new: Range) -> Range {
    // How often something is put in, and how much stays as it is, at one end of the range.
    let end = |text: u64, old: u64, is_kept: bool| match old {
        0 => (text.saturating_add(1), text),
        _ if is_kept => (0, text),
        _ => ((text as f64 / old as f64).ceil() as u64, 0),
    };
    let (least, most) = (end(text.min, old.max, old.max <= new.min), end(text.max, old.min, new.max <= old.min));
    Range { min: least.0, max: most.0 }.times(new).plus(Range { min: least.1, max: most.1 })
}
