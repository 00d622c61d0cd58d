//! `'%s'.format([x])`. Follows cel-go `ext/formatting.go`.

use super::{
    functions::string_of,
    types::Type,
    value::{Eval, Val, fail},
};

/// Digits after the point where none are asked for.
const PRECISION: usize = 6;
/// The most digits after the point.
const PRECISION_MAX: usize = 1000;

/// What is wrong with a call whose format is known; the argument it concerns, if one.
pub type Complaint = (Option<usize>, String);

pub fn format(text: &str, args: &[Val<'_>]) -> Eval<String> {
    let mut output = String::new();
    for piece in pieces(text, args.len()) {
        match piece.or_else(|(_, why)| fail(why))? {
            Piece::Text(text) => output.push_str(text),
            Piece::Clause(clause, precision, at) => match clause_text(clause, precision, &args[at]) {
                Ok(text) => output.push_str(&text),
                Err(why) => return fail(format!("error during formatting: {why}")),
            },
        }
    }
    Ok(output)
}

/// Checks the types of the arguments; returns how many the format wants.
pub fn check(text: &str, args: &[Type]) -> Result<usize, Complaint> {
    let mut count = 0;
    for piece in pieces(text, args.len()) {
        let Piece::Clause(clause, _, at) = piece? else { continue };
        if !args[at].is_dyn() && !fits(clause, &args[at]) {
            return Err((Some(at), format!("error during formatting: {}", refusal(clause, args[at].name()))));
        }
        count += 1;
    }
    Ok(count)
}

enum Piece<'a> {
    Text(&'a str),
    /// Letter, precision, argument.
    Clause(char, Option<usize>, usize),
}

/// The pieces of a format for that many arguments; the last one may be what is wrong.
fn pieces(text: &str, count: usize) -> impl Iterator<Item = Result<Piece<'_>, Complaint>> {
    let (mut rest, mut used) = (Some(text), 0);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(after) = text.strip_prefix('%') else {
            let (plain, after) = text.split_at(text.find('%').unwrap_or(text.len()));
            rest = Some(after).filter(|it| !it.is_empty());
            return Some(Ok(Piece::Text(plain)));
        };
        if let Some(after) = after.strip_prefix('%') {
            rest = Some(after);
            return Some(Ok(Piece::Text("%")));
        }
        let clause = if used < count { clause(after) } else { Err((None, format!("index {used} out of range"))) };
        rest = clause.as_ref().ok().map(|it| it.2);
        used += 1;
        Some(clause.map(|(letter, precision, _)| Piece::Clause(letter, precision, used - 1)))
    })
}

fn clause(text: &str) -> Result<(char, Option<usize>, &str), Complaint> {
    let complain = |why: &str| Err((None, format!("could not parse formatting clause: {why}")));
    let (precision, rest) = match text.strip_prefix('.') {
        None => (None, text),
        Some(after) => {
            let end = after.find(|it: char| !it.is_ascii_digit()).unwrap_or(after.len());
            if end == after.len() {
                return complain("error while parsing precision: could not find end of precision specifier");
            }
            match after[..end].parse().ok().filter(|it| *it <= PRECISION_MAX) {
                Some(digits) => (Some(digits), &after[end..]),
                None => return complain(&format!("error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing {:?}: invalid syntax", &after[..end])),
            }
        }
    };
    let Some(letter) = rest.chars().next() else { return Err((None, "unexpected end of string".to_owned())) };
    if !CLAUSES.iter().any(|it| it.0.contains(letter)) {
        return complain(&format!("unrecognized formatting clause \"{letter}\""));
    }
    Ok((letter, precision, &rest[letter.len_utf8()..]))
}

/// Clauses, the names of the types that they take, and what is said to others; `s` takes all types of the language.
const CLAUSES: [(&str, &[&str], &str); 7] = [
    ("d", &["int", "uint"], "decimal clause can only be used on integers"),
    ("o", &["int", "uint"], "octal clause can only be used on integers"),
    ("f", &["double", "string"], "fixed-point clause can only be used on doubles"),
    ("e", &["double", "string"], "scientific clause can only be used on doubles"),
    ("b", &["int", "uint", "bool"], "only integers and bools can be formatted as binary"),
    ("xX", &["int", "uint", "string", "bytes"], "only integers, byte buffers, and strings can be formatted as hex"),
    ("s", &[], "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"),
];

fn fits(clause: char, ty: &Type) -> bool {
    match CLAUSES.iter().find(|it| it.0.contains(clause)) {
        Some((_, names, _)) if clause != 's' => names.contains(&ty.name()),
        _ => matches!(ty, Type::Of(..)) && !ty.is_opaque() && !matches!(ty.name(), "optional_type" | "error"),
    }
}

fn refusal(clause: char, name: &str) -> String {
    let rule = CLAUSES.iter().find(|it| it.0.contains(clause)).map_or("", |it| it.2);
    format!("{rule}, was given {name}")
}

fn clause_text(clause: char, precision: Option<usize>, value: &Val<'_>) -> Result<String, String> {
    let digits = precision.unwrap_or(PRECISION);
    let refuse = || refusal(clause, value.type_name());
    let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect();
    Ok(match (clause, value) {
        ('X', _) => clause_text('x', precision, value)?.to_ascii_uppercase(),
        ('s', _) => shown(value, false)?,
        ('d', _) => value.whole().ok_or_else(refuse)?.to_string(),
        ('f', _) => fixed(double(value).ok_or_else(refuse)?, digits),
        ('e', _) => scientific(double(value).ok_or_else(refuse)?, digits),
        ('b', Val::Bool(it)) => u8::from(*it).to_string(),
        ('x', Val::String(it)) => hex(it.as_bytes()),
        ('x', Val::Bytes(it)) => hex(it),
        ('b', _) => signed(value.whole().ok_or_else(refuse)?, |it| format!("{it:b}")),
        ('o', _) => signed(value.whole().ok_or_else(refuse)?, |it| format!("{it:o}")),
        ('x', _) => signed(value.whole().ok_or_else(refuse)?, |it| format!("{it:x}")),
        _ => return Err(refuse()),
    })
}

fn signed(it: i128, make: fn(u128) -> String) -> String {
    format!("{}{}", if it < 0 { "-" } else { "" }, make(it.unsigned_abs()))
}

fn double(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Double(it) => Some(*it),
        Val::String(it) => match it.as_ref() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn no_number(it: f64) -> &'static str {
    if it.is_nan() { "NaN" } else if it > 0.0 { "∞" } else { "-∞" }
}

/// As the locale en_US writes it: commas between thousands.
fn fixed(it: f64, digits: usize) -> String {
    if !it.is_finite() {
        return no_number(it).to_owned();
    }
    let text = format!("{:.digits$}", it.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), String::new()), |(whole, part)| (whole, format!(".{part}")));
    let groups: Vec<_> = whole.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    let grouped = groups.join(",");
    format!("{}{grouped}{fraction}", if it.is_sign_negative() { "-" } else { "" })
}

/// `1.234500×10⁰³`
fn scientific(it: f64, digits: usize) -> String {
    if !it.is_finite() {
        return no_number(it).to_owned();
    }
    let text = format!("{it:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = exponent.strip_prefix('-').map_or(("", exponent), |it| ("⁻", it));
    let raised: String = format!("{power:0>2}").chars().filter_map(|it| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(it.to_digit(10)? as usize)).collect();
    format!("{mantissa}×10{sign}{raised}")
}

/// A value as `%s` shows it; strings within lists and maps are quoted.
fn shown(value: &Val<'_>, is_inside: bool) -> Result<String, String> {
    let told = |it: super::value::EvalError| it.to_string();
    match value {
        Val::Null => Ok("null".to_owned()),
        Val::String(it) if is_inside => Ok(format!("{it:?}")),
        Val::Bytes(it) if is_inside => Ok(format!("b{:?}", String::from_utf8_lossy(it))),
        Val::Double(it) if is_inside => Ok(format!("{it:.PRECISION$}")),
        Val::Duration(it) if is_inside => Ok(format!("duration({:?})", super::time::duration_text(*it))),
        Val::Timestamp(it) if is_inside => Ok(format!("timestamp({:?})", it.to_string())),
        Val::Type(it) if is_inside => Ok(format!("type({it})")),
        Val::List(list) => {
            let items: Vec<String> = list.iter().map(|it| shown(&it.map_err(told)?, true)).collect::<Result<_, _>>()?;
            Ok(format!("[{}]", items.join(", ")))
        }
        Val::Map(map) => {
            let pair = |(key, value): (Val<'_>, Val<'_>)| match key {
                Val::String(_) | Val::Bool(_) | Val::Int(_) | Val::Uint(_) => Ok((shown(&key, true)?, shown(&value, true)?)),
                _ => Err(format!("no formatting function for map key of type {}", key.type_name())),
            };
            let mut pairs: Vec<(String, String)> = map.entries().map_err(told)?.into_iter().map(pair).collect::<Result<_, _>>()?;
            pairs.sort();
            Ok(format!("{{{}}}", pairs.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(", ")))
        }
        Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::String(_) | Val::Bytes(_) | Val::Duration(_) | Val::Timestamp(_) | Val::Type(_) => string_of(value).map_err(told),
        other if is_inside => Err(format!("no formatting function for {}", other.type_name())),
        other => Err(refusal('s', other.type_name())),
    }
}
