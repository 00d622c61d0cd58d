//! Defaults, preparation and validation, as upstream's strategies have them.
//!
//! `validation/objects.yaml` has valid objects of every kind. A *case* is one of them with one change, and what is done with it:
//! `apps/v1/Deployment/web create /spec/replicas -1`. The tables `validation/*.txt` hold cases with the errors that upstream's
//! own code gave (made by `oracle.rs`, which asks it); the test here runs them through the real pipeline.

use std::{collections::BTreeMap, fs, path::Path};

use howdah::{
    kinds::{Change, Kind, Registry, Subresource, Version, table},
    meta::Meta,
    schema::codec,
};
use serde_json::Value;

pub const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/validation");

/// A valid object and the row that it belongs to.
pub struct Base {
    pub kind: std::sync::Arc<Kind>,
    pub version: String,
    pub object: Value,
}

/// What became of a case.
#[derive(Debug, Default)]
pub struct Outcome {
    pub defaulted: Value,
    pub prepared: Value,
    /// `field|reason|message`.
    pub errors: Vec<String>,
}

/// The valid objects by `group/version/Kind/name`.
pub fn bases() -> BTreeMap<String, Base> {
    let text = fs::read_to_string(Path::new(TABLES).join("objects.yaml")).expect("the objects");
    let registry = table::registry();
    text.split("\n---\n").map(|it| base(&registry, it)).collect()
}

fn base(registry: &Registry, document: &str) -> (String, Base) {
    let (object, _) = codec::parse_yaml(document.as_bytes()).unwrap_or_else(|error| panic!("{}: {document}", error.message));
    let api_version = object["apiVersion"].as_str().expect("apiVersion");
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let kind = registry.by_kind(group, object["kind"].as_str().expect("kind")).expect("a row").clone();
    let name = format!("{group}/{version}/{}/{}", kind.kind, object.name());
    (name, Base { version: version.to_owned(), kind, object })
}

impl Base {
    pub fn version(&self) -> &Version {
        self.kind.version(&self.version).expect("a version")
    }

    fn subresource(&self, operation: &str) -> Option<&Subresource> {
        self.kind.subresource(operation)
    }

    /// The object of a case: this one with the value at `pointer` replaced, added or (without a value) removed.
    pub fn changed(&self, pointer: &str, value: Option<&Value>) -> Value {
        let mut object = self.object.clone();
        if pointer.is_empty() {
            return object;
        }
        let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
        let last = last.replace("~1", "/").replace("~0", "~");
        match object.pointer_mut(parent) {
            Some(Value::Object(map)) => match value {
                Some(value) => _ = map.insert(last, value.clone()),
                None => _ = map.remove(&last),
            },
            Some(Value::Array(list)) => match (last.parse::<usize>().expect("an index"), value) {
                (at, Some(value)) => list[at] = value.clone(),
                (at, None) => _ = list.remove(at),
            },
            _ => panic!("nothing at {pointer}"),
        }
        object
    }

    /// What the pipeline makes of `object`: decoded, defaulted, prepared, checked. `Err` where it cannot even be decoded.
    pub fn run(&self, operation: &str, object: &Value) -> Result<Outcome, String> {
        let (kind, version) = (&self.kind, self.version());
        let decode = |object: &Value| codec::decode_value(object.clone(), &version.schema).map(|it| it.0).map_err(|it| it.message);
        let (mut new, mut old) = (decode(object)?, decode(&self.object)?);
        kind.fill(version, &mut new);
        kind.fill(version, &mut old);
        let defaulted = new.clone();
        let part = self.subresource(operation);
        let step = match operation {
            "create" => Change::Create,
            "update" => Change::Update(&old),
            part => Change::Part(part, &old),
        };
        match step {
            Change::Create => {
                kind.start(version, &mut new);
                new.set_metadata("uid", "11111111-1111-1111-1111-111111111111");
                new.set_metadata("creationTimestamp", "2023-11-14T22:13:20Z");
                kind.fill(version, &mut new);
            }
            _ => new = kind.confine(part, &old, new),
        }
        kind.prepare(version, &mut new, step);
        if step.old().is_some() {
            kind.count(part, &old, &mut new);
        }
        let errors = kind.check(version, &new, step).0.into_iter().map(|it| it.to_cause()).map(|it| format!("{}|{}|{}", it.field, it.reason, it.message));
        Ok(Outcome { errors: errors.collect(), defaulted, prepared: new })
    }
}

/// Errors apart from what no server of another language can say alike: dumps of Go structs.
pub fn settle(error: &mut String) {
    error.truncate(error.find('\n').unwrap_or(error.len()));
    let dumps = ["Invalid value: {", "Invalid value: [", "Unsupported value: {", "Duplicate value: {"];
    if let Some(from) = dumps.iter().find_map(|it| error.find(it).map(|at| at + it.len() - 1)) {
        let to = error.rfind(": ").filter(|it| *it > from).unwrap_or(error.len());
        error.replace_range(from..to, "…");
    }
}

/// One case of a table: the object's name, the operation, the pointer, the value.
pub struct Case<'a> {
    pub base: &'a str,
    pub operation: &'a str,
    pub pointer: &'a str,
    pub value: Option<Value>,
}

impl<'a> Case<'a> {
    pub fn parse(line: &'a str) -> Self {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (base, operation, pointer, value) = (word(), word(), word(), word());
        let value = (value != "-").then(|| serde_json::from_str(value).unwrap_or_else(|error| panic!("{error}: {line}")));
        Self { base, operation, pointer, value }
    }
}

#[test]
fn invalid_objects_get_upstreams_errors() {
    let (bases, mut wrong, mut count) = (bases(), Vec::new(), 0);
    let mut files: Vec<_> = fs::read_dir(TABLES).expect("the tables").map(|it| it.expect("an entry").path()).collect();
    files.sort();
    for file in files.iter().filter(|it| it.extension().is_some_and(|it| it == "txt")) {
        let text = fs::read_to_string(file).expect("a table");
        for block in text.split("\n\n").filter(|it| !it.starts_with('#')) {
            let (head, expected) = block.trim_end().split_once('\n').unwrap_or((block, ""));
            let case = Case::parse(head);
            let base = bases.get(case.base).unwrap_or_else(|| panic!("no object {}", case.base));
            let mut found = base.run(case.operation, &base.changed(case.pointer, case.value.as_ref())).map_or_else(|why| vec![why], |it| it.errors);
            let mut expected: Vec<String> = expected.lines().map(|it| it.trim_start().to_owned()).collect();
            found.iter_mut().chain(&mut expected).for_each(settle);
            found.sort();
            found.dedup();
            expected.sort();
            count += 1;
            if found != expected {
                wrong.push(format!("{head}\n  expected {expected:#?}\n  found {found:#?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}
