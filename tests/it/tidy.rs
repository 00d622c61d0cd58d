//! The rules of the code base that the compiler does not check. Fast; run it first.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules of `src/`, lowest floor first. A module may use those of earlier lines and itself, never a sibling.
const FLOORS: &[&[&str]] = &[
    &["base"],
    &["meta"],
    &["schema"],
    &["kinds"],
    &["store"],
    &["api"],
    &["client"],
    &["controllers", "dns", "proxy", "scheduler"],
    &["node"],
    &["process"],
    &["cli", "main", "lib"],
];

/// Words that only files under the named paths may contain outside tests.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("axum::", &["src/node/server"]),
    ("sqlx::", &["src/store/sqlite", "src/store/postgres"]),
    ("tokio::spawn", &["src/base/tasks.rs"]),
    ("task::spawn", &["src/base/tasks.rs"]),
    ("thread::spawn", &["src/base/tasks.rs"]),
    ("unsafe ", &["src/node/", "src/base/netlink", "src/proxy/"]),
    (".unwrap()", &[]),
    ("todo!(", &[]),
    ("unimplemented!(", &[]),
    ("k8s_openapi::", &["src/client", "src/controllers", "src/scheduler", "src/proxy", "src/dns", "src/node", "src/process", "src/cli"]),
];

/// `meta`, `schema` and `kinds` do no IO and read no clock.
const PURE: &[&str] = &["src/meta", "src/schema", "src/kinds"];
const IMPURE_WORDS: &[&str] = &["std::fs", "std::net", "tokio::", "Timestamp::now", "SystemTime::now", "Instant::now", "clock::now"];

const FUNCTION_MAX: usize = 100;
const FILE_MAX: usize = 1000;
/// Files that are tables rather than prose.
const TABLES: &[&str] = &["src/kinds/table.rs"];

struct Source {
    path: PathBuf,
    /// The text before the file's tests.
    code: String,
}

impl Source {
    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn is_under(&self, paths: &[&str]) -> bool {
        paths.iter().any(|it| self.shown().starts_with(it))
    }

    /// `src/api/verbs.rs` and `src/api.rs` belong to `api`.
    fn module(&self) -> String {
        let part = self.path.components().nth(1).expect("a path under src");
        part.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    }
}

#[test]
fn a_module_uses_only_lower_floors() {
    check(|source, errors| {
        let own = source.module();
        let Some(floor) = floor_of(&own) else {
            return errors.push(format!("{}: `{own}` is on no floor", source.shown()));
        };
        for used in used_modules(&source.code).into_iter().filter(|it| *it != own) {
            if floor_of(&used).is_none_or(|it| it >= floor) {
                errors.push(format!("{}: `{own}` must not use `{used}`", source.shown()));
            }
        }
    });
}

#[test]
fn words_stay_where_they_belong() {
    check(|source, errors| {
        for (word, owners) in ONLY_IN {
            for line in lines_with(&source.code, word).filter(|_| !source.is_under(owners)) {
                errors.push(format!("{}:{line}: `{word}` is only for {owners:?}", source.shown()));
            }
        }
        for word in IMPURE_WORDS.iter().filter(|_| source.is_under(PURE)) {
            errors.extend(lines_with(&source.code, word).map(|line| format!("{}:{line}: `{word}` in a pure module", source.shown())));
        }
    });
}

#[test]
fn functions_and_files_stay_short() {
    check(|source, errors| {
        let lines: Vec<&str> = source.code.lines().collect();
        if lines.len() > FILE_MAX && !source.is_under(TABLES) {
            errors.push(format!("{}: {} lines, at most {FILE_MAX}", source.shown(), lines.len()));
        }
        for (first, length) in functions(&lines).into_iter().filter(|(_, length)| *length > FUNCTION_MAX) {
            errors.push(format!("{}:{}: a function of {length} lines, at most {FUNCTION_MAX}", source.shown(), first + 1));
        }
    });
}

#[test]
fn files_say_what_they_are() {
    check(|source, errors| {
        if !source.code.starts_with("//!") && source.module() != "main" {
            errors.push(format!("{}: no `//!` at its head", source.shown()));
        }
    });
}

fn check(rule: impl Fn(&Source, &mut Vec<String>)) {
    let mut errors = Vec::new();
    let sources = sources(Path::new("src"));
    assert!(sources.len() > 20, "the sources are not where this test looks for them");
    for source in &sources {
        rule(source, &mut errors);
    }
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}

/// All sources below `dir` that are not wholly tests.
fn sources(dir: &Path) -> Vec<Source> {
    let mut paths: Vec<_> = fs::read_dir(dir).expect("a folder").map(|it| it.expect("an entry").path()).collect();
    paths.sort();
    let mut res = Vec::new();
    for path in paths {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            res.extend(sources(&path));
        } else if name.ends_with(".rs") && name != "tests.rs" && name != "battery.rs" && !name.ends_with("_tests.rs") {
            let text = fs::read_to_string(&path).expect("readable");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            res.push(Source { path, code });
        }
    }
    res
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|it| it.contains(&module))
}

/// Numbers of the lines that contain `word` outside comments.
fn lines_with<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_code = |line: &str| !line.trim_start().starts_with("//");
    code.lines().enumerate().filter(move |(_, line)| is_code(line) && line.contains(word)).map(|(at, _)| at + 1)
}

/// First path segments after `crate::`, those of `use crate::{...}` too.
fn used_modules(text: &str) -> Vec<String> {
    let mut res = Vec::new();
    for (at, _) in text.match_indices("crate::").filter(|(at, _)| !text[..*at].ends_with('$')) {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => res.push(ident(rest)),
            Some(list) => res.extend(list_heads(list)),
        }
    }
    res
}

/// The first identifier of each element of a `{...}` list whose opening brace is already read.
fn list_heads(list: &str) -> Vec<String> {
    let (mut depth, mut is_start, mut res) = (0, true, Vec::new());
    for (at, char) in list.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_start = true,
            _ if is_start && depth == 0 && char.is_alphabetic() => {
                res.push(ident(&list[at..]));
                is_start = false;
            }
            _ => (),
        }
    }
    res
}

fn ident(text: &str) -> String {
    text.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect()
}

/// (first line, length) of each function that has a body of several lines.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let (mut start, mut res) = (None, Vec::new());
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if start.is_none() && is_function(code) && !line.ends_with(';') && !line.ends_with('}') {
            start = Some((at, indent));
        }
        if let Some((first, its_indent)) = start
            && code.starts_with('}')
            && indent == its_indent
        {
            res.push((first, at - first + 1));
            start = None;
        }
    }
    res
}

fn is_function(code: &str) -> bool {
    let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe ", "extern \"C\" "];
    let mut rest = code;
    while let Some(next) = words.iter().find_map(|it| rest.strip_prefix(it)) {
        rest = next;
    }
    rest.starts_with("fn ")
}
