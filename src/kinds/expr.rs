//! What the tables in text have in common: expressions in CEL, the language of rules of custom resources, and shorthands for what many lines say.

use std::{borrow::Cow, sync::OnceLock};

use crate::{
    meta::Value,
    schema::cel::{BUDGET, Bindings, Budget, Environment, EvalError, Program, Val},
};

/// An expression over named values, compiled when it is first asked.
#[derive(Debug)]
pub struct Expr {
    text: &'static str,
    names: &'static [&'static str],
    compiled: OnceLock<(Program, Vec<&'static str>)>,
}

impl Expr {
    pub fn new(text: &'static str, names: &'static [&'static str]) -> Self {
        Self { text, names, compiled: OnceLock::new() }
    }

    /// The program and the names that it uses.
    fn compiled(&self) -> &(Program, Vec<&'static str>) {
        self.compiled.get_or_init(|| {
            let environment = self.names.iter().fold(Environment::default(), |environment, name| environment.with_dyn(name));
            let program = Program::compile(&environment, self.text).unwrap_or_else(|why| panic!("{}: {why}", self.text));
            let names = self.names.iter().copied().filter(|it| program.mentions(it)).collect();
            (program, names)
        })
    }

    /// The names that it uses.
    pub fn names(&self) -> &[&'static str] {
        &self.compiled().1
    }

    #[cfg(test)]
    pub fn compile(&self) {
        self.compiled();
    }

    /// What it makes of an object.
    pub fn of(&self, object: &Value) -> Option<Value> {
        self.evaluate(|_| Val::json(object), &mut Budget::new(BUDGET)).ok()?.to_json().ok()
    }

    pub fn evaluate<'a>(&self, named: impl Fn(&str) -> Val<'a>, budget: &mut Budget) -> Result<Val<'a>, EvalError> {
        let (program, names) = self.compiled();
        let bindings = names.iter().fold(Bindings::default(), |bindings, name| bindings.with(name, named(name)));
        program.evaluate(&bindings, budget)
    }
}

/// The lines of a table but for empty ones. `$name = text` is a shorthand: each `$name(argument)` after it stands for the text, with the argument where that has a `%`.
pub fn lines(source: &'static str) -> Vec<&'static str> {
    let (mut shorthands, mut lines) = (Vec::new(), Vec::new());
    for line in source.lines().filter(|it| !it.trim().is_empty()) {
        let line = expand(line, &shorthands);
        match line.strip_prefix('$').and_then(|it| it.split_once(" = ")) {
            Some(shorthand) => shorthands.push(shorthand),
            None => lines.push(line),
        }
    }
    lines
}

fn expand(line: &'static str, shorthands: &[(&str, &str)]) -> &'static str {
    let mut line = Cow::Borrowed(line);
    for (name, text) in shorthands.iter().rev() {
        while let Some((before, rest)) = line.split_once(&format!("${name}(")) {
            let (argument, after) = rest.split_once(')').unwrap_or((rest, ""));
            line = format!("{before}{}{after}", text.replace('%', argument)).into();
        }
    }
    match line {
        Cow::Borrowed(line) => line,
        Cow::Owned(line) => line.leak(),
    }
}

/// The text between the braces of a word.
pub fn braced(word: &'static str) -> Option<&'static str> {
    word.strip_prefix('{')?.strip_suffix('}')
}
