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
    fn authorize(&self, it: &authorizer::Attributes) -> authorizer::Decision {
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
    Environment::default().with("self", own).with("object", Decl::scalar(Type::DYN)).with_authorizer()
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

/// Expressions nobody would write: tokens in any order, trees of random shape, cases with random edits, and deep nests.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % most
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn tokens(&mut self) -> String {
        const TOKENS: [&str; 44] = [
            "self", "object", ".", "?", ":", "(", ")", "[", "]", "{", "}", ",", "+", "-", "*", "/", "%", "!", "==", "!=", "<", "&&", "||", " in ", "1", "0", "9223372036854775807", "1u", "1.5", "'a'",
            "b'x'", "true", "null", "list", "all(x,", "map(x,", "x", "has(", "\"", "\\", "@", "format(", "authorizer", "\u{1f600}",
        ];
        (0..1 + self.below(30)).map(|_| self.one(&TOKENS)).collect()
    }

    fn tree(&mut self, depth: usize) -> String {
        const LEAVES: [&str; 20] = [
            "self.i", "self.s", "self.list", "self.m", "self.strs", "self.lm", "object", "object.list", "x", "1", "'a'", "[]", "{}", "null", "true", "2.5", "self.ts", "self.dur", "quantity('1')", "optional.none()",
        ];
        const CALLS: [&str; 24] = [
            "size", "sum", "max", "sort", "distinct", "reverse", "first", "isSorted", "flatten", "trim", "lowerAscii", "join", "hasValue", "value", "getHours", "asInteger", "unwrapOpt", "last", "min", "string", "int", "type", "dyn", "double",
        ];
        if depth == 0 {
            return self.one(&LEAVES).to_owned();
        }
        let part = |it: &mut Self| it.tree(depth - 1);
        match self.below(9) {
            0 => format!("({} {} {})", part(self), self.one(&["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", "in"]), part(self)),
            1 => format!("{}.{}()", part(self), self.one(&CALLS)),
            2 => format!("{}({})", self.one(&CALLS), part(self)),
            3 => format!("{}.{}(x, {})", part(self), self.one(&["all", "exists", "exists_one", "map", "filter", "sortBy", "optMap"]), part(self)),
            4 => format!("({} ? {} : {})", part(self), part(self), part(self)),
            5 => format!("[{}, {}]", part(self), part(self)),
            6 => format!("{{{}: {}}}", part(self), part(self)),
            7 => format!("{}[{}]", part(self), part(self)),
            _ => format!("{}.{}(i, x, {})", part(self), self.one(&["transformList", "transformMap", "all"]), part(self)),
        }
    }

    fn edited(&mut self, text: &str) -> String {
        let mut letters: Vec<char> = text.chars().collect();
        for _ in 0..1 + self.below(4) {
            let at = self.below(letters.len() + 1);
            match self.below(3) {
                0 if at < letters.len() => _ = letters.remove(at),
                1 if at < letters.len() => letters[at] = char::from(32 + self.below(95) as u8),
                _ => letters.insert(at, char::from(32 + self.below(95) as u8)),
            }
        }
        letters.into_iter().collect()
    }

    fn nest(&mut self) -> String {
        let (open, close) = [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("{1:", "}"), ("size(", ")"), ("1+", ""), ("true?1:", ""), ("self.?", ""), ("[1].map(x,", ")"), ("(1+1+1+1+1+", ")"), ("true&&", "")][self.below(12)];
        let count = 1 + self.below(600);
        format!("{}1{}{}", open.repeat(count), close.repeat(count), self.one(&["", ".a", "[0]", ".optMap(x, x).optMap(x, x).optMap(x, x).optMap(x, x).optMap(x, x)"]))
    }
}

/// Every input ends, with a value or an error. `HOWDAH_FUZZ` is the number of inputs; the seed is fixed, so that a failure can be seen again.
#[test]
fn no_expression_panics_or_runs_on() {
    const INPUTS: usize = 400;
    let count = std::env::var("HOWDAH_FUZZ").ok().and_then(|it| it.parse().ok()).unwrap_or(INPUTS);
    let (schema, object) = (schema(), object());
    let environment = environment(&schema).with_objects();
    let cases: Vec<&str> = include_str!("cases.txt").split("\n\n").filter_map(|it| it.split_once('\n')).map(|it| it.0).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ count as u64);
    let mut ran = 0;
    for _ in 0..count {
        let text = match random.below(4) {
            0 => random.tokens(),
            1 => {
                let depth = 1 + random.below(5);
                random.tree(depth)
            }
            2 => {
                let case = cases[random.below(cases.len())];
                random.edited(case)
            }
            _ => random.nest(),
        };
        let program = match Program::compile(&environment, &text) {
            Ok(program) => program,
            Err(why) => {
                assert!(!why.to_string().is_empty());
                continue;
            }
        };
        let check = authorizer::Check::new(&Answers);
        let bindings = Bindings::default().with("self", Val::typed(&object, &schema).expect("typed")).with("object", Val::json(&object)).with("authorizer", Val::Check(check.into()));
        if let Ok(value) = program.evaluate(&bindings, &mut Budget::new(BUDGET)) {
            ran += 1;
            _ = (value.to_json(), value.equals(&value));
        }
    }
    assert!(ran > count / 80, "only {ran} of {count} had a value");
}
