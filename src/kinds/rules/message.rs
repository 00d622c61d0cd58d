//! Expressions of the table of rules. They see `self` (the value), `old`, `owner` (the object that the rule is of), `parent` (the one that its block is of), `root`, `oldRoot`,
//! within a list or map `list`, `at` and `key`, what a guard `found`, and `path`, where the owner is.

use std::borrow::Cow;

use super::Site;
use crate::{
    kinds::expr::Expr,
    meta::Value,
    schema::cel::Val,
};

pub fn expr(text: &'static str) -> Expr {
    Expr::new(text, &["self", "old", "owner", "oldOwner", "parent", "root", "oldRoot", "list", "at", "key", "path", "found"])
}

impl<'a> Site<'a> {
    /// What an expression makes of this place.
    pub fn ask(&self, expr: &Expr) -> Option<Val<'a>> {
        self.memory.spend(|budget| expr.evaluate(|name| self.named(name), budget))
    }

    fn named(&self, name: &str) -> Val<'a> {
        let json = |value: Option<&'a Value>| value.map_or(Val::Null, Val::json);
        match name {
            "self" => Val::json(self.value),
            "old" => json(self.old),
            "owner" => Val::json(self.object),
            "oldOwner" => json(self.old_object),
            "parent" => Val::json(self.owner.parent()),
            "root" => Val::json(self.root),
            "oldRoot" => json(self.old_root),
            "list" => Val::json(self.item.of),
            "found" => Val::json(self.found.get()),
            "path" => Val::String(self.base.as_str().into()),
            "at" => Val::Int(i64::try_from(self.item.at).unwrap_or(i64::MAX)),
            _ => Val::String(self.item.key.into()),
        }
    }
}

/// The words of an error; `${…}` in them are expressions.
pub struct Message(Vec<(&'static str, Option<Expr>)>);

impl Message {
    pub fn new(text: &'static str) -> Self {
        let mut parts = text.split("${");
        let first = (parts.next().unwrap_or_default(), None);
        let rest = parts.map(|it| it.split_once('}').unwrap_or((it, ""))).flat_map(|(expression, rest)| [("", Some(expr(expression))), (rest, None)]);
        Self([first].into_iter().chain(rest).collect())
    }

    #[cfg(test)]
    pub fn compile(&self) {
        self.0.iter().filter_map(|it| it.1.as_ref()).for_each(Expr::compile);
    }

    pub fn at(&self, site: &Site<'_>) -> Cow<'static, str> {
        let text = |(text, expression): &(&'static str, Option<Expr>)| match expression.as_ref().and_then(|it| site.ask(it)?.to_json().ok()) {
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
