//! Patterns in the syntax of Go's `regexp` (RE2), compiled once.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

use regex::{Captures, Regex, RegexBuilder};

/// Compiled patterns that are kept; when there are more, all are dropped.
const PATTERNS_MAX: usize = 512;
/// The memory that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The pattern, or Go's words for what is wrong with it.
pub fn compiled(pattern: &str) -> Result<Regex, &'static str> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = compiled.get(pattern) {
        return Ok(known.clone());
    }
    let built = RegexBuilder::new(&ascii_classes(pattern)).size_limit(PATTERN_BYTES_MAX).build();
    let regex = built.map_err(|why| if why.to_string().contains("unclosed group") { "missing closing )" } else { "invalid pattern" })?;
    if compiled.len() >= PATTERNS_MAX {
        compiled.clear();
    }
    compiled.insert(pattern.to_owned(), regex.clone());
    Ok(regex)
}

/// RE2's classes know only ASCII, those of this library all of Unicode.
fn ascii_classes(pattern: &str) -> Cow<'_, str> {
    static ESCAPE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?s)\\.").expect("a constant pattern"));
    let ascii = |found: &Captures<'_>| match &found[0] {
        r"\d" => "[0-9]".to_owned(),
        r"\D" => "[^0-9]".to_owned(),
        r"\w" => "[0-9A-Za-z_]".to_owned(),
        r"\W" => "[^0-9A-Za-z_]".to_owned(),
        r"\s" => r"[\t\n\f\r ]".to_owned(),
        r"\S" => r"[^\t\n\f\r ]".to_owned(),
        r"\b" => r"(?-u:\b)".to_owned(),
        other => other.to_owned(),
    };
    ESCAPE.replace_all(pattern, ascii)
}
