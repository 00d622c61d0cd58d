use std::{collections::BTreeSet, fs};

use serde_json::json;

use super::*;
use crate::{kinds::{Kind, table}, meta::object, schema::codec};

fn compile(rules: &[Rule]) {
    for rule in rules {
        rule.value.iter().for_each(Expr::compile);
        for (_, when) in &rule.when {
            match when {
                When::Holds(expr) => expr.compile(),
                When::Alike(guard) => guard.compile(),
            }
        }
        rule.place.iter().chain(rule.tests.iter().map(|it| &it.message)).for_each(Message::compile);
        compile(&rule.inner);
    }
}

#[test]
fn all_expressions_compile() {
    for rules in TABLE.values() {
        compile(&rules.rules);
        rules.fills.iter().for_each(|it| compile(std::slice::from_ref(&it.1)));
    }
}

#[test]
fn large_objects_are_looked_at_whole_or_refused() {
    let container = |it: usize| json!({"name": format!("c{}", it % 1999), "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"});
    let containers: Vec<Value> = (0..2000).map(container).collect();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": containers, "dnsPolicy": "Default", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30}});
    assert_eq!(told("Pod", &pod, Change::Create), ["spec.containers[1999].name: Duplicate value: \"c0\""]);
    let memory = Memory::with(1000);
    let mut walk = Walk { root: &pod, old: None, is_update: false, errors: FieldErrors::new(), part: Part::Main, memory: &memory };
    let schema = builtin("io.k8s.api.core.v1.Pod").expect("a type");
    walk.object(&pod, None, &schema, "", &Path::root(), true);
    let last = walk.finish().last().map(ToString::to_string).unwrap_or_default();
    assert!(last.ends_with("validation failed due to running out of cost budget, no further validation rules will be run"), "{last}");
}

/// The lists in a value that are not empty, as JSON pointers.
fn lists(value: &Value, place: &str, into: &mut Vec<String>) {
    match value {
        Value::Array(list) if !list.is_empty() => {
            into.push(place.to_owned());
            lists(&list[0], &format!("{place}/0"), into);
        }
        Value::Object(map) => map.iter().for_each(|(key, it)| lists(it, &format!("{place}/{}", key.replace('~', "~0").replace('/', "~1")), into)),
        _ => (),
    }
}

/// An item like the first one, under other names.
fn renamed(first: &Value, at: usize) -> Value {
    let mut item = first.clone();
    if at == 0 {
        return item;
    }
    let rename = |it: &mut Value| match it {
        Value::String(text) => *text += &(100 + at).to_string(),
        other => *other = (1000 + at).into(),
    };
    match &mut item {
        Value::Object(map) => ["name", "key", "mountPath", "devicePath", "ip", "port", "containerPort"].iter().filter_map(|it| map.remove_entry(*it)).collect::<Vec<_>>().into_iter().for_each(|(key, mut it)| {
            rename(&mut it);
            map.insert(key, it);
        }),
        other => rename(other),
    }
    item
}

/// The outermost lists, those around one of them left out.
fn chosen<'a>(all: &'a [String], about: &str) -> Vec<&'a String> {
    let is_within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|it| it.starts_with('/'));
    let mut chosen: Vec<&String> = Vec::new();
    for place in all.iter().filter(|it| !is_within(about, it)) {
        if !chosen.iter().any(|it| is_within(place, it)) {
            chosen.push(place);
        }
    }
    chosen
}

fn grown(object: &Value, lists: &[&String], size: usize) -> Value {
    let mut object = object.clone();
    for place in lists {
        let list = object.pointer_mut(place).expect("a list");
        *list = (0..size).map(|at| renamed(&list[0], at)).collect();
    }
    object
}

/// What an update of an object that changes nothing costs: units of expressions, and looks at fields.
fn cost(kind: &Kind, object: &Value) -> [u64; 2] {
    let memory = Memory::with(u64::MAX);
    let looks = object::LOOKS.get();
    let mut walk = Walk { root: object, old: Some(object), is_update: true, errors: FieldErrors::new(), part: Part::Both, memory: &memory };
    walk.object(object, Some(object), &kind.versions[0].schema, "", &Path::root(), true);
    kind.check(&kind.versions[0], object, Change::Update(object));
    kind.fill(&kind.versions[0], &mut object.clone());
    [memory.spent(), object::LOOKS.get() - looks]
}

/// No item of a list is compared with all others, nor with all items of another list.
#[test]
fn what_a_check_costs_grows_as_the_object_does() {
    const STEP: usize = 6;
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/validation/objects.yaml")).expect("the objects");
    let registry = table::registry();
    let mut steep = Vec::new();
    for document in text.split("\n---\n") {
        let (mut object, _) = codec::parse_yaml(document.as_bytes()).expect("an object");
        let group = object.text("apiVersion").rsplit_once('/').map_or("", |it| it.0).to_owned();
        let kind = registry.by_kind(&group, object.text("kind")).expect("a row").clone();
        kind.fill(&kind.versions[0], &mut object);
        let mut all = Vec::new();
        lists(&object, "", &mut all);
        let choices: BTreeSet<Vec<&String>> = all.iter().map(|it| chosen(&all, it)).collect();
        for lists in choices {
            let [one, two, three] = [1, 2, 3].map(|it| cost(&kind, &grown(&object, &lists, it * STEP)));
            let growth = [0, 1].map(|at| (three[at] + one[at]).saturating_sub(2 * two[at]));
            if growth.iter().any(|it| *it > (STEP * STEP / 2) as u64) {
                steep.push(format!("{} {lists:?}: {growth:?} {one:?} {two:?} {three:?}", kind.kind));
            }
        }
    }
    assert!(steep.is_empty(), "{}", steep.join("\n"));
}
