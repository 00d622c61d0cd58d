//! The table of cases: what cel-go said of each expression, and what is said here.

use serde_json::json;

use super::*;
use crate::meta::Value;

fn schema() -> Value {
    serde_json::from_str(include_str!("cases.schema.json")).expect("a schema")
}

fn object() -> Value {
    serde_json::from_str(include_str!("cases.object.json")).expect("an object")
}

fn shown(value: &Val<'_>) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Val::Null => "null".to_owned(),
        Val::Bool(it) => it.to_string(),
        Val::Int(it) => it.to_string(),
        Val::Uint(it) => format!("{it}u"),
        Val::Double(it) if !it.is_finite() => format!("double({})", if it.is_nan() { "NaN" } else if *it > 0.0 { "+Inf" } else { "-Inf" }),
        Val::Double(it) if it.fract() == 0.0 => format!("{it}.0"),
        Val::Double(it) => it.to_string(),
        Val::String(it) => json!(it).to_string(),
        Val::Bytes(it) => format!("b{}", it.iter().map(|it| format!("{it:02x}")).collect::<String>()),
        Val::Duration(_) | Val::Timestamp(_) => format!("{}({})", value.type_name(), value.to_json().expect("JSON").as_str().expect("text")),
        Val::Optional(None) => "none".to_owned(),
        Val::Optional(Some(it)) => format!("optional({})", shown(it)),
        Val::Type(it) => format!("type {it}"),
        Val::List(it) => format!("[{}]", list(it.iter().map(|it| shown(&it.expect("an item"))).collect())),
        Val::Map(it) => {
            let mut entries: Vec<String> = it.keys().iter().map(|key| format!("{}: {}", shown(key), it.find(key).expect("an entry").map_or("(hidden)".to_owned(), |it| shown(&it)))).collect();
            entries.sort();
            format!("{{{}}}", list(entries))
        }
        Val::Kube(it) => match it.type_name() {
            "kubernetes.NamedFormat" => "a kubernetes.NamedFormat".to_owned(),
            name => format!("{}({it})", name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase()),
        },
        other => format!("a {}", other.type_name()),
    }
}

struct Answers;

impl authorizer::Authorizer for Answers {
    fn authorize(&self, it: &authorizer::Question) -> authorizer::Decision {
        match it.verb.as_str() {
            "get" => authorizer::Decision { is_allowed: true, reason: "fine".to_owned(), ..Default::default() },
            "fail" => authorizer::Decision { error: "it failed".to_owned(), ..Default::default() },
            verb => {
                let who = it.service_account.as_ref().map_or("alice".to_owned(), |(namespace, name)| format!("system:serviceaccount:{namespace}:{name}"));
                let reason = format!("no {verb} {}/{}/{} in {} named {} for {who}", it.group, it.resource, it.subresource, it.namespace, it.name);
                authorizer::Decision { reason, ..Default::default() }
            }
        }
    }
}

fn environment(schema: &Value) -> Environment {
    let own = Decl::from_structural(schema, true, "selfType").expect("a type");
    Environment::default().with("self", own).with_dyn("object").with_authorizer()
}

/// The lines that follow an expression in the table.
fn outcome(text: &str, environment: &Environment, bindings: &Bindings<'_>) -> String {
    let program = match Program::compile(environment, text) {
        Ok(program) => program,
        Err(CompileError::Instantiation(why)) => return format!("  ! program: {why}\n"),
        Err(CompileError::Issues(issues)) => {
            let line = |it: &ast::Issue| {
                let (line, column) = issues.position(it.offset);
                format!("  ! {line}:{column} {}\n", it.message)
            };
            return issues.list.iter().map(line).collect();
        }
    };
    let mut budget = Budget::new(BUDGET);
    let result = program.evaluate(bindings, &mut budget);
    let most = if program.max_cost == u64::MAX { "*".to_owned() } else { program.max_cost.to_string() };
    let cost = format!("{} {most}", BUDGET - budget.0);
    match result {
        Ok(value) => format!("  = {} : {} | {cost}\n", shown(&value), program.output()),
        Err(why) => format!("  ? {why} | {cost}\n"),
    }
}

/// `cases.txt` was answered by cel-go with the libraries of apiserver v1.36; a line under an expression that begins with `~` is what is said here instead.
#[test]
fn expressions_answer_as_cel_go_does() {
    let (schema, object) = (schema(), object());
    let environment = environment(&schema);
    let check = authorizer::Check::new(&Answers);
    let bindings = Bindings::default().with("self", Val::typed(&object, &schema).expect("typed")).with("object", Val::json(&object)).with("authorizer", Val::Check(check.into()));
    let table = include_str!("cases.txt");
    let (mut all, mut wrong) = (0, Vec::new());
    for case in table.split("\n\n").map(str::trim_end).filter(|it| !it.is_empty()) {
        let (text, expected) = case.split_once('\n').expect("an expression and an outcome");
        all += 1;
        let found = outcome(text, &environment, &bindings);
        let differing: Vec<&str> = expected.lines().filter(|it| it.starts_with("  ~")).collect();
        let expected = if differing.is_empty() { format!("{expected}\n") } else { differing.iter().map(|it| format!("  {}\n", &it[4..])).collect() };
        if found != expected {
            wrong.push(format!("{text}\n{expected}but\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {all} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
