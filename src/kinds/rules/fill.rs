//! What rules write: defaults (`SetDefaults_*`), and what goes with features that are switched off (`drop…DisabledFields`).

use super::{Rule, Rules, Step, TABLE, When, is_walked};
use crate::{
    meta::{Meta, Value},
    schema::{Schema, Shape},
};

/// Fills in what depends on more than the field itself, wherever an object of the type stands.
pub fn fill(object: &mut Value, schema: &Schema) {
    each_object(object, schema, &mut |it, rules| rules.fills.iter().for_each(|(is_forced, rule)| rule.fill(it, *is_forced)));
}

/// Drops fields of features that are switched off, unless the object had them before.
pub fn drop_gated(object: &mut Value, old: Option<&Value>, schema: &Schema) {
    let collect = |object: &mut Value| {
        let mut found = Vec::new();
        each_object(object, schema, &mut |it, rules| found.extend(rules.gated.iter().filter(|name| it.get(**name).is_some())));
        found
    };
    if collect(object).is_empty() {
        return;
    }
    let kept = old.map(|it| collect(&mut it.clone())).unwrap_or_default();
    each_object(object, schema, &mut |it, rules| rules.gated.iter().filter(|name| !kept.contains(name)).for_each(|name| _ = it.remove_at(&[*name])));
}

fn each_object(value: &mut Value, schema: &Schema, act: &mut dyn FnMut(&mut Value, &'static Rules)) {
    match (&schema.shape, value) {
        (Shape::Object(shape), object @ Value::Object(_)) => {
            TABLE.get(&schema.name).into_iter().for_each(|it| act(object, it));
            for field in shape.fields.iter().filter(|it| is_walked(&it.schema)) {
                object.get_mut(&field.name).into_iter().for_each(|it| each_object(it, &field.schema, act));
            }
        }
        (Shape::List { items, .. }, Value::Array(list)) if is_walked(items) => list.iter_mut().for_each(|it| each_object(it, items, act)),
        (Shape::Map { values, .. }, Value::Object(map)) if is_walked(values) => map.values_mut().for_each(|it| each_object(it, values, act)),
        _ => (),
    }
}

impl Rule {
    /// Writes the rule's value where nothing stands, or, if it is forced, whatever stands there.
    fn fill(&self, object: &mut Value, is_forced: bool) {
        let holds = |when: &When| matches!(when, When::Holds(expr) if expr.of(object) == Some(true.into()));
        if !self.guards.iter().all(|it| it.holds(object, false)) || !self.when.iter().all(|(is_negated, it)| holds(it) != *is_negated) {
            return;
        }
        for target in &self.targets {
            let path: Vec<&str> = target.iter().filter_map(|it| if let Step::Field(name) = it { Some(*name) } else { None }).collect();
            if !is_forced && object.at(&path).is_some_and(|it| !it.is_null() && *it != "") {
                continue;
            }
            match self.value.as_ref().and_then(|it| it.of(object)) {
                Some(Value::Null) if is_forced => _ = object.remove_at(&path),
                Some(value) if !value.is_null() && value != "" => object.set_at(&path, value),
                _ => (),
            }
        }
    }
}
