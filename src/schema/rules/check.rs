//! What a CRD's rules must keep to: they compile, their types are right, and what they could cost at most is bounded.
//! Follows apiextensions-apiserver `pkg/apis/apiextensions/validation/{validation,cel_validation}.go`.

use super::{Compiled, path};
use crate::{
    meta::{FieldError, FieldErrors, Meta, Path, Value},
    schema::cel::Decl,
};

/// The most that one rule may be estimated to cost, over all places where it can apply (`StaticEstimatedCostLimit`).
const RULE_COST_MAX: u64 = 10_000_000;
/// The most that all rules of a version may be estimated to cost (`StaticEstimatedCRDCostLimit`).
const TOTAL_COST_MAX: u64 = 100_000_000;
/// How many of the most expensive rules are named when the total is too high.
const NAMED_MAX: usize = 4;
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Checks the rules of a version's schema, whose form is right. Where the schema did not change the limit for each rule does not count.
pub fn check(schema: &Value, path: &Path, is_unchanged: bool) -> FieldErrors {
    let mut checker = Checker { is_unchanged, total: 0, expensive: Vec::new(), errors: FieldErrors::new() };
    let decl = Decl::from_structural(schema, true, "selfType");
    checker.node(&Place { schema, decl: decl.as_ref(), cardinality: Some(1), path, uncorrelated: None });
    let Checker { total, mut expensive, mut errors, .. } = checker;
    if total > TOTAL_COST_MAX {
        expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        let told = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        errors.extend(expensive.into_iter().take(NAMED_MAX).map(|(path, _)| FieldError::forbidden(&path, told)));
        errors.push(FieldError::forbidden(path, too_costly("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", total, TOTAL_COST_MAX)));
    }
    errors
}

/// A node of the schema and what is known of the places it applies to.
struct Place<'a> {
    schema: &'a Value,
    /// `None` where expressions see nothing.
    decl: Option<&'a Decl>,
    /// The most places there can be in an object; `None` when lists or maps around it have no bound.
    cardinality: Option<u64>,
    path: &'a Path,
    /// Where around it old and new cannot be matched.
    uncorrelated: Option<&'a Path>,
}

impl Place<'_> {
    /// How often what is below a list or map can stand in an object.
    fn below(&self, bound: &str) -> Option<u64> {
        let most = self.schema.int_at(&[bound]).map(|it| u64::try_from(it).unwrap_or(0))?;
        self.cardinality.map(|it| it.saturating_mul(most))
    }
}

struct Checker {
    is_unchanged: bool,
    total: u64,
    expensive: Vec<(Path, u64)>,
    errors: FieldErrors,
}

impl Checker {
    fn node(&mut self, place: &Place<'_>) {
        let (schema, path) = (place.schema, place.path);
        if let Some(values) = schema.get("additionalProperties").filter(|it| it.is_object()) {
            let decl = place.decl.and_then(|it| it.step("@values"));
            self.node(&Place { schema: values, decl: decl.as_ref(), cardinality: place.below("maxProperties"), path: &path.child("additionalProperties"), ..*place });
        }
        for (name, property) in schema.map_at(&["properties"]).into_iter().flatten() {
            let decl = place.decl.and_then(|it| it.property(name, property));
            self.node(&Place { schema: property, decl: decl.as_ref(), path: &path.child("properties").key(name), ..*place });
        }
        for list in ["allOf", "oneOf", "anyOf"] {
            for (at, item) in schema.items_at(&[list]).iter().enumerate() {
                self.node(&Place { schema: item, decl: None, path: &path.child(list).index(at), ..*place });
            }
        }
        if let Some(items) = schema.get("items").filter(|it| it.is_object()) {
            let decl = place.decl.and_then(|it| it.step("@items"));
            let uncorrelated = place.uncorrelated.or((schema.text("x-kubernetes-list-type") != "map").then_some(path));
            self.node(&Place { schema: items, decl: decl.as_ref(), cardinality: place.below("maxItems"), path: &path.child("items"), uncorrelated });
        }
        let list = path.child("x-kubernetes-validations");
        let rules: Vec<(Path, &Value)> = (0..).map(|at| list.index(at)).zip(schema.items_at(&["x-kubernetes-validations"])).collect();
        let before = self.errors.len();
        rules.iter().for_each(|(path, rule)| self.form(rule, schema, path));
        if let (Some(decl), true) = (place.decl, self.errors.len() == before) {
            rules.iter().for_each(|(path, rule)| self.rule(rule, decl, place, path));
        }
    }

    /// What can be told without the expressions' meaning.
    fn form(&mut self, rule: &Value, schema: &Value, path: &Path) {
        let has_break = |text: &str| text.contains(['\n', '\r']);
        let (text, message) = (rule.text("rule").trim(), rule.text("message"));
        let errors = &mut self.errors;
        if text.is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(&path.child("message"), message, "must be non-empty if specified"));
        } else if has_break(message.trim()) {
            errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
        } else if has_break(text) && message.trim().is_empty() {
            errors.push(FieldError::required(&path.child("message"), "message must be specified if rule contains line breaks"));
        }
        let expression = rule.text("messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            errors.push(FieldError::required(&path.child("messageExpression"), "messageExpression must be non-empty if specified"));
        }
        if let Some(reason) = rule.get("reason").and_then(Value::as_str).filter(|it| !REASONS.contains(it)) {
            errors.push(FieldError::not_supported(&path.child("reason"), reason, &REASONS));
        }
        let field = rule.text("fieldPath");
        if field.is_empty() {
            return;
        }
        if field.trim().is_empty() {
            errors.push(FieldError::invalid(&path.child("fieldPath"), field, "must be non-empty if specified"));
        }
        if has_break(field) {
            errors.push(FieldError::invalid(&path.child("fieldPath"), field, "must not contain line breaks"));
        }
        if path::resolve(field, schema).is_err() {
            errors.push(FieldError::invalid(&path.child("fieldPath"), field, "must be a valid path"));
        }
    }

    fn rule(&mut self, rule: &Value, decl: &Decl, place: &Place<'_>, path: &Path) {
        let compiled = Compiled::new(rule, decl);
        let (rule_path, message_path) = (path.child("rule"), path.child("messageExpression"));
        let max_cost = compiled.program.as_ref().and_then(|it| it.as_ref().ok()).map_or(0, |it| it.max_cost());
        let cost = max_cost.saturating_mul(place.cardinality.unwrap_or_else(|| decl.max_cardinality()));
        self.observe("estimated rule cost", cost, &rule_path);
        if let Some(Err(why)) = &compiled.program {
            self.errors.push(FieldError::invalid(&rule_path, as_upstream(rule), why.clone()));
        }
        match &compiled.message {
            Some(Err(why)) => self.errors.push(FieldError::invalid(&message_path, as_upstream(rule), why.clone())),
            Some(Ok(message)) => self.observe("estimated messageExpression cost", message.max_cost(), &message_path),
            None => (),
        }
        if compiled.uses_old {
            if let Some(around) = place.uncorrelated {
                let detail = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {around}");
                self.errors.push(FieldError::invalid(&rule_path, rule.text("rule"), detail));
            }
        } else if let Some(optional) = rule.get("optionalOldSelf") {
            self.errors.push(FieldError::invalid(&path.child("optionalOldSelf"), optional.clone(), "may not be set if oldSelf is not used in rule"));
        }
    }

    fn observe(&mut self, what: &str, cost: u64, path: &Path) {
        if cost > RULE_COST_MAX && !self.is_unchanged {
            self.errors.push(FieldError::forbidden(path, too_costly(what, cost, RULE_COST_MAX)));
        }
        self.total = self.total.saturating_add(cost);
        // What contributes less than a hundredth is not named.
        if cost >= TOTAL_COST_MAX / 100 {
            self.expensive.push((path.clone(), cost));
        }
    }
}

fn too_costly(what: &str, cost: u64, most: u64) -> String {
    let factor = cost as f64 / most as f64;
    let shown = match factor {
        _ if factor > 100.0 => "more than 100x".to_owned(),
        _ if factor < 1.5 => format!("{factor:.6}x"),
        _ => format!("{factor:.1}x"),
    };
    format!("{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)")
}

/// A rule as upstream's message shows its Go struct in JSON.
fn as_upstream(rule: &Value) -> Value {
    let text = |name: &str| rule.text(name).to_owned();
    let or_null = |name: &str| rule.get(name).cloned().unwrap_or_default();
    serde_json::json!({
        "Rule": text("rule"), "Message": text("message"), "MessageExpression": text("messageExpression"),
        "Reason": or_null("reason"), "FieldPath": text("fieldPath"), "OptionalOldSelf": or_null("optionalOldSelf"),
    })
}
