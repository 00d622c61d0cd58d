//! Runs a checked tree, and counts what it costs. Follows cel-go `interpreter/interpretable.go`, `interpreter/runtimecost.go`.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Bindings, CALL_LIMIT,
    ast::{ACCUMULATOR, Call, Entry, Expr, Fold, Item, Kind},
    cost,
    functions::{add, insert, optional_index},
    strings,
    types::Type,
    value::{Eval, EvalError, Key, Map, Val, fail, no_overload},
};

/// Results beyond this size cost something by themselves: upstream does not charge for building them, and so leaves a way to fill its memory.
const FREE_SIZE: u64 = 1024;
/// A unit for that many items or characters of such a result.
const ITEMS_PER_UNIT: u64 = 64;

pub struct Evaluator<'a, 'b> {
    bindings: &'b Bindings<'a>,
    /// Variables of macros, the innermost last.
    scopes: Vec<(&'b str, Eval<Val<'a>>)>,
    pub cost: u64,
}

impl<'a, 'b> Evaluator<'a, 'b> {
    pub fn new(bindings: &'b Bindings<'a>) -> Self {
        Self { bindings, scopes: Vec::new(), cost: 0 }
    }

    fn charge(&mut self, cost: u64) -> Eval<()> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > CALL_LIMIT { Err(EvalError::TooCostly) } else { Ok(()) }
    }

    pub fn eval(&mut self, expr: &'b Expr) -> Eval<Val<'a>> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal.clone()),
            Kind::Ident(name) => self.ident(name),
            Kind::Select { operand, field, is_test: true } => self.has(operand, field),
            Kind::Select { operand, field, .. } => self.select(operand, field),
            Kind::Call(call) => self.call(call),
            Kind::List(items) => self.list(expr, items),
            Kind::Map(entries) => self.map(expr, entries),
            Kind::Struct(name, fields) => self.structure(name, fields),
            Kind::Fold(fold) if fold.is_bind() => self.bind(fold),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Broken => fail("broken expression"),
        }
    }

    fn ident(&mut self, name: &'b str) -> Eval<Val<'a>> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, value)) = self.scopes.iter().rev().find(|(it, _)| *it == name) {
            let value = value.clone();
            self.charge(1)?;
            return value;
        }
        match self.bindings.get(name) {
            Some(value) => {
                self.charge(1)?;
                Ok(value)
            }
            None => Type::named(name).map_or_else(|| fail(format!("no such attribute(s): {name}")), |it| Ok(Val::Type(it.name().to_owned()))),
        }
    }

    /// A field of what a call made costs one unit more than a field of a variable: the call begins a new chain.
    fn charge_chain(&mut self, operand: &Expr) -> Eval<()> {
        self.charge(u64::from(!is_chain(operand)))
    }

    fn select(&mut self, operand: &'b Expr, field: &str) -> Eval<Val<'a>> {
        let value = self.eval(operand)?;
        self.charge_chain(operand)?;
        self.charge(1)?;
        match value {
            Val::Variables => self.bindings.variable(field),
            value @ (Val::Map(_) | Val::Object(_) | Val::Optional(_)) => value.index(&Val::String(field.into())),
            _ => fail(format!("no such key: {field}")),
        }
    }

    fn has(&mut self, operand: &'b Expr, field: &str) -> Eval<Val<'a>> {
        let value = self.eval(operand).inspect_err(|_| self.cost = self.cost.saturating_sub(1))?;
        self.charge_chain(operand)?;
        let key = Val::String(field.into());
        let is_there = match value {
            Val::Variables => self.bindings.variable(field).is_ok(),
            Val::Optional(it) => it.map(|it| it.find(&key)).transpose()?.flatten().is_some(),
            value => value.find(&key)?.is_some(),
        };
        Ok(Val::Bool(is_there))
    }

    fn list(&mut self, expr: &Expr, items: &'b [Item]) -> Eval<Val<'a>> {
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            list.extend(present(self.eval(&item.value)?, item.is_optional, || "list element".to_owned())?);
        }
        self.charge(if is_constant(expr) { 0 } else { cost::LIST })?;
        Ok(Val::list(list))
    }

    fn map(&mut self, expr: &Expr, entries: &'b [Entry]) -> Eval<Val<'a>> {
        let mut map = BTreeMap::new();
        for entry in entries {
            let (key, value) = (self.eval(&entry.key)?, self.eval(&entry.value)?);
            let place = Key::of(&key)?;
            if let Some(value) = present(value, entry.is_optional, || format!("entry '{}'", key.shown()))? {
                map.insert(place, (key, value));
            }
        }
        self.charge(if is_constant(expr) { 0 } else { cost::MAP })?;
        Ok(Val::Map(Map::Made(Arc::new(map))))
    }

    fn structure(&mut self, name: &str, fields: &'b [Entry]) -> Eval<Val<'a>> {
        let mut made = BTreeMap::new();
        for field in fields {
            let Kind::Literal(Val::String(key)) = &field.key.kind else { continue };
            let value = present(self.eval(&field.value)?, field.is_optional, || format!("entry '{key}'"))?;
            made.extend(value.map(|it| (key.to_string(), it)));
        }
        self.charge(cost::STRUCT)?;
        Ok(Val::Object(Arc::new((name.to_owned(), made))))
    }

    fn bind(&mut self, fold: &'b Fold) -> Eval<Val<'a>> {
        let value = self.eval(&fold.init)?;
        self.scopes.push((&fold.accu, Ok(value)));
        let result = self.eval(&fold.result);
        self.scopes.pop();
        result
    }

    fn fold(&mut self, fold: &'b Fold) -> Eval<Val<'a>> {
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init)?;
        let depth = self.scopes.len();
        self.scopes.push((&fold.accu, Ok(init)));
        let result = self.rounds(fold, &range).and_then(|()| self.eval(&fold.result));
        self.scopes.truncate(depth);
        result
    }

    fn rounds(&mut self, fold: &'b Fold, range: &Val<'a>) -> Eval<()> {
        match range {
            Val::List(list) => {
                for at in 0..list.len() {
                    let item = list.get(at);
                    let (first, second) = if fold.var2.is_some() { (Ok(Val::Int(at as i64)), Some(item)) } else { (item, None) };
                    if !self.round(fold, first?, second.transpose()?)? {
                        break;
                    }
                }
            }
            Val::Map(map) => {
                for key in map.keys() {
                    let value = fold.var2.as_ref().map(|_| map.find(&key)).transpose()?.map(|it| it.unwrap_or(Val::Null));
                    if !self.round(fold, key, value)? {
                        break;
                    }
                }
            }
            _ => return no_overload(),
        }
        Ok(())
    }

    /// One element; `false` when the loop is over. An error in a quantifier may be outdone by a later element, so it stays for the end.
    fn round(&mut self, fold: &'b Fold, first: Val<'a>, second: Option<Val<'a>>) -> Eval<bool> {
        let place = self.scopes.len() - 1;
        self.scopes.push((&fold.var, Ok(first)));
        if let (Some(name), Some(value)) = (&fold.var2, second) {
            self.scopes.push((name, Ok(value)));
        }
        let goes_on = self.eval(&fold.condition)?;
        let is_over = matches!(goes_on, Val::Bool(false));
        if !is_over {
            let value = self.eval(&fold.step);
            if let Err(error @ (EvalError::TooCostly | EvalError::OutOfBudget)) = value {
                return Err(error);
            }
            self.scopes[place].1 = value;
        }
        self.scopes.truncate(place + 1);
        Ok(!is_over)
    }

    fn call(&mut self, call: &'b Call) -> Eval<Val<'a>> {
        match (call.function.as_str(), &call.args[..]) {
            ("_&&_", [left, right]) => self.logic(left, right, false),
            ("_||_", [left, right]) => self.logic(left, right, true),
            ("_?_:_", [condition, yes, no]) => match self.eval(condition)? {
                Val::Bool(true) => self.branch(yes),
                Val::Bool(false) => self.branch(no),
                _ => no_overload(),
            },
            ("or" | "orValue", [other]) => self.optional_or(call, other),
            ("@not_strictly_false", [value]) => {
                let value = self.eval(value);
                self.charge(1)?;
                match value {
                    Err(EvalError::Failed(_)) => Ok(Val::Bool(true)),
                    Err(other) => Err(other),
                    Ok(value) => Ok(Val::Bool(!matches!(value, Val::Bool(false)))),
                }
            }
            ("_+_" | "cel.@mapInsert", [accu, rest @ ..]) if matches!(&accu.kind, Kind::Ident(name) if name == ACCUMULATOR) => self.gather(call, rest),
            // Among scalar literals it looks for free.
            ("@in", [item, Expr { kind: Kind::List(list), .. }]) if list.iter().all(|it| it.value.literal().is_some()) => {
                let item = self.eval(item)?;
                Ok(Val::Bool(list.iter().filter_map(|it| it.value.literal()).any(|it| it.equals(&item))))
            }
            ("_[_]" | "_?._" | "_[?_]", [operand, index]) => {
                let value = self.eval(operand)?;
                let index = self.branch(index)?;
                self.charge_chain(operand)?;
                if call.function == "_[_]" {
                    self.charge(1)?;
                    return value.index(&index);
                }
                let found = match value {
                    Val::Variables => self.bindings.variable(&index.shown()).map_or_else(|_| Val::none(), Val::some),
                    value => optional_index(&value, &index)?,
                };
                self.charge(u64::from(matches!(found, Val::Optional(Some(_)))))?;
                Ok(found)
            }
            _ => self.plain_call(call),
        }
    }

    /// A branch of a condition, or a key: a variable's own unit is not counted there.
    fn branch(&mut self, expr: &'b Expr) -> Eval<Val<'a>> {
        let value = self.eval(expr)?;
        self.cost -= u64::from(is_chain(expr));
        Ok(value)
    }

    fn optional_or(&mut self, call: &'b Call, other: &'b Expr) -> Eval<Val<'a>> {
        let Some(target) = &call.target else { return no_overload() };
        match (self.eval(target)?, call.function.as_str()) {
            (Val::Optional(None), _) => self.eval(other),
            (Val::Optional(Some(it)), "orValue") => Ok(it.as_ref().clone()),
            (some @ Val::Optional(_), _) => Ok(some),
            _ => no_overload(),
        }
    }

    /// The values of the arguments. A call of one or two is charged for even when one of them failed.
    fn arguments(&mut self, call: &'b Call) -> Eval<Vec<Val<'a>>> {
        let mut args = Vec::with_capacity(call.args.len() + 1);
        let mut failure = None;
        let is_short = call.args.len() + usize::from(call.target.is_some()) <= 2;
        for arg in call.all() {
            match self.eval(arg) {
                Ok(value) => args.push(value),
                Err(EvalError::Failed(why)) if is_short => failure = failure.or(Some(why)),
                Err(other) => return Err(other),
            }
        }
        let Some(why) = failure else { return Ok(args) };
        self.charge(if call.function == "check" { cost::CHECK } else { 1 })?;
        fail(why)
    }

    fn plain_call(&mut self, call: &'b Call) -> Eval<Val<'a>> {
        let args = self.arguments(call)?;
        let Some(native) = call.native else { return no_overload() };
        let result = match (call.function.as_str(), args.first()) {
            ("sum", Some(Val::List(list))) if list.len() == 0 => Ok(zero_of(&call.overloads)),
            _ => native.run(&args),
        };
        if !is_constant_call(call) {
            self.charge(cost::spent(call, &args, &result))?;
        }
        if let Ok(made) = &result
            && made.size() > FREE_SIZE
        {
            self.charge(made.size() / ITEMS_PER_UNIT)?;
        }
        result
    }

    /// Adds to what a macro gathers, in place: nobody else holds it.
    fn gather(&mut self, call: &'b Call, rest: &'b [Expr]) -> Eval<Val<'a>> {
        self.charge(1)?;
        let mut added = Vec::with_capacity(rest.len());
        for arg in rest {
            added.push(self.eval(arg)?);
        }
        self.charge(1)?;
        let Some(place) = self.scopes.iter_mut().rev().find(|(name, _)| *name == ACCUMULATOR) else { return no_overload() };
        let accu = std::mem::replace(&mut place.1, Ok(Val::Null))?;
        match added.pop() {
            Some(value) if call.function == "_+_" => add(accu, value),
            last => {
                added.extend(last);
                insert(accu, &added)
            }
        }
    }

    /// `&&` and `||`: one side that decides outdoes an error on the other.
    fn logic(&mut self, left: &'b Expr, right: &'b Expr, decisive: bool) -> Eval<Val<'a>> {
        let (mut failure, mut is_odd) = (None, false);
        for side in [left, right] {
            match self.eval(side) {
                Ok(Val::Bool(value)) if value == decisive => return Ok(Val::Bool(decisive)),
                Ok(value) => is_odd |= !matches!(value, Val::Bool(_)),
                Err(EvalError::Failed(why)) => failure = failure.or(Some(why)),
                Err(over) => return Err(over),
            }
        }
        match failure {
            Some(why) => fail(why),
            None if is_odd => no_overload(),
            None => Ok(Val::Bool(!decisive)),
        }
    }
}

/// A part of a list or map; an optional one may be none.
fn present<'a>(value: Val<'a>, is_optional: bool, what: impl FnOnce() -> String) -> Eval<Option<Val<'a>>> {
    match value {
        value if !is_optional => Ok(Some(value)),
        Val::Optional(it) => Ok(it.as_deref().cloned()),
        other => fail(format!("cannot initialize optional {} from non-optional value {}", what(), other.shown())),
    }
}

/// Constants are computed when the program is made; one that fails makes it no program.
pub fn try_constants(expr: &Expr) -> Result<(), String> {
    if let Kind::Call(call) = &expr.kind
        && let Some(literal) = call.args.first().and_then(Expr::literal)
    {
        if let ("find" | "findAll", Val::String(pattern)) = (call.function.as_str(), literal) {
            strings::regex(pattern).map_err(|it| it.to_string())?;
        }
        if let Some(native) = call.native.filter(|_| is_constant_call(call) && call.args.len() == 1) {
            native.run(&[literal.clone()]).map_err(|it| it.to_string())?;
        }
    }
    expr.children().into_iter().try_for_each(try_constants)
}

/// A variable, or what its fields and entries lead to.
fn is_chain(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Ident(_) | Kind::Select { is_test: false, .. } => true,
        Kind::Call(call) => matches!(call.function.as_str(), "_[_]" | "_?._" | "_[?_]"),
        _ => false,
    }
}

/// Literals of literals are made once upstream and cost nothing at run time.
fn is_constant(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Literal(_) => true,
        Kind::List(items) => items.iter().all(|it| !it.is_optional && is_constant(&it.value)),
        Kind::Map(entries) => entries.iter().all(|it| !it.is_optional && is_constant(&it.key) && is_constant(&it.value)),
        Kind::Call(call) => is_constant_call(call),
        _ => false,
    }
}

/// A conversion of a constant is one too.
fn is_constant_call(call: &Call) -> bool {
    let is_conversion = matches!(call.function.as_str(), "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "uint" | "type");
    is_conversion && call.target.is_none() && call.args.iter().all(is_constant)
}

fn zero_of<'a>(overloads: &[&str]) -> Val<'a> {
    match overloads {
        ["list_uint_sum_uint"] => Val::Uint(0),
        ["list_double_sum_double"] => Val::Double(0.0),
        ["list_duration_sum_duration"] => Val::Duration(0),
        _ => Val::Int(0),
    }
}
