//! CEL, the language of validation rules and policies: parsed, checked against types, estimated, run within a budget.
//!
//! A [`Program`] is made once from an expression and an [`Environment`] (which variables there are, of which types) and run with [`Bindings`].
//! Same expressions, same messages, same costs as cel-go has with the libraries of Kubernetes v1.36 (apiserver `pkg/cel/environment/base.go`);
//! `cases.txt` compares them.

mod ast;
pub mod authorizer;
mod check;
mod cost;
pub mod decl;
mod eval;
mod format;
mod functions;
mod kube;
mod lex;
mod lists;
mod macros;
mod parse;
mod strings;
mod time;
mod types;
mod value;

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
};

pub use ast::Issues;
pub use decl::{Decl, Object};
pub use lex::ESCAPES;
pub use types::Type;
pub use value::{EvalError, List, Map, Val};

/// The most that one evaluation may cost (`PerCallLimit`).
pub const CALL_LIMIT: u64 = 1_000_000;
/// The most that all rules of an object, or all expressions of a policy's binding, may cost (`RuntimeCELCostBudget`).
pub const BUDGET: u64 = 10_000_000;
/// The most that the match conditions of one webhook or policy may cost (`RuntimeCELCostBudgetMatchConditions`).
pub const MATCH_BUDGET: u64 = 2_500_000;

/// The variables that an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, Decl)>,
    /// The expression may make objects: `Object{…}`, `JSONPatch{…}`.
    makes_objects: bool,
}

impl Environment {
    pub fn with(mut self, name: &str, decl: Decl) -> Self {
        self.variables.push((name.to_owned(), decl));
        self
    }

    pub fn with_dyn(self, name: &str) -> Self {
        self.with(name, Decl::scalar(Type::DYN))
    }

    pub fn with_authorizer(self) -> Self {
        self.with("authorizer", Decl::scalar(Type::simple("kubernetes.authorization.Authorizer")))
    }

    /// What mutations are made of (`Object`, `JSONPatch`, `jsonpatch.escapeKey`).
    pub fn with_objects(self) -> Self {
        Self { makes_objects: true, ..self }
    }

    /// What stands under a name: a variable, or a type that expressions make objects of.
    fn lookup(&self, name: &str) -> Option<Type> {
        if let Some((_, decl)) = self.variables.iter().rev().find(|(it, _)| it == name) {
            return Some(decl.ty.clone());
        }
        let is_object = self.makes_objects && (name == "Object" || name.starts_with("Object."));
        let object = match name {
            "JSONPatch" if self.makes_objects => {
                let fields = [("op", Decl::string()), ("path", Decl::string()), ("from", Decl::string()), ("value", Decl::scalar(Type::DYN))];
                Decl::object(name, fields).ty
            }
            _ if is_object => Type::Object(Object { name: name.to_owned(), is_open: true, ..Object::default() }.into()),
            _ => return None,
        };
        Some(Type::of_type(object))
    }

    /// Where a path begins: at a variable, or at `self`; nothing is known of what has no type.
    fn place(&self, name: &str) -> Option<Decl> {
        let variable = |name: &str| self.variables.iter().find(|(it, _)| it == name).map(|(_, decl)| decl.clone());
        let is_vague = |it: &Decl| it.max_elements == 0 && (it.ty.is_dyn() || it.ty.is_opaque());
        variable(name).or_else(|| variable("self")).filter(|it| !is_vague(it))
    }
}

/// Why an expression is no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("compilation failed: {0}")]
    Issues(Issues),
    /// A constant within it cannot be computed.
    #[error("program instantiation failed: {0}")]
    Instantiation(String),
}

/// A checked expression.
#[derive(Clone, Debug)]
pub struct Program {
    expr: Arc<ast::Expr>,
    output: Type,
    max_cost: u64,
}

impl Program {
    pub fn compile(environment: &Environment, text: &str) -> Result<Self, CompileError> {
        let refuse = |issues| CompileError::Issues(Issues::new(text, issues));
        let (mut expr, offsets) = parse::parse(text).map_err(refuse)?;
        let types = check::check(&mut expr, environment, &offsets).map_err(refuse)?;
        eval::try_constants(&expr).map_err(CompileError::Instantiation)?;
        let max_cost = cost::estimate(&expr, &types, environment).max;
        Ok(Self { output: types[expr.id].clone(), expr: Arc::new(expr), max_cost })
    }

    /// The type of the result.
    pub fn output(&self) -> &Type {
        &self.output
    }

    /// The most that a run can cost.
    pub fn max_cost(&self) -> u64 {
        self.max_cost
    }

    /// Whether the expression uses that variable.
    pub fn mentions(&self, variable: &str) -> bool {
        self.expr.mentions(variable)
    }

    /// Runs within the limit of one call; what it cost is taken from the budget.
    pub fn evaluate<'a>(&self, bindings: &Bindings<'a>, budget: &mut Budget) -> Result<Val<'a>, EvalError> {
        let (result, cost) = self.run(bindings);
        budget.spend(cost.saturating_add(bindings.spent.take()))?;
        result
    }

    fn run<'a>(&self, bindings: &Bindings<'a>) -> (Result<Val<'a>, EvalError>, u64) {
        let mut evaluator = eval::Evaluator::new(bindings);
        let result = evaluator.eval(&self.expr);
        (result, evaluator.cost)
    }
}

/// What is left to be spent on evaluations.
#[derive(Clone, Copy, Debug)]
pub struct Budget(u64);

impl Budget {
    pub fn new(units: u64) -> Self {
        Self(units)
    }

    #[cfg(test)]
    pub fn left(self) -> u64 {
        self.0
    }

    fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        self.0 = self.0.checked_sub(cost).ok_or(EvalError::OutOfBudget)?;
        Ok(())
    }
}

/// The values of variables for one evaluation, or for several that share them.
#[derive(Default)]
pub struct Bindings<'a> {
    values: Vec<(&'static str, Val<'a>)>,
    /// `variables.x`: programs that are run when they are asked for, once.
    variables: Vec<(&'a str, &'a Program)>,
    computed: RefCell<BTreeMap<String, Result<Val<'a>, EvalError>>>,
    /// What the variables cost that were computed in this evaluation.
    spent: Cell<u64>,
}

impl<'a> Bindings<'a> {
    pub fn with(mut self, name: &'static str, value: Val<'a>) -> Self {
        self.values.push((name, value));
        self
    }

    /// A variable of the policy: its program sees these same bindings.
    pub fn with_variables(mut self, variables: impl IntoIterator<Item = (&'a str, &'a Program)>) -> Self {
        self.variables.extend(variables);
        self.values.push(("variables", Val::Variables));
        self
    }

    fn get(&self, name: &str) -> Option<Val<'a>> {
        self.values.iter().find(|(it, _)| *it == name).map(|(_, value)| value.clone())
    }

    fn variable(&self, name: &str) -> Result<Val<'a>, EvalError> {
        if let Some(known) = self.computed.borrow().get(name) {
            return known.clone();
        }
        let Some((_, program)) = self.variables.iter().find(|(it, _)| *it == name) else { return value::fail(format!("no such key: {name}")) };
        let (result, cost) = program.run(self);
        let result = result.map_err(|it| match it {
            EvalError::Failed(why) => EvalError::Failed(format!("composited variable {name:?} fails to evaluate: {why}")),
            other => other,
        });
        self.spent.set(self.spent.get().saturating_add(cost));
        self.computed.borrow_mut().insert(name.to_owned(), result.clone());
        result
    }
}
