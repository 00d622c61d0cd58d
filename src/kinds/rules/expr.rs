//! Expressions of the table of rules: CEL, as custom resources have it in `x-kubernetes-validations`. They see `self` (the value), `old`, `owner` (the object that
//! the rule is of), `parent` (the one that its block is of), `root`, within a list or map `list`, `at` and `key`, and `path`, where the owner is. An expression that fails has no value and does not hold.

use std::{borrow::Cow, sync::OnceLock};

use super::Site;
use crate::{
    meta::Value,
    schema::cel::{BUDGET, Bindings, Budget, Environment, Program, Val},
};

const NAMES: [&str; 10] = ["self", "old", "owner", "oldOwner", "parent", "root", "list", "at", "key", "path"];

/// An expression, compiled when it is first asked.
pub struct Expr {
    text: &'static str,
    compiled: OnceLock<(Program, Vec<&'static str>)>,
}

impl Expr {
    pub fn new(text: &'static str) -> Self {
        Self { text, compiled: OnceLock::new() }
    }

    /// The program and the names that it uses.
    fn compiled(&self) -> &(Program, Vec<&'static str>) {
        self.compiled.get_or_init(|| {
            let environment = NAMES.iter().fold(Environment::default(), |environment, name| environment.with_dyn(name));
            let program = Program::compile(&environment, self.text).unwrap_or_else(|why| panic!("rules.txt: {}: {why}", self.text));
            let names = NAMES.into_iter().filter(|it| program.mentions(it)).collect();
            (program, names)
        })
    }

    #[cfg(test)]
    pub fn compile(&self) {
        self.compiled();
    }

    fn evaluate<'a>(&self, site: &Site<'a>) -> Option<Val<'a>> {
        let (program, names) = self.compiled();
        let bindings = names.iter().fold(Bindings::default(), |bindings, name| bindings.with(name, named(site, name)));
        program.evaluate(&bindings, &mut Budget::new(BUDGET)).ok()
    }

    pub fn holds(&self, site: &Site<'_>) -> bool {
        matches!(self.evaluate(site), Some(Val::Bool(true)))
    }

    pub fn value(&self, site: &Site<'_>) -> Option<Value> {
        self.evaluate(site)?.to_json().ok()
    }
}

fn named<'a>(site: &Site<'a>, name: &str) -> Val<'a> {
    let json = |value: Option<&'a Value>| value.map_or(Val::Null, Val::json);
    match name {
        "self" => Val::json(site.value),
        "old" => json(site.old),
        "owner" => Val::json(site.object),
        "oldOwner" => json(site.old_object),
        "parent" => Val::json(site.owner.parent),
        "root" => Val::json(site.root),
        "list" => Val::json(site.item.of),
        "path" => Val::String(site.base.as_str().into()),
        "at" => Val::Int(i64::try_from(site.item.at).unwrap_or(i64::MAX)),
        _ => Val::String(site.item.key.into()),
    }
}

/// The words of an error; `${…}` in them are expressions.
pub struct Message(Vec<(&'static str, Option<Expr>)>);

impl Message {
    pub fn new(text: &'static str) -> Self {
        let mut parts = text.split("${");
        let first = (parts.next().unwrap_or_default(), None);
        let rest = parts.map(|it| it.split_once('}').unwrap_or((it, ""))).flat_map(|(expression, rest)| [("", Some(Expr::new(expression))), (rest, None)]);
        Self([first].into_iter().chain(rest).collect())
    }

    #[cfg(test)]
    pub fn compile(&self) {
        self.0.iter().filter_map(|it| it.1.as_ref()).for_each(Expr::compile);
    }

    pub fn at(&self, site: &Site<'_>) -> Cow<'static, str> {
        let text = |(text, expression): &(&'static str, Option<Expr>)| match expression.as_ref().and_then(|it| it.value(site)) {
            Some(Value::String(made)) => made,
            Some(made) => made.to_string(),
            None => (*text).to_owned(),
        };
        match self.0.as_slice() {
            [(text, None)] => Cow::Borrowed(text),
            parts => parts.iter().map(text).collect::<String>().into(),
        }
    }
}
