//! Functions over strings. Follows cel-go `ext/strings.go` (version 2), `common/types/string.go` and apiserver `pkg/cel/library/regex.go`.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use regex::Regex;

use super::{
    format,
    functions::Native,
    value::{Eval, Val, fail, no_overload},
};

#[rustfmt::skip]
pub const TABLE: &[(&str, Native)] = &[
    ("contains", |a| two(a, |text, other| Ok(Val::Bool(text.contains(other))))),
    ("startsWith", |a| two(a, |text, other| Ok(Val::Bool(text.starts_with(other))))),
    ("endsWith", |a| two(a, |text, other| Ok(Val::Bool(text.ends_with(other))))),
    ("matches", |a| two(a, |text, pattern| Ok(Val::Bool(regex(pattern)?.is_match(text))))),
    ("find", |a| two(a, |text, pattern| Ok(Val::text(regex(pattern)?.find(text).map_or("", |it| it.as_str()))))),
    ("findAll", |a| match a {
        [Val::String(text), Val::String(pattern), limit @ ..] => {
            let most = match limit { [Val::Int(most)] => usize::try_from(*most).unwrap_or(usize::MAX), [] => usize::MAX, _ => return no_overload() };
            Ok(Val::list(regex(pattern)?.find_iter(text).take(most).map(|it| Val::text(it.as_str())).collect()))
        }
        _ => no_overload(),
    }),
    ("charAt", |a| match a {
        [Val::String(text), Val::Int(at)] => {
            let letters: Vec<char> = text.chars().collect();
            match usize::try_from(*at) {
                Ok(at) if at <= letters.len() => Ok(Val::text(letters.get(at).map(char::to_string).unwrap_or_default())),
                _ => out_of_range(*at),
            }
        }
        _ => no_overload(),
    }),
    ("indexOf", |a| match a {
        [Val::List(list), item] => Ok(Val::Int(list.iter().position(|it| it.is_ok_and(|it| it.equals(item))).map_or(-1, |it| it as i64))),
        [Val::String(text), Val::String(part)] => index_of(text, part, 0),
        [Val::String(text), Val::String(part), Val::Int(from)] => index_of(text, part, *from),
        _ => no_overload(),
    }),
    ("lastIndexOf", |a| match a {
        [Val::List(list), item] => {
            let all = list.to_vec()?;
            Ok(Val::Int(all.iter().rposition(|it| it.equals(item)).map_or(-1, |it| it as i64)))
        }
        [Val::String(text), Val::String(part)] if part.is_empty() => Ok(Val::Int(text.chars().count() as i64)),
        [Val::String(text), Val::String(_)] if text.is_empty() => Ok(Val::Int(-1)),
        [Val::String(text), Val::String(part)] => last_index_of(text, part, text.chars().count() as i64 - 1),
        [Val::String(text), Val::String(part), Val::Int(from)] => last_index_of(text, part, *from),
        _ => no_overload(),
    }),
    ("lowerAscii", |a| one(a, |text| text.to_ascii_lowercase())),
    ("upperAscii", |a| one(a, |text| text.to_ascii_uppercase())),
    ("trim", |a| one(a, |text| text.trim().to_owned())),
    ("strings.quote", |a| one(a, quote)),
    ("jsonpatch.escapeKey", |a| one(a, |text| text.replace('~', "~0").replace('/', "~1"))),
    ("replace", |a| match a {
        [Val::String(text), Val::String(old), Val::String(new)] => Ok(Val::text(text.replace(old.as_ref(), new))),
        [Val::String(text), Val::String(old), Val::String(new), Val::Int(count)] => {
            Ok(Val::text(text.replacen(old.as_ref(), new, usize::try_from(*count).unwrap_or(usize::MAX))))
        }
        _ => no_overload(),
    }),
    ("split", |a| match a {
        [Val::String(text), Val::String(by)] => Ok(split(text, by, -1)),
        [Val::String(text), Val::String(by), Val::Int(most)] => Ok(split(text, by, *most)),
        _ => no_overload(),
    }),
    ("substring", |a| match a {
        [Val::String(text), Val::Int(start)] => substring(text, *start, None),
        [Val::String(text), Val::Int(start), Val::Int(end)] => substring(text, *start, Some(*end)),
        _ => no_overload(),
    }),
    ("join", |a| match a {
        [Val::List(list), rest @ ..] => {
            let by = match rest { [] => "", [Val::String(by)] => by.as_ref(), _ => return no_overload() };
            let mut parts = Vec::with_capacity(list.len());
            for item in list.iter() {
                match item? {
                    Val::String(text) => parts.push(text),
                    other => return fail(format!("join: invalid input: {}", other.shown())),
                }
            }
            Ok(Val::text(parts.join(by)))
        }
        _ => no_overload(),
    }),
    ("format", |a| match a {
        [Val::String(text), Val::List(args)] => format::format(text, &args.to_vec()?).map(Val::text),
        _ => no_overload(),
    }),
];

fn one<'a>(args: &[Val<'a>], make: fn(&str) -> String) -> Eval<Val<'a>> {
    match args {
        [Val::String(text)] => Ok(Val::text(make(text))),
        _ => no_overload(),
    }
}

fn two<'a>(args: &[Val<'a>], make: fn(&str, &str) -> Eval<Val<'a>>) -> Eval<Val<'a>> {
    match args {
        [Val::String(text), Val::String(other)] => make(text, other),
        _ => no_overload(),
    }
}

fn out_of_range<T>(at: i64) -> Eval<T> {
    fail(format!("index out of range: {at}"))
}

/// The place of `part` among `letters`, where it may begin at any of `places`.
fn place(letters: &[char], part: &[char], mut places: impl Iterator<Item = usize>) -> i64 {
    places.find(|at| letters[*at..].starts_with(part)).map_or(-1, |it| it as i64)
}

fn index_of<'a>(text: &str, part: &str, from: i64) -> Eval<Val<'a>> {
    let (letters, part): (Vec<char>, Vec<char>) = (text.chars().collect(), part.chars().collect());
    match usize::try_from(from) {
        _ if part.is_empty() => Ok(Val::Int(from)),
        Err(_) => out_of_range(from),
        Ok(from) => Ok(Val::Int(place(&letters, &part, from..letters.len()))),
    }
}

fn last_index_of<'a>(text: &str, part: &str, from: i64) -> Eval<Val<'a>> {
    let (letters, part): (Vec<char>, Vec<char>) = (text.chars().collect(), part.chars().collect());
    match usize::try_from(from) {
        _ if part.is_empty() => Ok(Val::Int(from)),
        Err(_) => out_of_range(from),
        Ok(from) if from >= letters.len() => Ok(Val::Int(-1)),
        Ok(from) => Ok(Val::Int(place(&letters, &part, (0..=from).rev()))),
    }
}

fn substring<'a>(text: &str, start: i64, end: Option<i64>) -> Eval<Val<'a>> {
    let letters: Vec<char> = text.chars().collect();
    let within = |at: i64| usize::try_from(at).ok().filter(|it| *it <= letters.len());
    if let Some(end) = end.filter(|it| start > *it) {
        return fail(format!("invalid substring range. start: {start}, end: {end}"));
    }
    let Some(first) = within(start) else { return out_of_range(start) };
    let end = end.unwrap_or(letters.len() as i64);
    within(end).map_or_else(|| out_of_range(end), |last| Ok(Val::text(letters[first..last].iter().collect::<String>())))
}

/// `strings.SplitN`: no part when `most` is 0, all of them when it is negative.
fn split<'a>(text: &str, by: &str, most: i64) -> Val<'a> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let parts: Vec<String> = match (most, by) {
        (0, _) => Vec::new(),
        (most, "") => {
            let letters: Vec<char> = text.chars().collect();
            let single = letters.len().min(most).saturating_sub(usize::from(most < letters.len()));
            let mut parts: Vec<String> = letters[..single].iter().map(char::to_string).collect();
            if single < letters.len() {
                parts.push(letters[single..].iter().collect());
            }
            parts
        }
        (most, by) => text.splitn(most, by).map(str::to_owned).collect(),
    };
    Val::list(parts.into_iter().map(Val::text).collect())
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// Compiled patterns that are kept; when there are more, all are dropped.
const PATTERNS_MAX: usize = 512;
/// The memory that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// A pattern in RE2's syntax, compiled once.
pub fn regex(pattern: &str) -> Eval<Regex> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = compiled.get(pattern) {
        return Ok(known.clone());
    }
    let built = regex::RegexBuilder::new(&ascii_classes(pattern)).size_limit(PATTERN_BYTES_MAX).build();
    let regex = built.or_else(|why| {
        let problem = if why.to_string().contains("unclosed group") { "missing closing )" } else { "invalid pattern" };
        fail(format!("error parsing regexp: {problem}: `{pattern}`"))
    })?;
    if compiled.len() >= PATTERNS_MAX {
        compiled.clear();
    }
    compiled.insert(pattern.to_owned(), regex.clone());
    Ok(regex)
}

/// RE2's classes know only ASCII, those of this library all of Unicode.
fn ascii_classes(pattern: &str) -> String {
    let mut ascii = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            ascii.push(letter);
            continue;
        }
        match letters.next() {
            Some('d') => ascii.push_str("[0-9]"),
            Some('D') => ascii.push_str("[^0-9]"),
            Some('w') => ascii.push_str("[0-9A-Za-z_]"),
            Some('W') => ascii.push_str("[^0-9A-Za-z_]"),
            Some('s') => ascii.push_str("[\\t\\n\\f\\r ]"),
            Some('S') => ascii.push_str("[^\\t\\n\\f\\r ]"),
            Some('b') => ascii.push_str("(?-u:\\b)"),
            Some('z') => ascii.push_str("\\z"),
            Some(other) => ascii.extend(['\\', other]),
            None => ascii.push('\\'),
        }
    }
    ascii
}
