//! What the fields of built-in types must be: the table `rules.txt` and the walk that applies it.
//!
//! The format: `# package` begins a package (`core/v1`); an unindented line names a type; an indented one is a rule for its objects:
//! guards, the field (or several, between commas), tests, and after `: ` the words of the error. Fields: `.` the object itself, `a.b`, `a[]` each item, `a{}` each key of
//! a map, `a{=}` each value. Guards: `?a` is set, `?a=X|Y` is one of these, `?*a` is there though empty, `?old` an update; `?!` turns a guard round.
//! Tests pass over what is empty; `test!` looks at that too, and `test*` at what is there though empty. The tests of one line
//! end with the first that fails. `@place` reports the error elsewhere; `as=name` says the field's name in paths, `is=Type` whose rules hold below it, `skip` leaves out what is below it.
//! `gated` fields belong to features that v1.36 has switched off; they are dropped.
//! Of the fields that `one=…` or `first=…` names only the first that is set is looked into.
//! Tests that are not of a field alone are functions (`call=…`). Source: `pkg/apis/*/validation` and the `+k8s:` tags of `types.go`.

mod calls;
pub mod words;

use std::{cell::OnceCell, collections::HashMap, sync::LazyLock};

use super::Change;
use crate::{
    meta::{FieldErrors, Meta, Path, Value},
    schema::{Field, Schema, Shape, builtin},
};

static SOURCE: &str = include_str!("rules.txt");
static NOTHING: Value = Value::Null;

/// A rule of the table.
struct Rule {
    guards: Vec<Guard>,
    target: Vec<Step>,
    place: Option<&'static str>,
    tests: Vec<Test>,
}

#[derive(Clone)]
struct Guard {
    is_negated: bool,
    is: Is,
}

#[derive(Clone)]
enum Is {
    Update,
    Set(&'static str),
    There(&'static str),
    OneOf(&'static str, Vec<&'static str>),
}

enum Step {
    Field(&'static str),
    Items,
    Keys,
    Values,
}

/// A test in a rule: the function, its argument, the words of its error.
pub struct Test {
    run: Run,
    pub argument: &'static str,
    pub message: &'static str,
    looks_at: LooksAt,
}

#[derive(Clone, Copy, PartialEq)]
enum LooksAt {
    Set,
    There,
    All,
}

pub type Run = fn(&Site<'_>, &Test, &mut FieldErrors);

/// What a test looks at: a value, the object that has it, and how both were before.
pub struct Site<'a> {
    pub value: &'a Value,
    pub old: Option<&'a Value>,
    pub object: &'a Value,
    pub old_object: Option<&'a Value>,
    /// Where `object` is.
    pub base: &'a Path,
    /// The whole object.
    pub root: &'a Value,
    suffix: &'a str,
    place: Option<&'static str>,
    path: OnceCell<Path>,
}

impl Site<'_> {
    /// Whether the value is the object that the rule is of.
    pub fn is_whole(&self) -> bool {
        self.suffix.is_empty()
    }

    /// Where an error is reported.
    pub fn path(&self) -> &Path {
        self.path.get_or_init(|| match self.place {
            Some(place) => place.split('.').filter(|it| !it.is_empty()).fold(self.base.clone(), |path, field| path.child(field)),
            None => self.base.with(self.suffix),
        })
    }
}

/// The rules of each type, by its OpenAPI name, and how its fields are walked.
#[derive(Default)]
struct Rules {
    rules: Vec<Rule>,
    renamed: HashMap<&'static str, &'static str>,
    /// Fields that have the rules of another type than theirs.
    typed: HashMap<&'static str, String>,
    /// Fields that are not walked, and when.
    skipped: Vec<(Vec<Guard>, &'static str)>,
    /// Fields whose feature gates are closed.
    gated: Vec<&'static str>,
    /// Fields of which only the first that is set is walked.
    exclusive: Vec<&'static str>,
}

static TABLE: LazyLock<HashMap<String, Rules>> = LazyLock::new(|| read(SOURCE));

fn read(source: &'static str) -> HashMap<String, Rules> {
    let (mut table, mut package, mut names) = (HashMap::<String, Rules>::new(), "", Vec::new());
    for line in source.lines().filter(|it| !it.trim().is_empty()) {
        if let Some(name) = line.strip_prefix("# ") {
            package = name;
        } else if let Some(rule) = line.strip_prefix(' ') {
            for name in &names {
                table.entry(format!("io.k8s.{package}.{name}")).or_default().add(rule, package);
            }
        } else {
            names = line.split(' ').collect();
        }
    }
    table
}

impl Rules {
    fn add(&mut self, line: &'static str, package: &str) {
        let (head, message) = line.split_once(": ").unwrap_or((line, ""));
        let mut words = head.split(' ').peekable();
        let mut guards = Vec::new();
        while let Some(word) = words.next_if(|it| it.starts_with('?')) {
            guards.push(guard(&word[1..]));
        }
        let targets = words.next().unwrap_or_default();
        let words: Vec<&'static str> = words.collect();
        for target in targets.split(',') {
            self.add_one(guards.clone(), target, &words, message, package);
        }
    }

    fn add_one(&mut self, guards: Vec<Guard>, target: &'static str, words: &[&'static str], message: &'static str, package: &str) {
        let (mut place, mut tests) = (None, Vec::new());
        for word in words {
            match word.split_once('=') {
                Some(("as", name)) => _ = self.renamed.insert(target, name),
                Some(("is", name)) => _ = self.typed.insert(target, format!("io.k8s.{package}.{name}")),
                _ if *word == "gated" => self.gated.push(target),
                _ if *word == "skip" => self.skipped.push((guards.clone(), target)),
                Some((name @ ("one" | "first"), fields)) => {
                    self.exclusive = fields.split(',').map(|it| it.split(':').next().unwrap_or(it)).collect();
                    tests.extend((name == "one").then(|| test(word, message)));
                }
                _ if word.starts_with('@') => place = Some(&word[1..]),
                _ => tests.push(test(word, message)),
            }
        }
        if !tests.is_empty() {
            self.rules.push(Rule { guards, target: steps(target), place, tests });
        }
    }

    /// Whether the rules look into a field of an object.
    fn enter(&self, field: &str, object: &Value, is_update: bool) -> bool {
        let is_set = |field: &&&str| object.get(**field).is_some_and(|it| !it.is_null());
        let is_second = self.exclusive.contains(&field) && self.exclusive.iter().find(is_set) != Some(&field);
        !is_second && !self.skipped.iter().any(|(guards, name)| *name == field && guards.iter().all(|it| it.holds(object, is_update)))
    }
}

fn guard(word: &'static str) -> Guard {
    let (is_negated, word) = word.strip_prefix('!').map_or((false, word), |it| (true, it));
    let is = match word.split_once('=') {
        Some((field, words)) => Is::OneOf(field, words.split('|').collect()),
        None if word == "old" => Is::Update,
        None => word.strip_prefix('*').map_or(Is::Set(word), Is::There),
    };
    Guard { is_negated, is }
}

fn steps(target: &'static str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in target.split('.').filter(|it| !it.is_empty()) {
        let name = part.trim_end_matches(['[', ']', '{', '}', '=']);
        if !name.is_empty() {
            steps.push(Step::Field(name));
        }
        match &part[name.len()..] {
            "[]" => steps.push(Step::Items),
            "{}" => steps.push(Step::Keys),
            "{=}" => steps.push(Step::Values),
            _ => (),
        }
    }
    steps
}

fn test(word: &'static str, message: &'static str) -> Test {
    let (name, argument) = word.split_once('=').unwrap_or((word, ""));
    let (name, looks_at) = match (name.strip_suffix('!'), name.strip_suffix('*')) {
        (Some(name), _) => (name, LooksAt::All),
        (_, Some(name)) => (name, LooksAt::There),
        _ => (name, LooksAt::Set),
    };
    let run = if name == "call" { calls::find(argument) } else { words::find(name) };
    let looks_at = if matches!(name, "required" | "needed" | "one" | "call" | "immutable" | "fixed") && looks_at == LooksAt::Set { LooksAt::All } else { looks_at };
    Test { run: run.unwrap_or_else(|| panic!("rules.txt: no test {word}")), argument, message, looks_at }
}

/// What Go's zero value is in JSON: absent, false, 0, or empty.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(it) => !it,
        Value::Number(it) => it.as_f64() == Some(0.0),
        Value::String(it) => it.is_empty(),
        Value::Array(it) => it.is_empty(),
        Value::Object(it) => it.is_empty(),
    }
}

impl Guard {
    fn holds(&self, object: &Value, is_update: bool) -> bool {
        let at = |field: &str| field.split('.').try_fold(object, |value, field| value.get(field)).unwrap_or(&NOTHING);
        let holds = match &self.is {
            Is::Update => is_update,
            Is::Set(field) => !is_zero(at(field)),
            Is::There(field) => !at(field).is_null(),
            Is::OneOf(field, words) => match at(field) {
                Value::String(text) => words.contains(&text.as_str()),
                Value::Null => words.contains(&""),
                other => words.contains(&other.to_string().as_str()),
            },
        };
        holds != self.is_negated
    }
}

/// Drops fields of features that are switched off, unless the object had them before (`drop…DisabledFields`).
pub fn drop_gated(object: &mut Value, old: Option<&Value>, schema: &Schema) {
    let collect = |object: &mut Value| {
        let mut found = Vec::new();
        each_gated(object, schema, &mut |_, name| found.push(name));
        found
    };
    if collect(object).is_empty() {
        return;
    }
    let kept = old.map(|it| collect(&mut it.clone())).unwrap_or_default();
    each_gated(object, schema, &mut |map, name| {
        if !kept.contains(&name) {
            map.remove(name);
        }
    });
}

fn each_gated(value: &mut Value, schema: &Schema, act: &mut dyn FnMut(&mut serde_json::Map<String, Value>, &'static str)) {
    match (&schema.shape, value) {
        (Shape::Object(shape), Value::Object(map)) => {
            let gated = TABLE.get(&schema.name).map_or(&[][..], |it| &it.gated);
            for name in gated.iter().copied() {
                if map.contains_key(name) {
                    act(map, name);
                }
            }
            for field in shape.fields.iter().filter(|it| is_walked(&it.schema)) {
                map.get_mut(&field.name).into_iter().for_each(|it| each_gated(it, &field.schema, act));
            }
        }
        (Shape::List { items, .. }, Value::Array(list)) if is_walked(items) => list.iter_mut().for_each(|it| each_gated(it, items, act)),
        (Shape::Map { values, .. }, Value::Object(map)) if is_walked(values) => map.values_mut().for_each(|it| each_gated(it, values, act)),
        _ => (),
    }
}

/// Applies the rules to an object of a built-in kind: to the status in an update of the status, otherwise to the rest.
/// A kind whose status is written with the rest has both checked.
pub fn check(object: &Value, schema: &Schema, change: Change<'_>, with_status: bool) -> FieldErrors {
    let mut walk = Walk { root: object, is_update: change.old().is_some(), errors: FieldErrors::new(), part: Part::Main };
    walk.part = match change.subresource() {
        "" if with_status => Part::Both,
        "" => Part::Main,
        "status" => Part::Status,
        _ => return walk.errors,
    };
    walk.object(object, change.old(), schema, "", &Path::root(), true);
    walk.errors
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Main,
    Status,
    Both,
}

impl Part {
    fn has(self, field: &str) -> bool {
        self == Self::Both || (field == "status") == (self == Self::Status)
    }
}

struct Walk<'a> {
    root: &'a Value,
    is_update: bool,
    errors: FieldErrors,
    part: Part,
}

impl<'a> Walk<'a> {
    /// Walks into a value whose objects have the rules of `kind`; "" says those of their type.
    fn value(&mut self, value: &'a Value, old: Option<&'a Value>, schema: &Schema, kind: &str, path: &Path) {
        match (&schema.shape, value) {
            (Shape::Object(_), Value::Object(_)) => self.object(value, old, schema, kind, path, false),
            (Shape::SchemaOrArray | Shape::SchemaOrBool, Value::Object(_)) => {
                builtin(SCHEMA).into_iter().for_each(|it| self.object(value, old, &it, kind, path, false));
            }
            (Shape::List { items, .. }, Value::Array(list)) if is_walked(items) => {
                for (at, item) in list.iter().enumerate() {
                    self.value(item, old.and_then(|it| it.get(at)), items, kind, &path.index(at));
                }
            }
            (Shape::Map { values, .. }, Value::Object(map)) if is_walked(values) => {
                for (key, value) in map {
                    self.value(value, old.and_then(|it| it.get(key)), values, kind, &path.key(key));
                }
            }
            _ => (),
        }
    }

    fn object(&mut self, value: &'a Value, old: Option<&'a Value>, schema: &Schema, kind: &str, path: &Path, is_root: bool) {
        let (Some(shape), Some(map)) = (schema.as_struct(), value.as_object()) else { return };
        let rules = TABLE.get(if kind.is_empty() { schema.name.as_ref() } else { kind });
        for rule in rules.into_iter().flat_map(|it| &it.rules) {
            let first = rule.target.first().map_or("", |it| if let Step::Field(name) = it { name } else { "" });
            if !is_root || self.part.has(first) {
                self.apply(rule, value, old, schema, path);
            }
        }
        for field in &shape.fields {
            let name = field.name.as_str();
            let is_left_out = (is_root && (name == "metadata" || !self.part.has(name))) || rules.is_some_and(|it| !it.enter(name, value, self.is_update));
            let Some(inner) = map.get(name).filter(|_| !is_left_out && is_walked(&field.schema)) else { continue };
            let shown = rules.and_then(|it| it.renamed.get(name).copied()).unwrap_or(name);
            let kind = rules.and_then(|it| it.typed.get(name)).map_or("", String::as_str);
            self.value(inner, old.and_then(|it| it.get(name)), &field.schema, kind, &path.child(shown));
        }
    }

    fn apply(&mut self, rule: &Rule, object: &'a Value, old: Option<&'a Value>, schema: &Schema, path: &Path) {
        if rule.guards.iter().all(|it| it.holds(object, self.is_update)) {
            self.reach(rule, &rule.target, (object, old), (object, old), (Some(schema), &NOTHING), path, String::new());
        }
    }

    /// Follows the steps of a rule's target and tests what is there. With the schema comes what an absent value is in Go.
    #[expect(clippy::too_many_arguments)]
    fn reach(&mut self, rule: &Rule, steps: &[Step], from: (&'a Value, Option<&'a Value>), at: (&'a Value, Option<&'a Value>), of: (Option<&Schema>, &'static Value), base: &Path, suffix: String) {
        let (value, old) = at;
        match steps.split_first() {
            None => self.test(rule, from, at, of.1, base, &suffix),
            Some((Step::Field(name), rest)) => {
                let suffix = if suffix.is_empty() { (*name).to_owned() } else { format!("{suffix}.{name}") };
                let field = of.0.and_then(|it| it.as_struct()).and_then(|it| it.fields.iter().find(|it| it.name == *name));
                let of = (field.map(|it| &*it.schema), field.map_or(&NOTHING, zero));
                self.reach(rule, rest, from, (value.get(*name).unwrap_or(&NOTHING), old.and_then(|it| it.get(*name))), of, base, suffix);
            }
            Some((Step::Items, rest)) => {
                for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                    self.reach(rule, rest, from, (item, old.and_then(|it| it.get(at))), (of.0.and_then(inner), &NOTHING), base, format!("{suffix}[{at}]"));
                }
            }
            Some((Step::Keys, _)) => {
                for key in value.as_object().into_iter().flat_map(|it| it.keys()) {
                    self.test(rule, from, (&Value::from(key.as_str()), None), &NOTHING, base, &format!("{suffix}[{key}]"));
                }
            }
            Some((Step::Values, rest)) => {
                for (key, item) in value.as_object().into_iter().flatten() {
                    self.reach(rule, rest, from, (item, old.and_then(|it| it.get(key))), (of.0.and_then(inner), &NOTHING), base, format!("{suffix}[{key}]"));
                }
            }
        }
    }

    fn test(&mut self, rule: &Rule, (object, old_object): (&Value, Option<&Value>), (value, old): (&Value, Option<&Value>), zero: &Value, base: &Path, suffix: &str) {
        let shown = if value.is_null() { zero } else { value };
        let site = Site { value: shown, old, object, old_object, base, root: self.root, suffix, place: rule.place, path: OnceCell::new() };
        let before = self.errors.len();
        for test in &rule.tests {
            let is_seen = match test.looks_at {
                LooksAt::All => true,
                LooksAt::There => !value.is_null(),
                LooksAt::Set => !is_zero(value),
            };
            if is_seen {
                (test.run)(&site, test, &mut self.errors);
            }
            if self.errors.len() > before {
                return;
            }
        }
    }
}

/// What Go has where JSON has nothing: "" or false, or nothing too.
fn zero(field: &Field) -> &'static Value {
    static TEXT: Value = Value::String(String::new());
    static FALSE: Value = Value::Bool(false);
    match field.schema.shape {
        Shape::String if !field.is_pointer => &TEXT,
        Shape::Bool if !field.is_pointer => &FALSE,
        _ => &NOTHING,
    }
}

/// The schema of what a list or a map has.
fn inner(schema: &Schema) -> Option<&Schema> {
    match &schema.shape {
        Shape::List { items, .. } => Some(items),
        Shape::Map { values, .. } => Some(values),
        _ => None,
    }
}

/// Whether rules may stand below: in objects, and in lists and maps of them.
fn is_walked(schema: &Schema) -> bool {
    match &schema.shape {
        Shape::Object(_) | Shape::SchemaOrArray | Shape::SchemaOrBool => true,
        Shape::List { items, .. } => is_walked(items),
        Shape::Map { values, .. } => is_walked(values),
        _ => false,
    }
}

/// The type of schemas in custom resource definitions.
pub const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// What the rules find wrong with an object of a type that stands at `path`.
pub fn errors_of(object: &Value, type_name: &str, path: &Path) -> FieldErrors {
    errors_as(object, type_name, "", path)
}

/// The same by the rules of `kind`.
pub fn errors_as(object: &Value, type_name: &str, kind: &str, path: &Path) -> FieldErrors {
    let mut walk = Walk { root: object, is_update: false, errors: FieldErrors::new(), part: Part::Both };
    builtin(type_name).into_iter().for_each(|it| walk.object(object, None, &it, kind, path, false));
    walk.errors
}

/// Whether the rules find nothing wrong with an object of a type.
pub fn is_valid(object: &Value, type_name: &str) -> bool {
    errors_of(object, type_name, &Path::root()).is_empty()
}

/// The texts of a list.
pub fn texts<'a>(value: Option<&'a Value>, path: &[&str]) -> Vec<&'a str> {
    value.map_or(&[][..], |it| it.items_at(path)).iter().filter_map(Value::as_str).collect()
}
