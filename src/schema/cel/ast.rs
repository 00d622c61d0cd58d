//! The tree of a CEL expression, and where in the text each node stands.
//! Follows cel-go `common/ast` and `common/error.go`.

use std::fmt;

use super::{functions::Function, value::Val};

/// A node's number: its place in the tables of positions and types.
pub type Id = usize;

#[derive(Clone, Debug)]
pub struct Expr {
    pub id: Id,
    /// The longest way down; no tree is built that is too high to walk by recursion.
    pub height: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Val<'static>),
    Ident(String),
    Select { operand: Box<Expr>, field: String, is_test: bool },
    Call(Box<Call>),
    List(Vec<Item>),
    Map(Vec<Entry>),
    /// `Object.spec{replicas: 1}`
    Struct(String, Vec<Entry>),
    Fold(Box<Fold>),
    /// Stands where a part could not be read.
    Broken,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub function: String,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
    /// Filled in by the checker: what the function may be at run time, and the function.
    pub overloads: Vec<&'static str>,
    pub native: Option<&'static Function>,
}

impl Kind {
    pub fn call(function: &str, target: Option<Expr>, args: Vec<Expr>) -> Self {
        Self::Call(Box::new(Call { function: function.to_owned(), target, args, overloads: Vec::new(), native: None }))
    }
}

impl Call {
    /// The receiver, if there is one, and the arguments.
    pub fn all(&self) -> impl Iterator<Item = &Expr> {
        self.target.iter().chain(&self.args)
    }
}

#[derive(Clone, Debug)]
pub struct Item {
    pub value: Expr,
    pub is_optional: bool,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub id: Id,
    /// In a struct: a string literal with the field's name.
    pub key: Expr,
    pub value: Expr,
    pub is_optional: bool,
}

/// A comprehension: what every macro over lists and maps becomes.
#[derive(Clone, Debug)]
pub struct Fold {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub accu: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

impl Fold {
    /// `cel.bind` and what is made of it: no loop, one value with a name.
    pub fn is_bind(&self) -> bool {
        matches!(&self.range.kind, Kind::List(items) if items.is_empty())
            && matches!(self.condition.kind, Kind::Literal(Val::Bool(false)))
            && self.accu != ACCUMULATOR
    }
}

/// The name of the value that a macro gathers; no expression can spell it.
pub const ACCUMULATOR: &str = "@result";

impl Expr {
    pub fn new(id: Id, kind: Kind) -> Self {
        let mut expr = Self { id, height: 0, kind };
        expr.height = 1 + expr.children().into_iter().map(|it| it.height).max().unwrap_or(0);
        expr
    }

    pub fn literal(&self) -> Option<&Val<'static>> {
        if let Kind::Literal(literal) = &self.kind { Some(literal) } else { None }
    }

    /// How many nodes the tree has.
    pub fn count(&self) -> usize {
        1 + self.children().into_iter().map(Self::count).sum::<usize>()
    }

    /// `a.b.c` as one name.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select { operand, field, is_test: false } => Some(format!("{}.{field}", operand.qualified_name()?)),
            _ => None,
        }
    }

    /// Whether an identifier is used anywhere below.
    pub fn mentions(&self, name: &str) -> bool {
        let is_name = matches!(&self.kind, Kind::Ident(it) if it == name);
        is_name || self.children().into_iter().any(|it| it.mentions(name))
    }

    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::Broken => Vec::new(),
            Kind::Select { operand, .. } => vec![operand],
            Kind::Call(call) => call.all().collect(),
            Kind::List(items) => items.iter().map(|it| &it.value).collect(),
            Kind::Map(entries) | Kind::Struct(_, entries) => entries.iter().flat_map(|it| [&it.key, &it.value]).collect(),
            Kind::Fold(fold) => vec![&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result],
        }
    }
}

/// What is wrong with an expression, at a character of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub offset: usize,
    pub message: String,
}

/// All that is wrong with an expression; printed as cel-go prints its issues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issues {
    pub text: String,
    pub list: Vec<Issue>,
}

/// The most issues that are told (`maxErrorsToReport`).
const ISSUES_MAX: usize = 100;

impl Issues {
    pub fn new(text: &str, mut list: Vec<Issue>) -> Self {
        list.truncate(ISSUES_MAX);
        list.sort_by_key(|it| it.offset);
        Self { text: text.to_owned(), list }
    }

    /// Line and column, from one, of a character.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before: Vec<char> = self.text.chars().take(offset).collect();
        let line = before.iter().filter(|it| **it == '\n').count();
        let column = before.iter().rev().take_while(|it| **it != '\n').count();
        (line + 1, column + 1)
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, issue) in self.list.iter().enumerate() {
            let (line, column) = self.position(issue.offset);
            let lead = if at == 0 { "" } else { "\n" };
            write!(f, "{lead}ERROR: <input>:{line}:{column}: {}", issue.message)?;
            let Some(shown) = self.text.split('\n').nth(line - 1) else { continue };
            let shown = shown.replace('\t', " ");
            // Wide characters get wide dots, so that the mark stands below them.
            let is_wide = |at: usize| shown.chars().nth(at).is_some_and(|it| it.len_utf8() > 1);
            let dots: String = (0..column - 1).take(shown.chars().count()).map(|at| if is_wide(at) { '\u{ff0e}' } else { '.' }).collect();
            write!(f, "\n | {shown}\n | {dots}{}", if is_wide(column - 1) { '\u{ff3e}' } else { '^' })?;
        }
        Ok(())
    }
}
