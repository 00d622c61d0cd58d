//! Functions over strings. Follows cel-go `ext/strings.go` (version 2), `common/types/string.go` and apiserver `pkg/cel/library/regex.go`.

use regex::Regex;

use super::{
    format,
    lex::ESCAPES,
    value::{self, Eval, Val, fail, no_overload, or_fail},
};
use crate::meta::pattern;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Eval<Val<'a>> {
    use Val::{Bool, Int, List, String as Text};
    Ok(match (function, args) {
        ("contains", [Text(text), Text(other)]) => Bool(text.contains(other.as_ref())),
        ("startsWith", [Text(text), Text(other)]) => Bool(text.starts_with(other.as_ref())),
        ("endsWith", [Text(text), Text(other)]) => Bool(text.ends_with(other.as_ref())),
        ("matches", [Text(text), Text(pattern)]) => Bool(regex(pattern)?.is_match(text)),
        ("find", [Text(text), Text(pattern)]) => Val::text(regex(pattern)?.find(text).map_or("", |it| it.as_str())),
        ("findAll", [Text(text), Text(pattern)]) => find_all(text, pattern, -1)?,
        ("findAll", [Text(text), Text(pattern), Int(most)]) => find_all(text, pattern, *most)?,
        ("charAt", [Text(text), Int(at)]) => {
            let letter = usize::try_from(*at).ok().and_then(|it| text.chars().map(Some).chain([None]).nth(it));
            Val::text(or_fail(letter, out_of_range(*at))?.map(String::from).unwrap_or_default())
        }
        ("indexOf", [List(list), item]) => position(list.iter().position(|it| it.is_ok_and(|it| it.equals(item)))),
        ("indexOf", [Text(text), Text(part)]) => index_of(text, part, 0)?,
        ("indexOf", [Text(text), Text(part), Int(from)]) => index_of(text, part, *from)?,
        ("lastIndexOf", [List(list), item]) => position(list.to_vec()?.iter().rposition(|it| it.equals(item))),
        ("lastIndexOf", [Text(text), Text(part)]) if part.is_empty() => Int(text.chars().count() as i64),
        ("lastIndexOf", [Text(text), Text(_)]) if text.is_empty() => Int(-1),
        ("lastIndexOf", [Text(text), Text(part)]) => last_index_of(text, part, text.chars().count() as i64 - 1)?,
        ("lastIndexOf", [Text(text), Text(part), Int(from)]) => last_index_of(text, part, *from)?,
        ("lowerAscii", [Text(text)]) => Val::text(text.to_ascii_lowercase()),
        ("upperAscii", [Text(text)]) => Val::text(text.to_ascii_uppercase()),
        ("trim", [Text(text)]) => Val::text(text.trim()),
        ("strings.quote", [Text(text)]) => Val::text(quote(text)),
        ("jsonpatch.escapeKey", [Text(text)]) => Val::text(text.replace('~', "~0").replace('/', "~1")),
        ("replace", [Text(text), Text(old), Text(new)]) => Val::text(text.replace(old.as_ref(), new)),
        ("replace", [Text(text), Text(old), Text(new), Int(count)]) => Val::text(text.replacen(old.as_ref(), new, usize::try_from(*count).unwrap_or(usize::MAX))),
        ("split", [Text(text), Text(by)]) => split(text, by, -1),
        ("split", [Text(text), Text(by), Int(most)]) => split(text, by, *most),
        ("substring", [Text(text), Int(start)]) => substring(text, *start, None)?,
        ("substring", [Text(text), Int(start), Int(end)]) => substring(text, *start, Some(*end))?,
        ("join", [List(list)]) => join(list, "")?,
        ("join", [List(list), Text(by)]) => join(list, by)?,
        ("format", [Text(text), List(args)]) => Val::text(format::format(text, &args.to_vec()?)?),
        _ => return no_overload(),
    })
}

fn find_all<'a>(text: &str, pattern: &str, most: i64) -> Eval<Val<'a>> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(Val::list(regex(pattern)?.find_iter(text).take(most).map(|it| Val::text(it.as_str())).collect()))
}

fn join<'a>(list: &value::List<'a>, by: &str) -> Eval<Val<'a>> {
    let part = |item: Eval<Val<'a>>| match item? {
        Val::String(text) => Ok(text),
        other => fail(format!("join: invalid input: {}", other.shown())),
    };
    Ok(Val::text(list.iter().map(part).collect::<Eval<Vec<_>>>()?.join(by)))
}

fn out_of_range(at: i64) -> String {
    format!("index out of range: {at}")
}

fn position<'a>(at: Option<usize>) -> Val<'a> {
    Val::Int(at.map_or(-1, |it| it as i64))
}

fn index_of<'a>(text: &str, part: &str, from: i64) -> Eval<Val<'a>> {
    if part.is_empty() {
        return Ok(Val::Int(from));
    }
    let start = or_fail(usize::try_from(from).ok(), out_of_range(from))?;
    Ok(position(places(text, part).find(|at| *at >= start)))
}

fn last_index_of<'a>(text: &str, part: &str, from: i64) -> Eval<Val<'a>> {
    if part.is_empty() {
        return Ok(Val::Int(from));
    }
    let end = or_fail(usize::try_from(from).ok(), out_of_range(from))?;
    let is_within = end < text.chars().count();
    Ok(position(places(text, part).filter(|at| is_within && *at <= end).last()))
}

/// Where `part` stands in a text, in characters.
fn places(text: &str, part: &str) -> impl Iterator<Item = usize> {
    text.char_indices().enumerate().filter(move |(_, (at, _))| text[*at..].starts_with(part)).map(|it| it.0)
}

fn substring<'a>(text: &str, start: i64, end: Option<i64>) -> Eval<Val<'a>> {
    let letters: Vec<char> = text.chars().collect();
    if let Some(end) = end.filter(|it| start > *it) {
        return fail(format!("invalid substring range. start: {start}, end: {end}"));
    }
    let within = |at: i64| or_fail(usize::try_from(at).ok().filter(|it| *it <= letters.len()), out_of_range(at));
    let (first, last) = (within(start)?, within(end.unwrap_or(letters.len() as i64))?);
    Ok(Val::text(String::from_iter(&letters[first..last])))
}

/// `strings.SplitN`: no part when `most` is 0, all of them when it is negative.
fn split<'a>(text: &str, by: &str, most: i64) -> Val<'a> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let parts: Vec<String> = match (most, by) {
        (0, _) => Vec::new(),
        (most, "") => {
            let starts: Vec<usize> = text.char_indices().map(|it| it.0).take(most).chain([text.len()]).collect();
            starts.windows(2).map(|it| text[it[0]..it[1]].to_owned()).collect()
        }
        (most, by) => text.splitn(most, by).map(str::to_owned).collect(),
    };
    Val::list(parts.into_iter().map(Val::text).collect())
}

fn quote(text: &str) -> String {
    let escaped = |letter: char| match ESCAPES.iter().find(|it| it.1 == letter) {
        Some((name, _)) => format!("\\{name}"),
        None => letter.to_string(),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

/// A pattern in RE2's syntax.
pub fn regex(text: &str) -> Eval<Regex> {
    pattern::compiled(text).or_else(|problem| fail(format!("error parsing regexp: {problem}: `{text}`")))
}
