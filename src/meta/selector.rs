//! Label and field selectors: their texts, `metav1.LabelSelector`, and what they match.
//! Source: apimachinery `pkg/labels/selector.go`, `pkg/fields/selector.go`, `pkg/apis/meta/v1/helpers.go`.

use std::{cmp::Ordering, collections::BTreeMap, fmt, sync::LazyLock};

use regex::Regex;
use serde_json::Value;

use super::{names, object::Meta};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    is_nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Equals,
    NotEquals,
    GreaterThan,
    LessThan,
}

/// How a text writes operators that take values, the usual way first.
const SIGNS: [(Operator, &str); 7] = [
    (Operator::Equals, "="), (Operator::Equals, "=="), (Operator::NotEquals, "!="), (Operator::GreaterThan, ">"), (Operator::LessThan, "<"),
    (Operator::In, "in"), (Operator::NotIn, "notin"),
];

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), is_nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.is_nothing
    }

    /// From `matchLabels`: all of them must be equal.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirement = |(key, value): (&str, &str)| Requirement { key: key.to_owned(), operator: Operator::Equals, values: vec![value.to_owned()] };
        Self { requirements: labels.into_iter().map(requirement).collect(), is_nothing: false }
    }

    /// From a `metav1.LabelSelector` in JSON. Absent selects nothing, empty everything (`LabelSelectorAsSelector`).
    pub fn from_value(selector: Option<&Value>) -> Result<Self, String> {
        let Some(selector) = selector.filter(|it| !it.is_null()) else {
            return Ok(Self::nothing());
        };
        let labels = selector.map_at(&["matchLabels"]).into_iter().flatten();
        let mut res = Self::from_map(labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))));
        for expression in selector.items_at(&["matchExpressions"]) {
            let values = expression.texts_at(&["values"]).map(str::to_owned).collect();
            let name = expression.text("operator");
            let known = [Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist].into_iter().find(|it| format!("{it:?}") == name);
            let operator = known.ok_or_else(|| format!("{name:?} is not a valid label selector operator"))?;
            res.requirements.push(Requirement { key: expression.text("key").to_owned(), operator, values });
        }
        res.requirements.iter().try_for_each(Requirement::check)?;
        Ok(res)
    }

    /// Parses the text form, `a=b,c in (d,e),!f`; the error is upstream's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: TOKEN.find_iter(text).map(|it| it.as_str()).collect(), at: 0 };
        Ok(Self { requirements: parser.requirements()?, is_nothing: false })
    }

    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.is_nothing && self.requirements.iter().all(|it| it.matches(get(&it.key)))
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether the object's labels match.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.map_at(&["metadata", "labels"]);
        self.matches_with(|key| labels?.get(key)?.as_str())
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let is_member = || value.is_some_and(|it| self.values.iter().any(|other| other == it));
        match self.operator {
            Operator::In | Operator::Equals => is_member(),
            Operator::NotIn | Operator::NotEquals => !is_member(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compared(value) == Some(Ordering::Greater),
            Operator::LessThan => self.compared(value) == Some(Ordering::Less),
        }
    }

    /// A label's number beside the requirement's.
    fn compared(&self, value: Option<&str>) -> Option<Ordering> {
        let number = |text: &str| text.parse::<i64>().ok();
        Some(number(value?)?.cmp(&number(self.values.first()?)?))
    }

    /// `NewRequirement`'s checks.
    fn check(&self) -> Result<(), String> {
        if let Some(problem) = names::qualified_name(&self.key).first() {
            return Err(format!("<nil>: Invalid value: {:?}: {problem}", self.key));
        }
        match self.operator {
            Operator::In | Operator::NotIn if self.values.is_empty() => {
                return Err("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into());
            }
            Operator::Exists | Operator::DoesNotExist if !self.values.is_empty() => {
                return Err("values: Invalid value: []: values set must be empty for exists and does not exist".into());
            }
            Operator::GreaterThan | Operator::LessThan if self.values.iter().any(|it| it.parse::<i64>().is_err()) => {
                return Err(format!("values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer", self.values[0]));
            }
            _ => (),
        }
        for (at, value) in self.values.iter().enumerate() {
            if let Some(problem) = names::label_value(value).first() {
                return Err(format!("values[{at}][{}]: Invalid value: {value:?}: {problem}", self.key));
            }
        }
        Ok(())
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        let sign = SIGNS.iter().find(|it| it.0 == self.operator).map_or("", |it| it.1);
        match self.operator {
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::In | Operator::NotIn => write!(f, "{key} {sign} ({values})"),
            _ => write!(f, "{key}{sign}{values}"),
        }
    }
}

/// Symbols and words.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"==|!=|[!=(),><\x00]|[^\s!=(),><\x00]+").expect("a constant pattern"));

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(|it: char| "!=(),><\u{0}".contains(it))
}

/// Behind the last token stand empty ones.
struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> &'a str {
        self.at += 1;
        self.tokens.get(self.at - 1).copied().unwrap_or_default()
    }

    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut res = Vec::new();
        while !self.peek().is_empty() {
            if !is_word(self.peek()) && self.peek() != "!" {
                return Err(format!("found '{}', expected: !, identifier, or 'end of string'", self.peek()));
            }
            let requirement = self.requirement().and_then(|it| it.check().map(|()| it));
            res.push(requirement.map_err(|why| format!("unable to parse requirement: {why}"))?);
            match self.next() {
                "" => break,
                "," if is_word(self.peek()) || self.peek() == "!" => (),
                "," => return Err(format!("found '{}', expected: identifier after ','", self.peek())),
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
        Ok(res)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let is_negated = self.peek() == "!";
        self.at += usize::from(is_negated);
        let key = match self.next() {
            key if is_word(key) => key.to_owned(),
            other => return Err(format!("found '{other}', expected: identifier")),
        };
        let operator = match self.peek() {
            _ if is_negated => return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() }),
            "" | "," => return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() }),
            sign => match SIGNS.iter().find(|it| it.1 == sign) {
                Some((operator, _)) => *operator,
                None => return Err(format!("found '{sign}', expected: in, notin, =, ==, !=, gt, lt")),
            },
        };
        self.next();
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.value(&["", ","], "identifier")?],
        };
        Ok(Requirement { key, operator, values })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != "(" {
            return Err(format!("found '{open}' expected: '('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value(&[",", ")"], "',', ')' or identifier")?);
            match self.next() {
                "," => (),
                ")" => break,
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }

    /// A word, or nothing before one of the tokens that may follow.
    fn value(&mut self, follow: &[&str], expected: &str) -> Result<String, String> {
        match self.peek() {
            next if follow.contains(&next) => Ok(String::new()),
            next if is_word(next) => Ok(self.next().to_owned()),
            other => Err(format!("found '{other}', expected: {expected}")),
        }
    }
}

/// `metadata.name=web,status.phase!=Failed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub is_equal: bool,
    pub value: String,
}

impl FieldSelector {
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value that `field` must have, when exactly one is asked for (`RequiresExactMatch`).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|it| it.is_equal && it.field == field).map(|it| it.value.as_str())
    }

    /// Parses the text form. The values may escape `\`, `,` and `=` with a backslash.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { terms: TERM.find_iter(text).map(|it| FieldTerm::parse(it.as_str())).collect::<Result<_, _>>()? })
    }

    /// The same terms over fields of other names.
    pub fn renamed(mut self, name: impl Fn(&str) -> String) -> Self {
        self.terms.iter_mut().for_each(|it| it.field = name(&it.field));
        self
    }

    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> std::borrow::Cow<'a, str>) -> bool {
        self.terms.iter().all(|it| (get(&it.field) == it.value) == it.is_equal)
    }
}

/// What stands between commas, and what a term consists of. A backslash takes its meaning from what follows it.
static TERM: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?s)(?:\\.|\\$|[^,\\])+").expect("a constant pattern"));
static PARTS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?s)^((?:\\.|[^=\\])*?)(!=|==|=)(.*)$").expect("a constant pattern"));

impl FieldTerm {
    fn parse(text: &str) -> Result<Self, String> {
        let found = PARTS.captures(text).ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{text}'"))?;
        let (_, [field, operator, value]) = found.extract();
        Ok(Self { field: field.to_owned(), is_equal: operator != "!=", value: unescape(value)? })
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut res = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => res.push(escaped),
                Some(other) => return Err(format!("invalid field selector: invalid escape sequence: \\{other}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {char}")),
            _ => res.push(char),
        }
    }
    Ok(res)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn label_selectors_match() {
        let web = labels(&[("app", "web"), ("tier", "2")]);
        let cases = [
            ("", true), ("app=web", true), ("app==web", true), ("app!=web", false), ("x!=y", true), ("app", true), ("!app", false),
            ("app in (db, web)", true), ("app notin (db)", true), ("x notin (db)", true), ("tier>1", true), ("tier<2", false),
            ("app=web,tier=3", false), ("app in (web),!x", true), ("app=", false),
        ];
        for (text, is_match) in cases {
            assert_eq!(LabelSelector::parse(text).map(|it| it.matches(&web)), Ok(is_match), "{text}");
        }
    }

    #[test]
    fn bad_label_selectors_are_refused() {
        for text in ["app in", "app in ()x", "=x", "a=b,", "a b", "a in (b", "a>x", "-a", "a=b c"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn field_selectors_match_and_escape() {
        let get = |field: &str| std::borrow::Cow::from(if field == "metadata.name" { "a,b" } else { "" });
        for (text, is_match) in [("metadata.name=a\\,b", true), ("metadata.name!=x", true), ("metadata.name==x", false), ("", true)] {
            assert_eq!(FieldSelector::parse(text).map(|it| it.matches_with(get)), Ok(is_match), "{text}");
        }
        assert_eq!(FieldSelector::parse("a!b\\=c=\\\\\\,,d!=").map(|it| it.terms.len()), Ok(2));
        for text in ["metadata.name", "a=b=c", "a=\\x", "a=\\", "a\\=b"] {
            assert!(FieldSelector::parse(text).is_err(), "{text}");
        }
    }
}
