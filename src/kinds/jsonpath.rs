//! The part of JSONPath that printer columns of custom resources use: `.spec.a`, `['a.b']`, `[0]`, `[*]`, `[?(@.type=="Ready")]`.
//! Source: client-go `util/jsonpath`, apiextensions-apiserver `pkg/registry/customresource/tableconvertor`.

use jiff::Timestamp;

use crate::meta::Value;

#[derive(Debug, PartialEq)]
enum Step<'a> {
    Field(&'a str),
    Index(i64),
    Every,
    /// `@.path == "text"`.
    Where(&'a str, &'a str),
}

/// The value of a column: numbers and booleans as they are, dates as ages, several values joined by commas.
pub fn cell(object: &Value, path: &str, data_type: &str, now: Timestamp) -> Value {
    let found = find(object, path);
    match (found.as_slice(), data_type) {
        ([], _) => Value::Null,
        ([Value::String(text)], "date") => super::columns::age(text, now).into(),
        ([Value::Number(number)], "integer" | "number") => number.clone().into(),
        ([Value::Bool(flag)], "boolean") => (*flag).into(),
        (_, "integer" | "number" | "boolean" | "date") => Value::Null,
        (values, _) => values.iter().map(|it| text(it)).collect::<Vec<_>>().join(",").into(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// All values at `path`; none where it leads nowhere or is no path.
pub fn find<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let Some(steps) = parse(path.trim_start_matches('{').trim_end_matches('}')) else { return Vec::new() };
    steps.iter().fold(vec![object], |values, step| values.into_iter().flat_map(|it| follow(it, step)).collect())
}

fn follow<'a>(value: &'a Value, step: &Step<'_>) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => map.get(*name).into_iter().collect(),
        (Step::Every, Value::Array(list)) => list.iter().collect(),
        (Step::Every, Value::Object(map)) => map.values().collect(),
        (Step::Index(at), Value::Array(list)) => {
            let at = if *at < 0 { list.len() as i64 + at } else { *at };
            usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect()
        }
        (Step::Where(path, wanted), Value::Array(list)) => list.iter().filter(|item| find(item, path).iter().any(|it| text(it) == *wanted)).collect(),
        _ => Vec::new(),
    }
}

fn parse(path: &str) -> Option<Vec<Step<'_>>> {
    let (mut steps, mut rest) = (Vec::new(), path.trim_start_matches('$'));
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = closing(inner)?;
            steps.push(bracket(&inner[..end])?);
            rest = &inner[end + 1..];
        } else {
            let field = rest.trim_start_matches('.');
            let end = field.find(['.', '[']).unwrap_or(field.len());
            if end > 0 {
                steps.push(if &field[..end] == "*" { Step::Every } else { Step::Field(&field[..end]) });
            } else if field.is_empty() {
                return Some(steps);
            }
            rest = &field[end..];
        }
    }
    Some(steps)
}

/// Where the bracket that is already open closes, quotes passed over.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, char) in text.char_indices() {
        match (char, quote) {
            (']', None) => return Some(at),
            ('\'' | '"', None) => quote = Some(char),
            (char, Some(open)) if char == open => quote = None,
            _ => (),
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step<'_>> {
    let unquoted = |text: &'_ str| text.trim().trim_matches(['\'', '"']).len();
    if inner == "*" {
        return Some(Step::Every);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|it| it.strip_suffix(')')) {
        let (path, wanted) = filter.split_once("==")?;
        return Some(Step::Where(path.trim().strip_prefix('@')?, wanted.trim().trim_matches(['\'', '"'])));
    }
    if inner.starts_with(['\'', '"']) && unquoted(inner) > 0 {
        return Some(Step::Field(inner.trim().trim_matches(['\'', '"'])));
    }
    inner.parse().ok().map(Step::Index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_their_values() {
        let object =
            json!({"spec": {"a": 1, "b.c": "x", "list": [{"n": "p"}, {"n": "q"}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let cases = [
            (".spec.a", "integer", json!(1)),
            (".spec['b.c']", "string", json!("x")),
            (".spec.list[*].n", "string", json!("p,q")),
            (".spec.list[-1].n", "string", json!("q")),
            (".status.conditions[?(@.type==\"Ready\")].status", "string", json!("True")),
            (".spec.none", "string", Value::Null),
            (".spec.a", "boolean", Value::Null),
            ("..[", "string", Value::Null),
        ];
        for (path, data_type, value) in cases {
            assert_eq!(cell(&object, path, data_type, Timestamp::UNIX_EPOCH), value, "{path}");
        }
    }
}
