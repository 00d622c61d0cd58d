//! `x-kubernetes-validations`: rules in CEL that a CRD puts on its custom resources, compiled with their schema and run on every write.
//! Follows apiextensions-apiserver `pkg/apiserver/schema/cel/{compilation,validation}.go`; what a CRD itself must keep to stands in `check.rs`.

pub mod check;
pub mod path;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{
    cel::{BUDGET, Bindings, Budget, Decl, Environment, EvalError, Program, Type, Val},
    correlation::{Correlation, Keyed},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value};

/// The longest message that an expression may make (`MaxEvaluatedMessageExpressionSizeBytes`).
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// The rules of a schema node and of what is below; no node where there are none.
#[derive(Clone, Debug, Default)]
pub struct Node {
    rules: Vec<Rule>,
    items: Option<Box<Node>>,
    values: Option<Box<Node>>,
    properties: BTreeMap<String, Node>,
    all_of: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Rule {
    compiled: Compiled,
    /// The path of the field that the rule says it is about, relative to the node.
    field: Option<Path>,
    /// As the CRD wrote it.
    source: Value,
}

impl Rule {
    fn is_optional(&self) -> bool {
        self.source["optionalOldSelf"] == true
    }

    fn bindings<'a>(&self, place: Correlation<'a>, old: Option<&'a Value>) -> Result<Bindings<'a>, EvalError> {
        let bindings = Bindings::default().with("self", Val::typed(place.value, place.schema)?);
        let old = old.map(|it| Val::typed(it, place.schema)).transpose()?;
        Ok(match old {
            old if self.is_optional() => bindings.with("oldSelf", old.map_or_else(Val::none, Val::some)),
            Some(old) => bindings.with("oldSelf", old),
            None => bindings,
        })
    }
}

/// What became of a rule's two expressions.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// `None` for an empty rule.
    program: Option<Result<Program, String>>,
    message: Option<Result<Program, String>>,
    uses_old: bool,
}

impl Compiled {
    fn new(rule: &Value, decl: &Decl) -> Self {
        let text = rule.text("rule");
        let old = if rule["optionalOldSelf"] == true { Decl::scalar(Type::optional(decl.ty.clone())) } else { decl.clone() };
        let environment = Environment::default().with("self", decl.clone()).with("oldSelf", old);
        if text.trim().is_empty() {
            return Self { program: None, message: None, uses_old: false };
        }
        let compile = |text: &str, wanted: Type, prefix: &str, complaint: &str| match Program::compile(&environment, text) {
            Err(why) => Err(format!("{prefix}{why}")),
            Ok(program) if *program.output() != wanted => Err(complaint.to_owned()),
            Ok(program) => Ok(program),
        };
        let program = compile(text, Type::BOOL, "", "cel expression must evaluate to a bool");
        let message = rule.text("messageExpression");
        let wants_message = program.is_ok() && !message.is_empty();
        let message = wants_message.then(|| compile(message, Type::STRING, "messageExpression ", "messageExpression must evaluate to a string"));
        Self { uses_old: program.as_ref().is_ok_and(|it| it.mentions("oldSelf")), program: Some(program), message }
    }
}

impl Node {
    /// The rules of a structural schema, or `None` when it has none.
    pub fn of(schema: &Value) -> Option<Self> {
        if !has_rules(schema) {
            return None;
        }
        Self::build(schema, schema, &Decl::from_structural(schema, true, "selfType")?)
    }

    /// `rules` has the rules, `schema` the types: they differ within `allOf`.
    fn build(rules: &Value, schema: &Value, decl: &Decl) -> Option<Self> {
        let rule = |it: &Value| Rule { compiled: Compiled::new(it, decl), field: path::resolve(it.text("fieldPath"), schema).ok().map(|it| it.0), source: it.clone() };
        let below = |name: &str, step: &str| Self::build(rules.get(name).filter(|it| it.is_object())?, schema.get(name)?, &decl.step(step)?).map(Box::new);
        let property = |(name, rules): (&String, &Value)| {
            let schema = schema.at(&["properties", name])?;
            Some((name.clone(), Self::build(rules, schema, &decl.property(name, schema)?)?))
        };
        let node = Self {
            rules: rules.items_at(&["x-kubernetes-validations"]).iter().map(rule).collect(),
            items: below("items", "@items"),
            values: below("additionalProperties", "@values"),
            properties: rules.map_at(&["properties"]).into_iter().flatten().filter_map(property).collect(),
            all_of: rules.items_at(&["allOf"]).iter().filter_map(|it| Self::build(it, schema, decl)).collect(),
        };
        let is_empty = node.rules.is_empty() && node.items.is_none() && node.values.is_none() && node.properties.is_empty() && node.all_of.is_empty();
        (!is_empty).then_some(node)
    }

    /// Runs the rules; errors, and warnings for what is wrong but was so before.
    pub fn validate(&self, value: &Value, old: Option<&Value>, schema: &Value) -> (FieldErrors, Vec<String>) {
        let mut run = Run { budget: Budget::new(BUDGET), errors: FieldErrors::new(), warnings: Vec::new() };
        // The error that ends a run is among the errors already.
        _ = run.node(self, Correlation::new(value, old, schema), old, &Path::root());
        (run.errors, run.warnings)
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.get("x-kubernetes-validations").is_some_and(|it| it.as_array().is_some_and(|it| !it.is_empty())) || map.values().any(has_rules),
        Value::Array(list) => list.iter().any(has_rules),
        _ => false,
    }
}

/// No rule is run any more: the budget is spent.
struct Over;

struct Run {
    budget: Budget,
    errors: FieldErrors,
    warnings: Vec<String>,
}

impl Run {
    /// `old` is the old value that transition rules see, which is less than what ratcheting sees.
    fn node<'a>(&mut self, node: &'a Node, place: Correlation<'a>, old: Option<&'a Value>, path: &Path) -> Result<(), Over> {
        if place.value.is_null() {
            return Ok(());
        }
        self.rules(node, place, old, path)?;
        for below in &node.all_of {
            self.node(below, place.again(place.schema), old, path)?;
        }
        match place.value {
            Value::Array(_) => {
                let Some(below) = &node.items else { return Ok(()) };
                let old = old.and_then(|it| Keyed::of(it, place.schema));
                for (at, child) in place.items().enumerate() {
                    self.node(below, child, old.as_ref().and_then(|it| it.same(child.value)), &path.index(at))?;
                }
            }
            Value::Object(map) => {
                for name in map.keys() {
                    let (below, path) = match (&node.values, node.properties.get(name)) {
                        (Some(values), _) => (values.as_ref(), path.key(name)),
                        (None, Some(property)) => (property, path.child(name)),
                        (None, None) => continue,
                    };
                    let Some(child) = place.key(name) else { continue };
                    self.node(below, child, old.and_then(|it| it.get(name)), &path)?;
                }
            }
            _ => (),
        }
        Ok(())
    }

    fn rules<'a>(&mut self, node: &'a Node, place: Correlation<'a>, old: Option<&'a Value>, path: &Path) -> Result<(), Over> {
        for rule in &node.rules {
            let fail = |detail: String| FieldError::invalid(path, place.schema.text("type"), detail);
            let program = match &rule.compiled.program {
                None => continue,
                Some(Ok(_)) if rule.compiled.uses_old && old.is_none() && !rule.is_optional() => continue,
                Some(Ok(program)) => program,
                Some(Err(why)) => {
                    self.errors.push(fail(format!("rule compile error: {why}")));
                    continue;
                }
            };
            let outcome = rule.bindings(place, old).and_then(|it| Ok((program.evaluate(&it, &mut self.budget)?, it)));
            let (why, is_over) = match outcome {
                Ok((Val::Bool(true), _)) => continue,
                Ok((_, bindings)) => {
                    self.broken(rule, &bindings, place, path)?;
                    continue;
                }
                Err(EvalError::Failed(why)) if why.starts_with("no such overload") => {
                    (format!("'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}", shown(&rule.source)), false)
                }
                Err(EvalError::Failed(why)) => (format!("{why} evaluating rule: {}", shown(&rule.source)), false),
                Err(why @ EvalError::TooCostly) => {
                    (format!("'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {}", shown(&rule.source)), true)
                }
                Err(why @ EvalError::OutOfBudget) => (why.to_string(), true),
            };
            self.errors.push(fail(why));
            if is_over {
                return Err(Over);
            }
        }
        Ok(())
    }

    /// A rule that does not hold: an error, or a warning where it did not hold before either.
    fn broken<'a>(&mut self, rule: &Rule, bindings: &Bindings<'a>, place: Correlation<'a>, path: &Path) -> Result<(), Over> {
        let path = rule.field.as_ref().map_or_else(|| path.clone(), |it| path.with(it.as_str()));
        let kind = place.schema.text("type");
        let (detail, is_over) = match self.message(rule, bindings) {
            Ok(Some(message)) => (message, false),
            Ok(None) => (default_message(&rule.source), false),
            Err(why) => (why, true),
        };
        let error = match rule.source.text("reason") {
            _ if is_over => FieldError::invalid(&path, kind, detail),
            "FieldValueForbidden" => FieldError::forbidden(&path, detail),
            "FieldValueRequired" => FieldError::required(&path, detail),
            "FieldValueDuplicate" if matches!(kind, "object" | "array") => FieldError::duplicate(&path, Value::Null).untold(),
            "FieldValueDuplicate" => FieldError::duplicate(&path, place.value.clone()),
            _ if matches!(kind, "object" | "array") => FieldError::invalid(&path, Value::Null, detail).untold(),
            _ => FieldError::invalid(&path, place.value.clone(), detail),
        };
        if !rule.compiled.uses_old && place.is_unchanged() {
            self.warnings.push(error.to_string());
        } else {
            self.errors.push(error);
        }
        if is_over { Err(Over) } else { Ok(()) }
    }

    /// The text of `messageExpression`; `None` where there is none or it fails, an error where nothing more can be run.
    fn message(&mut self, rule: &Rule, bindings: &Bindings<'_>) -> Result<Option<String>, String> {
        let Some(Ok(program)) = &rule.compiled.message else { return Ok(None) };
        let text = match program.evaluate(bindings, &mut self.budget) {
            Ok(Val::String(text)) => text.trim().to_owned(),
            Ok(_) | Err(EvalError::Failed(_)) => return Ok(None),
            Err(EvalError::OutOfBudget) => return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned()),
            Err(EvalError::TooCostly) => {
                return Err(format!("no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}", rule.source.text("messageExpression")));
            }
        };
        let is_fit = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
        Ok(is_fit.then_some(text))
    }
}

/// How messages name a rule.
fn shown(rule: &Value) -> &str {
    let message = rule.text("message");
    if message.is_empty() { rule.text("rule").trim() } else { message.trim() }
}

fn default_message(rule: &Value) -> String {
    match rule.text("message") {
        "" => format!("failed rule: {}", shown(rule)),
        message => message.trim().to_owned(),
    }
}
