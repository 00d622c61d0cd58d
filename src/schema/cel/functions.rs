//! The functions of the language: which there are (`overloads.txt`, in cel-go's order), and the programs of those that every language has.
//! Follows cel-go `common/stdlib` and `common/types`.

use std::{collections::HashMap, rc::Rc, sync::LazyLock};

use super::{
    authorizer, kube, lists, strings, time,
    types::{Type, split},
    value::{Eval, EvalError, Key, List, Map, Val, fail, no_overload},
};

/// The program of a function. Which overload is meant it sees in the values.
pub type Native = for<'a> fn(&[Val<'a>]) -> Eval<Val<'a>>;

pub struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    pub native: Option<Native>,
}

pub struct Overload {
    pub id: &'static str,
    pub is_member: bool,
    /// With the receiver first.
    pub args: Vec<Type>,
    pub result: Type,
    /// Names of the variables in the signature.
    pub params: Vec<String>,
}

pub fn function(name: &str) -> Option<&'static Function> {
    static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| read(include_str!("overloads.txt")));
    TABLE.get(name)
}

/// The table: an unindented line names a function, an indented one is an overload: its id, its arguments, its result.
fn read(source: &'static str) -> HashMap<&'static str, Function> {
    let natives: HashMap<&str, Native> = [STANDARD, strings::TABLE, lists::TABLE, time::TABLE, kube::TABLE, authorizer::TABLE].into_iter().flatten().copied().collect();
    let mut table: HashMap<&str, Function> = HashMap::new();
    let mut name = "";
    for line in source.lines() {
        if let Some(overload) = line.strip_prefix(' ') {
            table.entry(name).and_modify(|it| it.overloads.extend(read_overload(overload)));
            continue;
        }
        name = line;
        table.insert(name, Function { name, overloads: Vec::new(), native: natives.get(name).copied() });
    }
    table
}

fn read_overload(line: &'static str) -> Option<Overload> {
    let (id, rest) = line.split_once(' ')?;
    let is_member = rest.starts_with('.');
    let rest = rest.trim_start_matches('.').strip_prefix('(')?;
    let mut depth = 1;
    let close = rest.find(|it| {
        depth += i32::from(it == '(') - i32::from(it == ')');
        depth == 0
    })?;
    let args: Vec<Type> = split(&rest[..close]).into_iter().map(Type::parse).collect();
    let result = Type::parse(rest[close + 1..].trim());
    let mut params = Vec::new();
    args.iter().chain([&result]).for_each(|it| collect_params(it, &mut params));
    Some(Overload { id, is_member, args, result, params })
}

fn collect_params(ty: &Type, into: &mut Vec<String>) {
    if let Type::Param(name) = ty
        && !into.contains(name)
    {
        into.push(name.clone());
    }
    ty.params().into_iter().for_each(|it| collect_params(it, into));
}

#[rustfmt::skip]
const STANDARD: &[(&str, Native)] = &[
    ("!_", |a| match a { [Val::Bool(it)] => Ok(Val::Bool(!it)), _ => no_overload() }),
    ("-_", |a| match a {
        [Val::Int(it)] => it.checked_neg().map(Val::Int).ok_or_else(overflow),
        [Val::Double(it)] => Ok(Val::Double(-it)),
        _ => no_overload(),
    }),
    ("_==_", |a| Ok(Val::Bool(a[0].equals(&a[1])))),
    ("_!=_", |a| Ok(Val::Bool(!a[0].equals(&a[1])))),
    ("_<_", |a| ordered(a, |it| it.is_lt())),
    ("_<=_", |a| ordered(a, |it| it.is_le())),
    ("_>_", |a| ordered(a, |it| it.is_gt())),
    ("_>=_", |a| ordered(a, |it| it.is_ge())),
    ("_+_", |a| add(a[0].clone(), a[1].clone())),
    ("_-_", |a| match a {
        [Val::Int(a), Val::Int(b)] => a.checked_sub(*b).map(Val::Int).ok_or_else(overflow),
        [Val::Uint(a), Val::Uint(b)] => a.checked_sub(*b).map(Val::Uint).ok_or_else(unsigned_overflow),
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a - b)),
        _ => time::subtract(a),
    }),
    ("_*_", |a| match a {
        [Val::Int(a), Val::Int(b)] => a.checked_mul(*b).map(Val::Int).ok_or_else(overflow),
        [Val::Uint(a), Val::Uint(b)] => a.checked_mul(*b).map(Val::Uint).ok_or_else(unsigned_overflow),
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a * b)),
        _ => no_overload(),
    }),
    ("_/_", |a| match a {
        [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)] => fail("division by zero"),
        [Val::Int(a), Val::Int(b)] => a.checked_div(*b).map(Val::Int).ok_or_else(overflow),
        [Val::Uint(a), Val::Uint(b)] => Ok(Val::Uint(a / b)),
        [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a / b)),
        _ => no_overload(),
    }),
    ("_%_", |a| match a {
        [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)] => fail("modulus by zero"),
        [Val::Int(a), Val::Int(b)] => a.checked_rem(*b).map(Val::Int).ok_or_else(overflow),
        [Val::Uint(a), Val::Uint(b)] => Ok(Val::Uint(a % b)),
        _ => no_overload(),
    }),
    ("@in", |a| match a {
        [item, Val::List(list)] => contains(list, item).map(Val::Bool),
        [key, Val::Map(map)] => Ok(Val::Bool(map.find(key)?.is_some())),
        _ => no_overload(),
    }),
    ("_[_]", |a| a[0].index(&a[1])),
    ("_[?_]", |a| optional_index(&a[0], &a[1])),
    ("_?._", |a| optional_index(&a[0], &a[1])),
    ("size", |a| match a {
        [it @ (Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_))] => Ok(Val::Int(it.size() as i64)),
        _ => no_overload(),
    }),
    ("type", |a| Ok(Val::Type(a[0].type_name().to_owned()))),
    ("dyn", |a| Ok(a[0].clone())),
    ("bool", |a| match a {
        [Val::Bool(it)] => Ok(Val::Bool(*it)),
        [Val::String(it)] => match it.as_ref() {
            "1" | "t" | "true" | "TRUE" | "True" | "T" => Ok(Val::Bool(true)),
            "0" | "f" | "false" | "FALSE" | "False" | "F" => Ok(Val::Bool(false)),
            _ => fail("type conversion error from 'string' to 'bool'"),
        },
        _ => no_overload(),
    }),
    ("bytes", |a| match a {
        [Val::Bytes(it)] => Ok(Val::Bytes(it.clone())),
        [Val::String(it)] => Ok(Val::Bytes(it.as_bytes().into())),
        _ => no_overload(),
    }),
    ("int", |a| match a {
        [Val::Int(it)] => Ok(Val::Int(*it)),
        [Val::Uint(it)] => i64::try_from(*it).map(Val::Int).map_err(|_| overflow()),
        [Val::Double(it)] if it.is_finite() && *it > -9_223_372_036_854_775_808.0 && *it < 9_223_372_036_854_775_808.0 => Ok(Val::Int(*it as i64)),
        [Val::Double(_)] => Err(overflow()),
        [Val::Duration(it)] => Ok(Val::Int(*it)),
        [Val::Timestamp(it)] => Ok(Val::Int(it.as_second())),
        [Val::String(it)] => parse_number(it, "int", Val::Int),
        _ => no_overload(),
    }),
    ("uint", |a| match a {
        [Val::Uint(it)] => Ok(Val::Uint(*it)),
        [Val::Int(it)] => u64::try_from(*it).map(Val::Uint).map_err(|_| unsigned_overflow()),
        [Val::Double(it)] if it.is_finite() && *it >= 0.0 && *it < 18_446_744_073_709_551_616.0 => Ok(Val::Uint(*it as u64)),
        [Val::Double(_)] => Err(unsigned_overflow()),
        [Val::String(it)] => parse_number(it, "uint", Val::Uint),
        _ => no_overload(),
    }),
    ("double", |a| match a {
        [Val::Double(it)] => Ok(Val::Double(*it)),
        [Val::Int(it)] => Ok(Val::Double(*it as f64)),
        [Val::Uint(it)] => Ok(Val::Double(*it as f64)),
        [Val::String(it)] => match it.to_ascii_lowercase().trim_start_matches(['+', '-']) {
            "nan" | "inf" | "infinity" => Ok(Val::Double(it.parse().unwrap_or(f64::NAN))),
            digits if digits.starts_with(|it: char| it.is_ascii_digit() || it == '.') => parse_number(it, "double", Val::Double),
            _ => fail("type conversion error from 'string' to 'double'"),
        },
        _ => no_overload(),
    }),
    ("string", |a| string_of(&a[0]).map(Val::text)),
    ("cel.@mapInsert", |a| insert(a[0].clone(), &a[1..])),
];

fn overflow() -> EvalError {
    EvalError::Failed("integer overflow".to_owned())
}

fn unsigned_overflow() -> EvalError {
    EvalError::Failed("unsigned integer overflow".to_owned())
}

fn parse_number<'a, T: std::str::FromStr>(text: &str, name: &str, make: fn(T) -> Val<'a>) -> Eval<Val<'a>> {
    text.parse().map(make).or_else(|_| fail(format!("type conversion error from 'string' to '{name}'")))
}

fn ordered<'a>(args: &[Val<'a>], accept: fn(std::cmp::Ordering) -> bool) -> Eval<Val<'a>> {
    match args[0].compare(&args[1]) {
        Some(order) => Ok(Val::Bool(accept(order))),
        None if matches!(args, [Val::Double(_), Val::Double(_) | Val::Int(_) | Val::Uint(_)] | [Val::Int(_) | Val::Uint(_), Val::Double(_)]) => fail("NaN values cannot be ordered"),
        None => no_overload(),
    }
}

pub fn add<'a>(left: Val<'a>, right: Val<'a>) -> Eval<Val<'a>> {
    match (left, right) {
        (Val::Int(a), Val::Int(b)) => a.checked_add(b).map(Val::Int).ok_or_else(overflow),
        (Val::Uint(a), Val::Uint(b)) => a.checked_add(b).map(Val::Uint).ok_or_else(unsigned_overflow),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a + b)),
        (Val::String(a), Val::String(b)) => Ok(Val::text(a.into_owned() + &b)),
        (Val::Bytes(a), Val::Bytes(b)) => Ok(Val::Bytes([a.as_ref(), b.as_ref()].concat().into())),
        (Val::List(a), Val::List(b)) => a.join(b).map(Val::List),
        (a, b) => time::add(&a, &b),
    }
}

/// A map with one entry more, or with those of another map.
pub fn insert<'a>(map: Val<'a>, added: &[Val<'a>]) -> Eval<Val<'a>> {
    let entries: Vec<(Val<'a>, Val<'a>)> = match added {
        [Val::Map(more)] => more.keys().into_iter().map(|key| Ok((key.clone(), more.find(&key)?.unwrap_or(Val::Null)))).collect::<Eval<_>>()?,
        [key, value] => vec![(key.clone(), value.clone())],
        _ => return no_overload(),
    };
    let Val::Map(Map::Made(mut made)) = map else { return no_overload() };
    let all = Rc::make_mut(&mut made);
    for (key, value) in entries {
        let place = Key::of(&key).ok_or_else(|| EvalError::Failed(format!("unsupported key type: {}", key.type_name())))?;
        if all.insert(place, (key.clone(), value)).is_some() {
            return fail(format!("insert failed: key {} already exists", key.shown()));
        }
    }
    Ok(Val::Map(Map::Made(made)))
}

pub fn contains(list: &List<'_>, item: &Val<'_>) -> Eval<bool> {
    for one in list.iter() {
        if one?.equals(item) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `a[?b]` and `a.?b`: what is not there is none.
fn optional_index<'a>(value: &Val<'a>, key: &Val<'a>) -> Eval<Val<'a>> {
    let value = match value {
        Val::Optional(None) => return Ok(Val::none()),
        Val::Optional(Some(it)) => it.as_ref(),
        other => other,
    };
    match (value, key) {
        (Val::List(list), Val::Int(at)) => {
            let at = usize::try_from(*at).ok().filter(|at| *at < list.len());
            at.map_or(Ok(Val::none()), |at| list.get(at).map(Val::some))
        }
        (Val::List(_), _) => no_overload(),
        _ => Ok(value.find(key)?.map_or_else(Val::none, Val::some)),
    }
}

pub fn string_of(value: &Val<'_>) -> Eval<String> {
    Ok(match value {
        Val::String(it) => it.to_string(),
        Val::Bool(it) => it.to_string(),
        Val::Int(it) => it.to_string(),
        Val::Uint(it) => it.to_string(),
        Val::Double(it) => double_text(*it),
        Val::Bytes(it) => String::from_utf8(it.to_vec()).map_err(|_| EvalError::Failed("invalid UTF-8 in bytes, cannot convert to string".to_owned()))?,
        Val::Duration(it) => time::duration_text(*it),
        Val::Timestamp(it) => time::timestamp_text(*it),
        Val::Type(name) => name.clone(),
        Val::Kube(it) => it.to_string(),
        _ => return no_overload(),
    })
}

/// `strconv.FormatFloat(f, 'g', -1, 64)`
fn double_text(it: f64) -> String {
    if it.is_nan() || it.is_infinite() {
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
