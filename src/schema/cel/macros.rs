//! Macros: what they become, written in the language itself.
//! Follows cel-go `parser/macro.go`, `ext/comprehensions.go`, `ext/lists.go` (sortBy) and `cel/library.go` (optMap).

use super::{
    ast::{ACCUMULATOR, Expr, Fold, Kind},
    lex::tokens,
    parse::Parser,
};

/// A macro over a list or map: its name, how many arguments it takes and how many of them are variables, and what it becomes: what is gathered at
/// first, the condition to go on, the step, the result. There `acc` is what was gathered, `x` the first variable, `p` the last argument, and `f` the
/// filter before it.
type Macro = (&'static str, usize, usize, [&'static str; 4]);

const ALL: [&str; 4] = ["true", "notFalse(acc)", "acc && p", "acc"];
const EXISTS: [&str; 4] = ["false", "notFalse(!acc)", "acc || p", "acc"];
const ONE: [&str; 4] = ["0", "true", "p ? acc + 1 : acc", "acc == 1"];
const LIST: [&str; 4] = ["[]", "true", "acc + [p]", "acc"];
const LIST_OF: [&str; 4] = ["[]", "true", "f ? acc + [p] : acc", "acc"];
#[rustfmt::skip]
const MACROS: [Macro; 16] = [
    ("all", 2, 1, ALL), ("all", 3, 2, ALL), ("exists", 2, 1, EXISTS), ("exists", 3, 2, EXISTS),
    ("exists_one", 2, 1, ONE), ("exists_one", 3, 2, ONE), ("existsOne", 3, 2, ONE),
    ("map", 2, 1, LIST), ("map", 3, 1, LIST_OF), ("filter", 2, 1, ["[]", "true", "p ? acc + [x] : acc", "acc"]),
    ("transformList", 3, 2, LIST), ("transformList", 4, 2, LIST_OF),
    ("transformMap", 3, 2, ["{}", "true", "insert(acc, x, p)", "acc"]), ("transformMap", 4, 2, ["{}", "true", "f ? insert(acc, x, p) : acc", "acc"]),
    ("transformMapEntry", 3, 2, ["{}", "true", "insert(acc, p)", "acc"]), ("transformMapEntry", 4, 2, ["{}", "true", "f ? insert(acc, p) : acc", "acc"]),
];
/// Functions that only macros call, by their names in the texts.
const FUNCTIONS: [(&str, &str); 3] = [("notFalse", "@not_strictly_false"), ("insert", "cel.@mapInsert"), ("sorted", "@sortByAssociatedKeys")];
/// The most nodes that `optMap` copies: it evaluates its target twice, and what is nested doubles each time.
const COPIED_MAX: usize = 2000;
/// What `sortBy` calls its list.
const INPUT: &str = "@__sortBy_input__";

pub enum Expansion {
    Made(Expr),
    /// It is no macro: target and arguments come back.
    None(Option<Expr>, Vec<Expr>),
}

/// Where and why a macro cannot be made.
type Refusal = (usize, String);

impl Parser<'_> {
    /// The call at `offset` as what it becomes, if it is a macro's.
    pub fn expand(&mut self, offset: usize, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Result<Expansion, Refusal> {
        let found = MACROS.iter().find(|(name, count, ..)| *name == function && *count == args.len());
        let made = match (function, target, args.len()) {
            ("has", None, 1) => self.has(offset, args)?,
            (_, None, _) => return Ok(Expansion::None(None, args)),
            ("optMap" | "optFlatMap", Some(target), 2) => self.optional(offset, function, target, args)?,
            ("sortBy", Some(target), 2) => self.sort_by(offset, target, args)?,
            (_, Some(target), _) => match found {
                Some(found) => self.loop_over(offset, found, target, args)?,
                None => return Ok(Expansion::None(Some(target), args)),
            },
        };
        Ok(Expansion::Made(made))
    }

    /// Reads a macro's text, in which some names stand for `parts`. All of it stands where the macro stands.
    fn written(&mut self, offset: usize, text: &'static str, parts: &[(&'static str, Expr)]) -> Expr {
        let mut tokens = tokens(text).0;
        tokens.iter_mut().for_each(|it| it.offset = offset);
        let before = (std::mem::replace(&mut self.tokens, tokens), self.at, self.depth);
        (self.at, self.depth, self.parts) = (0, 0, parts.to_vec());
        let expr = self.expr().unwrap_or_else(|_| self.node(offset, Kind::Broken));
        (self.tokens, self.at, self.depth) = before;
        self.parts.clear();
        expr
    }

    fn place(&self, expr: &Expr) -> usize {
        self.offsets[expr.id]
    }

    fn has(&mut self, offset: usize, mut args: Vec<Expr>) -> Result<Expr, Refusal> {
        match args.remove(0) {
            Expr { kind: Kind::Select { operand, field, is_test: false }, .. } => Ok(self.node(offset, Kind::Select { operand, field, is_test: true })),
            other => Err((self.place(&other), "invalid argument to has() macro".to_owned())),
        }
    }

    fn variable(&self, expr: &Expr, complaint: &str) -> Result<String, Refusal> {
        match &expr.kind {
            Kind::Ident(name) if name == "__result__" => Err((self.place(expr), "iteration variable overwrites accumulator variable".to_owned())),
            Kind::Ident(name) => Ok(name.clone()),
            _ => Err((self.place(expr), complaint.to_owned())),
        }
    }

    fn loop_over(&mut self, offset: usize, found: &Macro, range: Expr, mut args: Vec<Expr>) -> Result<Expr, Refusal> {
        let (name, _, count, [init, condition, step, result]) = *found;
        let rest = args.split_off(count);
        let complaint = if matches!(name, "map" | "filter") { "argument is not an identifier" } else { "argument must be a simple name" };
        let var = self.variable(&args[0], complaint)?;
        let var2 = args.get(1).map(|it| self.variable(it, complaint)).transpose()?;
        if var2.as_ref() == Some(&var) {
            return Err((self.place(&args[1]), format!("duplicate variable name: {var}")));
        }
        let mut parts = vec![("acc", self.node(offset, Kind::Ident(ACCUMULATOR.to_owned()))), ("x", self.node(offset, Kind::Ident(var.clone())))];
        parts.extend(["p", "f"].into_iter().zip(rest.into_iter().rev()));
        let [init, condition, step, result] = [init, condition, step, result].map(|it| self.written(offset, it, &parts));
        Ok(self.node(offset, Kind::Fold(Box::new(Fold { range, var, var2, accu: ACCUMULATOR.to_owned(), init, condition, step, result }))))
    }

    /// Gives `value` a name within `result`.
    fn bind(&mut self, offset: usize, name: &str, value: Expr, result: Expr) -> Expr {
        let step = self.node(offset, Kind::Ident(name.to_owned()));
        let [range, condition] = ["[]", "false"].map(|it| self.written(offset, it, &[]));
        let fold = Fold { range, var: "#unused".to_owned(), var2: None, accu: name.to_owned(), init: value, condition, step, result };
        self.node(offset, Kind::Fold(Box::new(fold)))
    }

    fn optional(&mut self, offset: usize, function: &str, target: Expr, mut args: Vec<Expr>) -> Result<Expr, Refusal> {
        let Kind::Ident(name) = &args[0].kind else {
            return Err((self.place(&args[0]), format!("{function}() variable name must be a simple identifier")));
        };
        let name = name.clone();
        if target.count() > COPIED_MAX {
            return Err((self.place(&target), "max recursion depth exceeded".to_owned()));
        }
        let value = self.written(offset, "t.value()", &[("t", target.clone())]);
        let bound = self.bind(offset, &name, value, args.remove(1));
        let text = if function == "optMap" { "t.hasValue() ? optional.of(b) : optional.none()" } else { "t.hasValue() ? b : optional.none()" };
        Ok(self.written(offset, text, &[("t", target), ("b", bound)]))
    }

    fn sort_by(&mut self, offset: usize, target: Expr, args: Vec<Expr>) -> Result<Expr, Refusal> {
        if matches!(target.kind, Kind::Literal(_) | Kind::Map(_) | Kind::Struct(..)) {
            return Err((self.place(&target), "sortBy can only be applied to a list, identifier, comprehension, call or select expression".to_owned()));
        }
        let range = self.node(offset, Kind::Ident(INPUT.to_owned()));
        let Expansion::Made(keys) = self.expand(offset, "map", Some(range.clone()), args)? else { return Ok(target) };
        let sorted = self.written(offset, "t.sorted(k)", &[("t", range), ("k", keys)]);
        Ok(self.bind(offset, INPUT, target, sorted))
    }
}

/// The function that a macro's text calls by that name.
pub fn spelled(name: &str) -> &str {
    FUNCTIONS.iter().find(|(it, _)| *it == name).map_or(name, |(_, function)| function)
}
