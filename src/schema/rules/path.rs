//! The `fieldPath` of a rule: `.spec.replicas`, `.labels['a/b']`. Follows `ValidFieldPath` of apiextensions-apiserver `pkg/apiserver/schema/cel/validation.go`.

use crate::{
    meta::{Meta, Path, Value},
    schema::cel::ESCAPES,
};

/// The path of fields that `text` spells, if the schema has them, and the schema there.
pub fn resolve<'a>(text: &str, schema: &'a Value) -> Result<(Path, &'a Value), String> {
    let (mut path, mut schema, mut rest) = (Path::root(), schema, text);
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if end == 0 {
                return Err("unexpected end of JSON path".to_owned());
            }
            name = after[..end].to_owned();
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("['") {
            let (quoted, after) = quoted(after)?;
            name = quoted;
            rest = after.strip_prefix(']').ok_or_else(|| format!("expected ] but got {after}"))?;
        } else {
            return Err(format!("expected [ or . but got: {rest}"));
        }
        let is_map = schema.get("properties").is_none() && schema.get("additionalProperties").is_some();
        (path, schema) = match schema.at(&["properties", &name]) {
            Some(below) => (path.child(&name), below),
            None if is_map => (path.key(&name), &schema["additionalProperties"]),
            None => return Err("does not refer to a valid field".to_owned()),
        };
    }
    Ok((path, schema))
}

/// A text in single quotes whose opening one was read, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\'' => return Ok((name, &text[at + 1..])),
            '\\' => {
                let escape = letters.next().map(|it| it.1);
                let meant = ESCAPES.iter().chain(&[('\'', '\'')]).find(|it| Some(it.0) == escape && it.0 != '"');
                name.push(meant.ok_or_else(|| format!("invalid string literal: invalid escape char \\{}", escape.unwrap_or_default()))?.1);
            }
            other => name.push(other),
        }
    }
    Err("unexpected end of JSON path".to_owned())
}
