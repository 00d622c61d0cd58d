//! The functions of the language: which there are (`overloads.txt`, in cel-go's order), and the programs of those that every language has.
//! Follows cel-go `common/stdlib` and `common/types`.

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use super::{
    authorizer, kube, lists, strings, time,
    types::Type,
    value::{Eval, Key, List, Map, Val, fail, no_overload, or_fail},
};

/// The programs of a library, a row an overload: which one is meant the values tell.
type Library = for<'a> fn(&str, &[Val<'a>]) -> Eval<Val<'a>>;

#[derive(Debug)]
pub struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    library: Library,
}

#[derive(Debug)]
pub struct Overload {
    pub id: &'static str,
    pub is_member: bool,
    /// With the receiver first.
    pub args: Vec<Type>,
    pub result: Type,
}

impl Function {
    pub fn run<'a>(&self, args: &[Val<'a>]) -> Eval<Val<'a>> {
        (self.library)(self.name, args)
    }
}

pub fn function(name: &str) -> Option<&'static Function> {
    static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| read(include_str!("overloads.txt")));
    TABLE.get(name)
}

/// The table: `#` begins a library, an unindented line names a function, an indented one is an overload: its id, its arguments (after a dot when
/// the first is the receiver), its result.
fn read(source: &'static str) -> HashMap<&'static str, Function> {
    let (mut table, mut library, mut name) = (HashMap::new(), standard as Library, "");
    for line in source.lines() {
        match line.split_at(1) {
            (" ", overload) => _ = table.entry(name).and_modify(|it: &mut Function| it.overloads.extend(read_overload(overload))),
            ("#", title) => {
                library = match title.trim() {
                    "strings" => strings::call,
                    "lists" => lists::call,
                    "time" => time::call,
                    "kubernetes" => kube::call,
                    "authorizer" => authorizer::call,
                    _ => standard,
                }
            }
            _ => {
                name = line;
                table.insert(name, Function { name, overloads: Vec::new(), library });
            }
        }
    }
    table
}

fn read_overload(line: &'static str) -> Option<Overload> {
    let (id, signature) = line.split_once(' ')?;
    let (args, result) = signature.trim_start_matches('.').split_once(": ")?;
    let args = args.split(", ").filter(|it| !it.is_empty()).map(Type::parse).collect();
    Some(Overload { id, is_member: signature.starts_with('.'), args, result: Type::parse(result) })
}

const OVERFLOW: &str = "integer overflow";
const UNSIGNED_OVERFLOW: &str = "unsigned integer overflow";

fn standard<'a>(function: &str, args: &[Val<'a>]) -> Eval<Val<'a>> {
    use Val::{Bool, Bytes, Double, Duration, Int, Timestamp, Uint};
    Ok(match (function, args) {
        ("!_", [Bool(it)]) => Bool(!it),
        ("-_", [Int(it)]) => Int(or_fail(it.checked_neg(), OVERFLOW)?),
        ("-_", [Double(it)]) => Double(-it),
        ("_==_", [a, b]) => Bool(a.equals(b)),
        ("_!=_", [a, b]) => Bool(!a.equals(b)),
        ("_<_", [a, b]) => Bool(order(a, b)?.is_lt()),
        ("_<=_", [a, b]) => Bool(order(a, b)?.is_le()),
        ("_>_", [a, b]) => Bool(order(a, b)?.is_gt()),
        ("_>=_", [a, b]) => Bool(order(a, b)?.is_ge()),
        ("_+_", [a, b]) => add(a.clone(), b.clone())?,
        ("_-_", [Int(a), Int(b)]) => Int(or_fail(a.checked_sub(*b), OVERFLOW)?),
        ("_-_", [Uint(a), Uint(b)]) => Uint(or_fail(a.checked_sub(*b), UNSIGNED_OVERFLOW)?),
        ("_-_", [Double(a), Double(b)]) => Double(a - b),
        ("_-_", [a, b]) => time::subtract(a, b)?,
        ("_*_", [Int(a), Int(b)]) => Int(or_fail(a.checked_mul(*b), OVERFLOW)?),
        ("_*_", [Uint(a), Uint(b)]) => Uint(or_fail(a.checked_mul(*b), UNSIGNED_OVERFLOW)?),
        ("_*_", [Double(a), Double(b)]) => Double(a * b),
        ("_/_", [Int(_), Int(0)] | [Uint(_), Uint(0)]) => return fail("division by zero"),
        ("_/_", [Int(a), Int(b)]) => Int(or_fail(a.checked_div(*b), OVERFLOW)?),
        ("_/_", [Uint(a), Uint(b)]) => Uint(a / b),
        ("_/_", [Double(a), Double(b)]) => Double(a / b),
        ("_%_", [Int(_), Int(0)] | [Uint(_), Uint(0)]) => return fail("modulus by zero"),
        ("_%_", [Int(a), Int(b)]) => Int(or_fail(a.checked_rem(*b), OVERFLOW)?),
        ("_%_", [Uint(a), Uint(b)]) => Uint(a % b),
        ("@in", [item, Val::List(list)]) => Bool(contains(list, item)?),
        ("@in", [key, Val::Map(map)]) => Bool(map.find(key)?.is_some()),
        ("size", [it @ (Val::String(_) | Bytes(_) | Val::List(_) | Val::Map(_))]) => Int(it.size() as i64),
        ("type", [it]) => Val::Type(it.type_name().to_owned()),
        ("bool", [Val::String(it)]) => match it.as_ref() {
            "1" | "t" | "true" | "TRUE" | "True" | "T" => Bool(true),
            "0" | "f" | "false" | "FALSE" | "False" | "F" => Bool(false),
            _ => return fail("type conversion error from 'string' to 'bool'"),
        },
        ("bytes", [Val::String(it)]) => Bytes(it.as_bytes().into()),
        ("int", [Uint(it)]) => Int(or_fail(i64::try_from(*it).ok(), OVERFLOW)?),
        ("int", [Double(it)]) if *it > -9_223_372_036_854_775_808.0 && *it < 9_223_372_036_854_775_808.0 => Int(*it as i64),
        ("int", [Double(_)]) => return fail(OVERFLOW),
        ("int", [Duration(it)]) => Int(*it),
        ("int", [Timestamp(it)]) => Int(it.as_second()),
        ("int", [Val::String(it)]) => Int(parsed(it, "int")?),
        ("uint", [Int(it)]) => Uint(or_fail(u64::try_from(*it).ok(), UNSIGNED_OVERFLOW)?),
        ("uint", [Double(it)]) if *it >= 0.0 && *it < 18_446_744_073_709_551_616.0 => Uint(*it as u64),
        ("uint", [Double(_)]) => return fail(UNSIGNED_OVERFLOW),
        ("uint", [Val::String(it)]) => Uint(parsed(it, "uint")?),
        ("double", [Int(it)]) => Double(*it as f64),
        ("double", [Uint(it)]) => Double(*it as f64),
        ("double", [Val::String(it)]) => Double(parsed(it, "double")?),
        ("string", [it]) => Val::text(string_of(it)?),
        ("dyn", [it]) => it.clone(),
        ("bool" | "bytes" | "int" | "uint" | "double", [it]) if it.type_name() == function => it.clone(),
        _ => return no_overload(),
    })
}

/// Go and Rust spell numbers alike, but for what is no finite number.
fn parsed<T: std::str::FromStr>(text: &str, name: &str) -> Eval<T> {
    or_fail(text.parse().ok(), format!("type conversion error from 'string' to '{name}'"))
}

fn order(a: &Val<'_>, b: &Val<'_>) -> Eval<Ordering> {
    let is_number = |it: &Val<'_>| matches!(it, Val::Double(_) | Val::Int(_) | Val::Uint(_));
    match a.compare(b) {
        Some(order) => Ok(order),
        None if is_number(a) && is_number(b) => fail("NaN values cannot be ordered"),
        None => no_overload(),
    }
}

pub fn add<'a>(left: Val<'a>, right: Val<'a>) -> Eval<Val<'a>> {
    Ok(match (left, right) {
        (Val::Int(a), Val::Int(b)) => Val::Int(or_fail(a.checked_add(b), OVERFLOW)?),
        (Val::Uint(a), Val::Uint(b)) => Val::Uint(or_fail(a.checked_add(b), UNSIGNED_OVERFLOW)?),
        (Val::Double(a), Val::Double(b)) => Val::Double(a + b),
        (Val::String(a), Val::String(b)) => Val::text(a.into_owned() + &b),
        (Val::Bytes(a), Val::Bytes(b)) => Val::Bytes([a.as_ref(), b.as_ref()].concat().into()),
        (Val::List(a), Val::List(b)) => Val::List(a.join(b)?),
        (a, b) => time::add(&a, &b)?,
    })
}

/// A map with one entry more, or with those of another map.
pub fn insert<'a>(map: Val<'a>, added: &[Val<'a>]) -> Eval<Val<'a>> {
    let entries = match added {
        [Val::Map(more)] => more.entries()?,
        [key, value] => vec![(key.clone(), value.clone())],
        _ => return no_overload(),
    };
    let Val::Map(Map::Made(mut made)) = map else { return no_overload() };
    let all = Arc::make_mut(&mut made);
    for (key, value) in entries {
        if all.insert(Key::of(&key)?, (key.clone(), value)).is_some() {
            return fail(format!("insert failed: key {} already exists", key.shown()));
        }
    }
    Ok(Val::Map(Map::Made(made)))
}

pub fn contains(list: &List<'_>, item: &Val<'_>) -> Eval<bool> {
    any(list, |it| Ok(it.equals(item)))
}

/// Whether something holds for an item of a list.
pub fn any(list: &List<'_>, is_so: impl Fn(&Val<'_>) -> Eval<bool>) -> Eval<bool> {
    for item in list.iter() {
        if is_so(&item?)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `a[?b]` and `a.?b`: what is not there is none.
pub fn optional_index<'a>(value: &Val<'a>, key: &Val<'a>) -> Eval<Val<'a>> {
    let value = match value {
        Val::Optional(None) => return Ok(Val::none()),
        Val::Optional(Some(it)) => it.as_ref(),
        other => other,
    };
    let found = match (value, key) {
        (Val::List(list), Val::Int(at)) => usize::try_from(*at).ok().filter(|at| *at < list.len()).map(|at| list.get(at)).transpose()?,
        (Val::List(_), _) => return no_overload(),
        _ => value.find(key)?,
    };
    Ok(Val::Optional(found.map(Arc::new)))
}

pub fn string_of(value: &Val<'_>) -> Eval<String> {
    Ok(match value {
        Val::String(it) => it.to_string(),
        Val::Bool(it) => it.to_string(),
        Val::Int(it) => it.to_string(),
        Val::Uint(it) => it.to_string(),
        Val::Double(it) => double_text(*it),
        Val::Bytes(it) => or_fail(String::from_utf8(it.to_vec()).ok(), "invalid UTF-8 in bytes, cannot convert to string")?,
        Val::Duration(it) => time::duration_text(*it),
        Val::Timestamp(it) => it.to_string(),
        Val::Type(name) => name.clone(),
        Val::Kube(it) => it.to_string(),
        _ => return no_overload(),
    })
}

/// `strconv.FormatFloat(f, 'g', -1, 64)`
fn double_text(it: f64) -> String {
    if !it.is_finite() {
        return if it.is_nan() { "NaN" } else if it > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let exponent = if it == 0.0 { 0 } else { it.abs().log10().floor() as i32 };
    if (-4..21).contains(&exponent) {
        return it.to_string();
    }
    let text = format!("{it:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |it| ('-', it));
    format!("{digits}e{sign}{power:0>2}")
}
