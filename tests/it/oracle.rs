//! The pipeline beside upstream's own code: `HOWDAH_ORACLE` names a Go program (built outside this repository from upstream's tree)
//! that reads requests, a JSON line each, and answers with the defaulted object, the prepared object and the errors of the
//! kind's strategy. `HOWDAH_ORACLE_ONLY` names kinds, or (`@file`) a report whose cases alone are asked again. Thousands of changed objects go to both; `HOWDAH_ORACLE_REPORT` gets the cases that differ, a JSON line each, and
//! `HOWDAH_ORACLE_WRITE` renews the tables of `validation/`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    process::{Command, Stdio},
};

use howdah::{
    meta::Meta,
    schema::{Schema, Shape},
};
use serde_json::{Value, json};

use crate::{
    fixtures,
    validation::{Base, TABLES, bases, settle},
};

/// A change of an object: where, and to what.
type Change = (String, Option<Value>);

/// The changes that are tried at and below a place. `sample` is upstream's fixture there.
fn changes(value: &Value, sample: Option<&Value>, schema: &Schema, place: &str, into: &mut Vec<Change>) {
    match (&schema.shape, value) {
        (Shape::Object(shape), Value::Object(map)) => {
            for field in &shape.fields {
                let place = format!("{place}/{}", field.name.replace('~', "~0").replace('/', "~1"));
                if is_server_owned(&place) {
                    continue;
                }
                let sample = sample.and_then(|it| it.get(&field.name));
                into.extend(values(&field.schema, sample).into_iter().filter(|it| Some(it) != map.get(&field.name)).map(|it| (place.clone(), Some(it))));
                if let Some(value) = map.get(&field.name) {
                    into.push((place.clone(), None));
                    changes(value, sample, &field.schema, &place, into);
                }
            }
        }
        (Shape::List { items, .. }, Value::Array(list)) => {
            if let Some(first) = list.first() {
                let twice: Vec<&Value> = list.iter().chain([first]).collect();
                into.push((place.to_owned(), Some(json!(twice))));
            }
            let sample = sample.and_then(|it| it.get(0));
            for (at, item) in list.iter().enumerate() {
                let place = format!("{place}/{at}");
                if !matches!(items.shape, Shape::Object(_)) {
                    into.extend(values(items, sample).into_iter().map(|it| (place.clone(), Some(it))));
                }
                changes(item, sample, items, &place, into);
            }
        }
        (Shape::Map { values: inner, .. }, Value::Object(map)) => {
            for value in values(inner, None) {
                into.push((format!("{place}/added"), Some(value)));
            }
            if let Some(value) = map.values().next() {
                into.push((format!("{place}/Bad_Key!"), Some(value.clone())));
            }
            for (key, value) in map {
                let place = format!("{place}/{}", key.replace('~', "~0").replace('/', "~1"));
                into.push((place.clone(), None));
                into.extend(values(inner, None).into_iter().map(|it| (place.clone(), Some(it))));
                changes(value, None, inner, &place, into);
            }
        }
        _ => (),
    }
}

fn is_server_owned(place: &str) -> bool {
    const OWNED: [&str; 9] =
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "resourceVersion", "generation", "namespace"];
    matches!(place, "/apiVersion" | "/kind") || place.strip_prefix("/metadata/").is_some_and(|it| OWNED.contains(&it))
}

/// Values that may stand in a field, most of them wrong somewhere.
fn values(schema: &Schema, sample: Option<&Value>) -> Vec<Value> {
    // The manager of fields writes these, whatever a client says.
    let sample = sample.cloned().map(|mut it| {
        it.remove_at(&["managedFields"]);
        it
    });
    let sample = sample.as_ref();
    match &schema.shape {
        Shape::Bool => vec![json!(true), json!(false)],
        Shape::Int32 | Shape::Int64 => vec![json!(-1), json!(0), json!(1), json!(70_000), json!(i32::MAX)],
        Shape::String => vec![json!(""), json!("Not_Valid!"), json!("fine"), json!("a/b"), json!("a".repeat(300))],
        Shape::Bytes => vec![json!(""), json!("AAE=")],
        Shape::Quantity => vec![json!("-1"), json!("0"), json!("1500m"), json!("3Gi")],
        Shape::IntOrString => vec![json!(-1), json!(0), json!(70_000), json!("101%"), json!("0%"), json!("Not_Valid!"), json!("http")],
        Shape::Time => vec![json!("2024-02-02T00:00:00Z")],
        Shape::MicroTime => vec![json!("2024-02-02T00:00:00.000000Z")],
        Shape::Object(_) => [Some(json!({})), sample.cloned()].into_iter().flatten().collect(),
        Shape::List { items, .. } if !matches!(items.shape, Shape::Object(_)) => {
            let inner = values(items, None).into_iter().map(|it| json!([it]));
            [json!([])].into_iter().chain(inner).collect()
        }
        Shape::List { .. } => [Some(json!([])), Some(json!([{}])), sample.cloned()].into_iter().flatten().collect(),
        Shape::Map { .. } => [Some(json!({})), sample.cloned()].into_iter().flatten().collect(),
        _ => Vec::new(),
    }
}

struct Asked {
    base: String,
    operation: String,
    place: String,
    value: Option<Value>,
}

impl Asked {
    fn head(&self) -> String {
        format!("{} {} {} {}", self.base, self.operation, self.place, self.value.as_ref().map_or("-".to_owned(), Value::to_string))
    }

    fn request(&self, base: &Base) -> Value {
        let versioned = |mut object: Value| {
            if self.operation != "create" {
                object["metadata"]["resourceVersion"] = "1".into();
            }
            object
        };
        json!({"gvk": self.base.rsplit_once('/').expect("a name").0, "resource": base.kind.plural, "op": self.operation,
            "object": versioned(base.changed(&self.place, self.value.as_ref())), "old": versioned(base.object.clone())})
    }
}

/// All cases of one object.
fn cases(name: &str, base: &Base, samples: &BTreeMap<String, Value>) -> Vec<Asked> {
    let mut found = Vec::new();
    changes(&base.object, samples.get(name.rsplit_once('/').expect("a name").0), &base.version().schema, "", &mut found);
    let mut seen = BTreeSet::new();
    found.retain(|(place, value)| seen.insert(format!("{place} {value:?}")));
    let mut asked = Vec::new();
    for (operation, is_status) in [("create", false), ("update", false), ("status", true)] {
        if is_status && !base.kind.has_status() {
            continue;
        }
        // Updates try one value at each place; what a value may be is asked at the creation.
        let mut tried = BTreeSet::new();
        let chosen = found.iter().filter(|(place, _)| place.starts_with("/status") == is_status || operation == "create");
        // An update has its name and namespace from the URL before a strategy sees it.
        let chosen = chosen.filter(|(place, _)| operation == "create" || !matches!(place.as_str(), "/metadata" | "/metadata/name"));
        let chosen = chosen.filter(|(place, value)| operation != "update" || tried.insert((place, value.is_some())));
        let own = [(String::new(), Some(Value::Null))];
        asked.extend(own.iter().chain(chosen).map(|(place, value)| Asked { base: name.to_owned(), operation: operation.to_owned(), place: place.clone(), value: value.clone() }));
    }
    asked
}

/// Upstream's fixtures by `group/version/Kind`.
fn samples() -> BTreeMap<String, Value> {
    let mut samples = BTreeMap::new();
    for file in fixtures::files().iter().filter(|it| it.extension().is_some_and(|it| it == "json")) {
        let object: Value = serde_json::from_slice(&fs::read(file).expect("a fixture")).expect("JSON");
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let slash = if api_version.contains('/') { "" } else { "/" };
        samples.insert(format!("{slash}{api_version}/{}", object["kind"].as_str().unwrap_or_default()), object);
    }
    samples
}

/// The oracle's answers; those to the same requests are kept beside it.
pub fn ask(oracle: &str, requests: &[Value]) -> Vec<Value> {
    let text: String = requests.iter().map(|it| format!("{it}\n")).collect();
    let (path, kept) = (format!("{oracle}.{}", requests.len()), format!("{oracle}.{}.answers", requests.len()));
    if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) || !fs::exists(&kept).unwrap_or(false) {
        fs::write(&path, text).expect("written");
        let output = Command::new(oracle).stdin(fs::File::open(&path).expect("requests")).stderr(Stdio::null()).output().expect("the oracle runs");
        fs::write(&kept, output.stdout).expect("written");
    }
    fs::read(&kept).expect("answers").split(|it| *it == b'\n').filter(|it| !it.is_empty()).map(|it| serde_json::from_slice(it).expect("an answer")).collect()
}

/// How often something was equal, and how often it was compared.
#[derive(Default)]
struct Score {
    equal: [usize; 3],
    total: [usize; 3],
}

#[derive(Default)]
struct Report {
    scores: BTreeMap<String, Score>,
    /// Each case that differs, as a line: the case, and what is `missing`, `surplus` or otherwise.
    differences: Vec<Value>,
    tables: BTreeMap<String, BTreeMap<String, String>>,
}

impl Report {
    fn note(&mut self, kind: &str, what: usize, is_equal: bool) {
        let score = self.scores.entry(kind.to_owned()).or_default();
        score.total[what] += 1;
        score.equal[what] += usize::from(is_equal);
    }

    fn compare(&mut self, asked: &Asked, base: &Base, answer: &Value) {
        let why = self.differences_of(asked, base, answer);
        if !why.is_empty() {
            self.differences.push(json!({"case": asked.head(), "why": why}));
        }
    }

    fn differences_of(&mut self, asked: &Asked, base: &Base, answer: &Value) -> Vec<String> {
        let kind = asked.base.rsplit_once('/').expect("a name").0;
        let error = answer["error"].as_str().unwrap_or_default();
        let outcome = match base.run(&asked.operation, &base.changed(&asked.place, asked.value.as_ref())) {
            Err(_) if error.starts_with("decode") => return Vec::new(),
            Err(why) => return vec![format!("decode {why} / {error}")],
            Ok(outcome) => outcome,
        };
        if !error.is_empty() {
            return vec![format!("oracle {error}")];
        }
        let mut why = Vec::new();
        let texts = |list: &Value| -> Vec<String> { list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect() };
        let (mut found, mut expected) = (outcome.errors.clone(), texts(&answer["errors"]));
        // Upstream checks some of metadata twice on an update.
        for list in [&mut found, &mut expected] {
            list.iter_mut().for_each(settle);
            list.sort();
            list.dedup();
        }
        self.note(kind, 1, found == expected);
        if !expected.is_empty() && found == expected {
            self.keep(asked, &expected);
        }
        for (sign, list, other) in [("missing", &expected, &found), ("surplus", &found, &expected)] {
            why.extend(list.iter().filter(|it| !other.contains(it)).map(|it| format!("{sign} {it}")));
        }
        self.same(0, "defaulted", (kind, &outcome.defaulted, &answer["defaulted"]), &mut why);
        if expected.is_empty() {
            // What is stored gets defaults again when it is read.
            let [found, expected] = [outcome.prepared, answer["prepared"].clone()].map(|mut it| {
                base.kind.fill(base.version(), &mut it);
                it
            });
            self.same(2, "prepared", (kind, &found, &expected), &mut why);
        }
        why
    }

    fn same(&mut self, at: usize, what: &str, (kind, found, expected): (&str, &Value, &Value), why: &mut Vec<String>) {
        let (found, expected) = (settled(found), settled(expected));
        self.note(kind, at, found == expected);
        if found != expected {
            why.push(format!("{what} {}", fixtures::difference(&found, &expected, "")));
        }
    }

    /// Keeps one case for each error of each kind for the committed tables.
    fn keep(&mut self, asked: &Asked, expected: &[String]) {
        let group = asked.base.split('/').next().unwrap_or_default().split('.').next().unwrap_or_default();
        let group = if group.is_empty() { "core" } else { group };
        // The place of the object and the operation say nothing new.
        let kind = asked.base.rsplit_once('/').expect("a name").0;
        let key = format!("{kind} {}", expected.iter().map(|it| shape_of(it)).collect::<Vec<_>>().join(" "));
        let lines: String = expected.iter().map(|it| format!("  {it}\n")).collect();
        let is_short = expected.len() <= 2 && lines.len() < 700 && asked.head().len() < 200;
        if is_short {
            self.tables.entry(group.to_owned()).or_default().entry(key).or_insert_with(|| format!("{}\n{lines}", asked.head()));
        }
    }

    fn print(&self) -> String {
        let mut text = String::new();
        let mut all = Score::default();
        for (kind, score) in &self.scores {
            let [a, b, c] = [0, 1, 2].map(|at| format!("{}/{}", score.equal[at], score.total[at]));
            text += &format!("{kind}: defaults {a}, errors {b}, prepared {c}\n");
            for at in 0..3 {
                all.equal[at] += score.equal[at];
                all.total[at] += score.total[at];
            }
        }
        text + &format!("ALL: defaults, errors, prepared {:?} of {:?}\n", all.equal, all.total)
    }
}

/// An object apart from what depends on the moment, and from times that are `null` in Go's JSON and absent in ours.
fn settled(object: &Value) -> Value {
    fn forget_times(value: &mut Value) {
        match value {
            Value::Object(map) => {
                // The moment of a condition that the strategy itself sets, and of a taint that is new.
                if map.get("reason").is_some_and(|it| it == "SchedulingGated") {
                    map.remove("lastTransitionTime");
                }
                map.remove("timeAdded");
                map.retain(|key, value| !(value.is_null() && ["Time", "Timestamp", "startedAt", "finishedAt"].iter().any(|it| key.ends_with(it))));
                map.values_mut().for_each(forget_times);
            }
            Value::Array(list) => list.iter_mut().for_each(forget_times),
            _ => (),
        }
    }
    let mut object = object.clone();
    object.remove_metadata("managedFields");
    object.remove_metadata("resourceVersion");
    object.remove_at(&["status", "lastPhaseTransitionTime"]);
    if object["kind"] == "CertificateSigningRequest" {
        // The server writes who asks, not the strategy.
        ["username", "uid", "groups", "extra"].iter().for_each(|it| _ = object.remove_at(&["spec", it]));
    }
    forget_times(&mut object);
    object
}

/// An error without indexes and values, to count alike ones.
fn shape_of(error: &str) -> String {
    let (field, rest) = error.split_once(['|', ':']).unwrap_or((error, ""));
    let field: String = field.chars().filter(|it| !it.is_ascii_digit()).collect();
    let tail: String = rest.rsplit(": ").next().unwrap_or_default().chars().take(120).collect();
    format!("{field}|{}|{tail}", rest.split('|').next().unwrap_or_default())
}

#[test]
fn the_pipeline_answers_as_upstreams_strategies() {
    let Ok(oracle) = env::var("HOWDAH_ORACLE") else {
        eprintln!("SKIPPED: no oracle here; HOWDAH_ORACLE names it");
        return;
    };
    let only = env::var("HOWDAH_ORACLE_ONLY").unwrap_or_default();
    let (bases, samples) = (bases(), samples());
    let mut asked: Vec<Asked> = bases.iter().filter(|(name, _)| only.starts_with('@') || only.split(',').any(|it| name.contains(it))).flat_map(|(name, base)| cases(name, base, &samples)).collect();
    if let Some(report) = only.strip_prefix('@') {
        let text = fs::read_to_string(report).expect("a report");
        let differing: BTreeSet<String> = text.lines().filter_map(|it| serde_json::from_str::<Value>(it).ok()?["case"].as_str().map(str::to_owned)).collect();
        asked.retain(|it| differing.contains(&it.head()));
    }
    let requests: Vec<Value> = asked.iter().map(|it| it.request(&bases[&it.base])).collect();
    let answers = ask(&oracle, &requests);
    assert_eq!(answers.len(), asked.len());
    let mut report = Report::default();
    asked.iter().zip(&answers).for_each(|(asked, answer)| report.compare(asked, &bases[&asked.base], answer));
    println!("{}", report.print());
    let lines: String = report.differences.iter().map(|it| format!("{it}\n")).collect();
    env::var("HOWDAH_ORACLE_REPORT").into_iter().for_each(|it| fs::write(it, &lines).expect("written"));
    if env::var("HOWDAH_ORACLE_WRITE").is_ok() {
        for (group, cases) in &report.tables {
            let text = cases.values().cloned().collect::<Vec<_>>().join("\n");
            fs::write(format!("{TABLES}/{group}.txt"), text).expect("written");
        }
    }
}
