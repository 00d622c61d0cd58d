//! What the fields of built-in types must be: the table `rules.txt` and the walk that applies it.
//!
//! The format: `# package` begins a package (`core/v1`); an unindented line names a type, or rules that others `use`; an indented one is a rule for its objects: guards, the field (or several,
//! between commas), words, and after `: ` the words of the error. Fields: `.` the object itself, `a.b`, `a[]` each item, `a{}` each key of a map, `a{=}` each value.
//! Guards: `?a` is set, `?a=X|Y` is one of these, `?*a` is there though empty, `?old` an update, `?{…}` an expression holds at the field; `?!` turns a guard round. `|` before them: where the rule before found nothing.
//! `?before` is there: an earlier item of the list is the same; `?before=a,b` has the same fields, `?before={…}` is what an expression says; `?after` a later one, `?was` one of the list as it was; `?repeats` of the value, a list.
//! `?in=path.field` is there: the value is that field of an item of a list at a path from the rule's object, or (each `^`) from one further up; between commas of several. Expressions call that item `found`.
//! Tests pass over what is empty; `test!` looks at that too, and `test*` at what is there though empty. The tests of one line end with the first that fails.
//! `{…}` is a value that is tested in place of the field's; `${…}` in the words of an error is what an expression says. `@place` reports the error elsewhere, each `^` a step further up.
//! Lines that are indented further are rules for what the field is; `use=` takes those of that name (or of `package.name`), and `walk` goes into the field at once.
//! `as=name` says the field's name in paths, `is=Type` whose rules hold below it, `skip` leaves out what is below it. `gated` fields belong to features that v1.36 has switched off; they are dropped.
//! `default=…` writes a text, a number or what an expression says of the object (its `self`) where nothing stands, `set=…` over what stands there, `set=null` removes it.
//! Of the fields that `one=…` or `first=…` names only the first that is set is looked into.
//! Expressions are CEL (`message.rs` has the names that they see). What needs more than a line is a function (`call=…`). Source: `pkg/apis/*/validation` and the `+k8s:` tags of `types.go`.

mod calls;
mod fill;
mod memory;
mod message;
pub mod words;

use std::{borrow::Cow, cell::{Cell, OnceCell}, collections::HashMap, sync::LazyLock};

pub use fill::{drop_gated, fill};
use memory::{Alike, Memory};
use message::{Message, expr};

use super::{
    Change,
    expr::{Expr, braced, lines},
};
use crate::{
    meta::{FieldErrors, Meta, Path, Value},
    schema::{Field, Schema, Shape, builtin},
};

static SOURCE: &str = include_str!("rules.txt");
static NOTHING: Value = Value::Null;

/// A rule of the table.
struct Rule {
    guards: Vec<Guard>,
    /// Guards that are asked where the target is, and whether they are turned round.
    when: Vec<(bool, When)>,
    targets: Vec<Vec<Step>>,
    /// Not looked at where the rule before it found something wrong.
    is_else: bool,
    place: Option<Message>,
    /// What is tested in place of the target's value.
    value: Option<Expr>,
    tests: Vec<Test>,
    /// The target is walked here and now.
    walks: bool,
    /// A type whose rules hold for the target too.
    uses: Option<String>,
    /// Rules for what the target is, where the tests find nothing wrong.
    inner: Vec<Rule>,
}

enum When {
    Holds(Expr),
    Alike(Alike),
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
    message: Message,
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
    /// The whole object, and how it was.
    pub root: &'a Value,
    old_root: Option<&'a Value>,
    owner: Owner<'a>,
    item: Item<'a>,
    /// The item that the last guard found.
    found: Cell<&'a Value>,
    memory: &'a Memory,
    suffix: &'a str,
    place: Option<&'a Message>,
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
            Some(place) => {
                let place = place.at(self);
                let below = place.trim_start_matches('^');
                (below.len()..place.len()).fold(self.base.clone(), |path, _| path.up()).with(below)
            }
            None => self.base.with(self.suffix),
        })
    }

    /// The words of a test's error here.
    pub fn say(&self, test: &Test) -> Cow<'static, str> {
        test.message.at(self)
    }

    /// The same, or others where the rule has none.
    pub fn say_or(&self, test: &Test, other: impl FnOnce() -> String) -> Cow<'static, str> {
        Some(self.say(test)).filter(|it| !it.is_empty()).unwrap_or_else(|| other().into())
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
    /// What is written into fields, and whether over what stands there.
    fills: Vec<(bool, Rule)>,
    /// Fields of which only the first that is set is walked.
    exclusive: Vec<&'static str>,
}

static TABLE: LazyLock<HashMap<String, Rules>> = LazyLock::new(|| read(SOURCE));

fn read(source: &'static str) -> HashMap<String, Rules> {
    let (mut table, mut package, mut names) = (HashMap::<String, Rules>::new(), "", Vec::new());
    for line in lines(source) {
        let depth = line.len() - line.trim_start().len();
        if let Some(name) = line.strip_prefix("# ") {
            package = name;
        } else if depth == 0 {
            names = line.split(' ').collect();
        } else {
            for name in &names {
                table.entry(format!("io.k8s.{package}.{name}")).or_default().add(&line[depth..], depth, package);
            }
        }
    }
    table
}

/// The words of a line, with expressions in braces as one, and the message that follows them.
fn words(line: &'static str) -> (Vec<&'static str>, &'static str) {
    let (mut words, mut rest) = (Vec::new(), line);
    loop {
        let mut depth = 0;
        let end = rest.find(|it| {
            depth += i32::from(it == '{') - i32::from(it == '}');
            depth == 0 && it == ' '
        });
        let word = &rest[..end.unwrap_or(rest.len())];
        rest = &rest[end.map_or(rest.len(), |it| it + 1)..];
        if let Some(last) = word.strip_suffix(':').filter(|_| end.is_some()) {
            words.push(last);
            return (words, rest);
        }
        words.push(word);
        if end.is_none() {
            return (words, "");
        }
    }
}

impl Rules {
    fn add(&mut self, line: &'static str, depth: usize, package: &str) {
        let (words, message) = words(line);
        let mut words = words.into_iter().peekable();
        let is_else = words.next_if(|it| *it == "|").is_some();
        let mut rule = Rule { guards: Vec::new(), when: Vec::new(), targets: Vec::new(), is_else, place: None, value: None, tests: Vec::new(), walks: false, uses: None, inner: Vec::new() };
        while let Some(word) = words.next_if(|it| it.starts_with('?')) {
            let (is_negated, bare) = word[1..].strip_prefix('!').map_or((false, &word[1..]), |it| (true, it));
            match (braced(bare), Alike::read(bare)) {
                (Some(expression), _) => rule.when.push((is_negated, When::Holds(expr(expression)))),
                (_, Some(alike)) => rule.when.push((is_negated, When::Alike(alike))),
                _ => rule.guards.push(Guard { is_negated, is: guard(bare) }),
            }
        }
        let targets: Vec<&'static str> = words.next().unwrap_or_default().split(',').collect();
        let (mut is_rule, mut fills) = (true, None);
        for word in words {
            match word.split_once('=') {
                _ if word.starts_with('@') => rule.place = Some(Message::new(&word[1..])),
                _ if word.starts_with('{') => rule.value = braced(word).map(expr),
                _ if self.directs(word, &targets, &rule.guards, package) => is_rule = false,
                Some(("use", name)) => rule.uses = Some(if name.contains('.') { format!("io.k8s.{name}") } else { format!("io.k8s.{package}.{name}") }),
                None if word == "walk" => rule.walks = true,
                Some((verb @ ("default" | "set"), value)) => {
                    rule.value = Some(expr(literal(value)));
                    fills = Some(verb == "set");
                }
                _ => rule.tests.push(test(word, message)),
            }
        }
        is_rule |= !rule.tests.is_empty() || rule.walks;
        rule.targets = targets.into_iter().map(steps).collect();
        if let Some(is_forced) = fills {
            return self.fills.push((is_forced, rule));
        }
        let list = (1..depth).fold(&mut self.rules, |list, _| &mut list.last_mut().expect("rules.txt: a rule to stand below").inner);
        list.extend(is_rule.then_some(rule));
    }

    /// Notes a word that says how fields are walked.
    fn directs(&mut self, word: &'static str, targets: &[&'static str], guards: &[Guard], package: &str) -> bool {
        for target in targets.iter().copied() {
            match word.split_once('=') {
                Some(("as", name)) => _ = self.renamed.insert(target, name),
                Some(("is", name)) => _ = self.typed.insert(target, format!("io.k8s.{package}.{name}")),
                Some(("one" | "first", fields)) => self.exclusive = fields.split(',').map(|it| it.split(':').next().unwrap_or(it)).collect(),
                _ if word == "gated" => self.gated.push(target),
                _ if word == "skip" => self.skipped.push((guards.to_vec(), target)),
                _ => (),
            }
        }
        matches!(word, "gated" | "skip") || ["as=", "is=", "first="].iter().any(|it| word.starts_with(it))
    }

    /// Whether the rules look into a field of an object.
    fn enter(&self, field: &str, object: &Value, is_update: bool) -> bool {
        let is_set = |field: &&&str| object.get(**field).is_some_and(|it| !it.is_null());
        let is_second = self.exclusive.contains(&field) && self.exclusive.iter().find(is_set) != Some(&field);
        !is_second && !self.skipped.iter().any(|(guards, name)| *name == field && guards.iter().all(|it| it.holds(object, is_update)))
    }
}

/// What is written: an expression in braces, a number or truth, or a text.
fn literal(value: &'static str) -> &'static str {
    braced(value).unwrap_or_else(|| if serde_json::from_str::<Value>(value).is_ok() { value } else { format!("'{value}'").leak() })
}

fn guard(word: &'static str) -> Is {
    match word.split_once('=') {
        Some((field, words)) => Is::OneOf(field, words.split('|').collect()),
        None if word == "old" => Is::Update,
        None => word.strip_prefix('*').map_or(Is::Set(word), Is::There),
    }
}

fn steps(target: &'static str) -> Vec<Step> {
    let mut steps = Vec::new();
    // `a[b.c]` names a field with dots.
    let (path, key) = target.strip_suffix(']').and_then(|it| it.split_once('[')).filter(|it| !it.1.is_empty() && !it.1.contains(']')).unwrap_or((target, ""));
    for part in path.split('.').filter(|it| !it.is_empty()) {
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
    steps.extend((!key.is_empty()).then_some(Step::Field(key)));
    steps
}

fn test(word: &'static str, message: &'static str) -> Test {
    let (name, argument) = word.split_once('=').unwrap_or((word, ""));
    let (name, looks_at) = match (name.strip_suffix('!'), name.strip_suffix('*')) {
        (Some(name), _) => (name, LooksAt::All),
        (_, Some(name)) => (name, LooksAt::There),
        _ => (name, LooksAt::Set),
    };
    let argument = braced(argument).unwrap_or(argument);
    let run = if name == "call" { calls::find(argument) } else { words::find(name) };
    let looks_at = if matches!(name, "required" | "needed" | "one" | "call" | "immutable" | "fixed") && looks_at == LooksAt::Set { LooksAt::All } else { looks_at };
    Test { run: run.unwrap_or_else(|| panic!("rules.txt: no test {word}")), argument, message: Message::new(message), looks_at }
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

/// Applies the rules to an object of a built-in kind: to the status in an update of the status, otherwise to the rest.
/// A kind whose status is written with the rest has both checked.
pub fn check(object: &Value, schema: &Schema, change: Change<'_>, with_status: bool) -> FieldErrors {
    let memory = Memory::default();
    let mut walk = Walk { root: object, old: change.old(), is_update: change.old().is_some(), errors: FieldErrors::new(), part: Part::Main, memory: &memory };
    walk.part = match change.subresource() {
        "" if with_status => Part::Both,
        "" => Part::Main,
        "status" => Part::Status,
        _ => return walk.errors,
    };
    walk.object(object, change.old(), schema, "", &Path::root(), true);
    walk.finish()
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
    old: Option<&'a Value>,
    is_update: bool,
    errors: FieldErrors,
    part: Part,
    memory: &'a Memory,
}

/// An object that rules are of, where it is, and the one that a rule reached it from.
#[derive(Clone, Copy)]
struct Owner<'a> {
    value: &'a Value,
    old: Option<&'a Value>,
    schema: Option<&'a Schema>,
    path: &'a Path,
    above: Option<&'a Owner<'a>>,
    item: Item<'a>,
}

impl<'a> Owner<'a> {
    fn parent(&self) -> &'a Value {
        self.above.map_or(&NOTHING, |it| it.value)
    }
}

/// The list or map that was last stepped into, and the place in it.
#[derive(Clone, Copy)]
struct Item<'a> {
    of: &'a Value,
    old: Option<&'a Value>,
    at: usize,
    key: &'a str,
}

const NO_ITEM: Item<'static> = Item { of: &NOTHING, old: None, at: 0, key: "" };

/// What the steps of a target lead to. With the schema comes what an absent value is in Go.
#[derive(Clone)]
struct Reached<'a> {
    value: &'a Value,
    old: Option<&'a Value>,
    schema: Option<&'a Schema>,
    zero: &'static Value,
    item: Item<'a>,
    suffix: String,
}

impl<'a> Reached<'a> {
    fn field(&self, name: &str) -> Self {
        let suffix = if self.suffix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.suffix) };
        let field = self.schema.and_then(|it| it.as_struct()).and_then(|it| it.fields.iter().find(|it| it.name == name));
        Self { value: self.value.get(name).unwrap_or(&NOTHING), old: self.old.and_then(|it| it.get(name)), schema: field.map(|it| &*it.schema), zero: field.map_or(&NOTHING, zero), suffix, ..*self }
    }

    fn inner(&self, value: &'a Value, old: Option<&'a Value>, at: usize, key: &'a str) -> Self {
        let suffix = if key.is_empty() { format!("{}[{at}]", self.suffix) } else { format!("{}[{key}]", self.suffix) };
        Self { value, old, schema: self.schema.and_then(inner), zero: &NOTHING, item: Item { of: self.value, old: self.old, at, key }, suffix }
    }
}

impl Walk<'_> {
    /// What was found wrong. An object on which the expressions cost more than they may is refused: not all of it has been looked at.
    fn finish(mut self) -> FieldErrors {
        self.errors.extend(self.memory.exhausted());
        self.errors
    }

    /// Walks into a value whose objects have the rules of `kind`; "" says those of their type.
    fn value(&mut self, value: &Value, old: Option<&Value>, schema: &Schema, kind: &str, path: &Path) {
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

    fn object(&mut self, value: &Value, old: Option<&Value>, schema: &Schema, kind: &str, path: &Path, is_root: bool) {
        let (Some(shape), Some(map)) = (schema.as_struct(), value.as_object()) else { return };
        let rules = TABLE.get(if kind.is_empty() { schema.name.as_ref() } else { kind });
        let owner = Owner { value, old, schema: Some(schema), path, above: None, item: NO_ITEM };
        rules.into_iter().for_each(|it| self.apply(&it.rules, owner, is_root));
        for field in &shape.fields {
            let name = field.name.as_str();
            let is_left_out = (is_root && (name == "metadata" || !self.part.has(name))) || rules.is_some_and(|it| !it.enter(name, value, self.is_update));
            let Some(inner) = map.get(name).filter(|_| !is_left_out && is_walked(&field.schema)) else { continue };
            let shown = rules.and_then(|it| it.renamed.get(name).copied()).unwrap_or(name);
            let kind = rules.and_then(|it| it.typed.get(name)).map_or("", String::as_str);
            self.value(inner, old.and_then(|it| it.get(name)), &field.schema, kind, &path.child(shown));
        }
    }

    fn apply(&mut self, rules: &[Rule], owner: Owner<'_>, is_root: bool) {
        let (is_update, mut before) = (self.is_update, self.errors.len());
        for rule in rules.iter().filter(|it| it.guards.iter().all(|it| it.holds(owner.value, is_update))) {
            if !rule.is_else {
                before = self.errors.len();
            } else if self.errors.len() > before {
                continue;
            }
            for target in &rule.targets {
                let first = if let Some(Step::Field(name)) = target.first() { name } else { "" };
                if !is_root || self.part.has(first) {
                    let start = Reached { value: owner.value, old: owner.old, schema: owner.schema, zero: &NOTHING, item: owner.item, suffix: String::new() };
                    self.reach(rule, target, owner, start);
                }
            }
        }
    }

    /// Follows the steps of a rule's target and tests what is there.
    fn reach(&mut self, rule: &Rule, steps: &[Step], owner: Owner<'_>, at: Reached<'_>) {
        let Some((step, rest)) = steps.split_first() else { return self.test(rule, owner, &at) };
        match step {
            Step::Field(name) => self.reach(rule, rest, owner, at.field(name)),
            Step::Items => {
                for (index, item) in at.value.as_array().into_iter().flatten().enumerate() {
                    self.reach(rule, rest, owner, at.inner(item, at.old.and_then(|it| it.get(index)), index, ""));
                }
            }
            Step::Keys => {
                for key in at.value.as_object().into_iter().flat_map(|it| it.keys()) {
                    self.test(rule, owner, &at.inner(&Value::from(key.as_str()), None, 0, key));
                }
            }
            Step::Values => {
                for (key, item) in at.value.as_object().into_iter().flatten() {
                    self.reach(rule, rest, owner, at.inner(item, at.old.and_then(|it| it.get(key)), 0, key));
                }
            }
        }
    }

    fn test(&mut self, rule: &Rule, owner: Owner<'_>, at: &Reached<'_>) {
        let shown = if at.value.is_null() { at.zero } else { at.value };
        let mut site = Site {
            value: shown, old: at.old, object: owner.value, old_object: owner.old, base: owner.path, root: self.root, old_root: self.old,
            owner, item: at.item, found: Cell::new(&NOTHING), memory: self.memory, suffix: &at.suffix, place: rule.place.as_ref(), path: OnceCell::new(),
        };
        let is_seen = |test: &&Test, value: &Value| match test.looks_at {
            LooksAt::All => true,
            LooksAt::There => !value.is_null(),
            LooksAt::Set => !is_zero(value),
        };
        let is_below = !at.value.is_null() && (!rule.inner.is_empty() || rule.uses.is_some() || rule.walks);
        let is_idle = rule.value.is_none() && !is_below && !rule.tests.iter().any(|it| is_seen(&it, at.value));
        if is_idle || !rule.when.iter().all(|(is_negated, it)| site.meets(it) != *is_negated) {
            return;
        }
        let made = rule.value.as_ref().map(|it| site.ask(it).and_then(|it| it.to_json().ok()).unwrap_or_default());
        site.value = made.as_ref().unwrap_or(shown);
        let before = self.errors.len();
        for test in rule.tests.iter().filter(|it| is_seen(it, made.as_ref().unwrap_or(at.value))) {
            (test.run)(&site, test, &mut self.errors);
            if self.errors.len() > before {
                return;
            }
        }
        if is_below {
            if let Some(schema) = at.schema.filter(|_| rule.walks) {
                self.value(at.value, at.old, schema, "", site.path());
            }
            let inner = Owner { value: at.value, old: at.old, schema: at.schema, path: site.path(), above: if at.suffix.is_empty() { owner.above } else { Some(&owner) }, item: at.item };
            rule.uses.iter().filter_map(|it| TABLE.get(it)).for_each(|it| self.apply(&it.rules, inner, false));
            self.apply(&rule.inner, inner, false);
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
    let memory = Memory::default();
    let mut walk = Walk { root: object, old: None, is_update: false, errors: FieldErrors::new(), part: Part::Both, memory: &memory };
    builtin(type_name).into_iter().for_each(|it| walk.object(object, None, &it, kind, path, false));
    walk.finish()
}

/// Whether the rules find nothing wrong with an object of a type.
pub fn is_valid(object: &Value, type_name: &str) -> bool {
    errors_of(object, type_name, &Path::root()).is_empty()
}

/// The texts of a list.
pub fn texts<'a>(value: Option<&'a Value>, path: &[&str]) -> Vec<&'a str> {
    value.map_or(&[][..], |it| it.items_at(path)).iter().filter_map(Value::as_str).collect()
}

/// An object of a kind with its defaults, for tests.
#[cfg(test)]
pub fn filled(kind: &str, mut object: Value) -> Value {
    let registry = super::table::registry();
    let kind = registry.iter().find(|it| it.kind == kind).expect("a kind");
    kind.fill(&kind.versions[0], &mut object);
    object
}

/// All that is wrong with an object of a kind, for tests.
#[cfg(test)]
pub fn told(kind: &str, object: &Value, change: Change<'_>) -> Vec<String> {
    let registry = super::table::registry();
    let kind = registry.iter().find(|it| it.kind == kind).expect("a kind");
    let errors = check(object, &kind.versions[0].schema, change, !kind.strategy.resets_status);
    errors.iter().chain(&(kind.strategy.validate)(object, change)).map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
