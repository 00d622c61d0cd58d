//! One webhook of a configuration, read once, and which requests it is for. Pure.
//! Source: apiserver `pkg/admission/plugin/webhook/{generic/webhook.go,predicates}`.

use std::{cell::LazyCell, time::Duration};

use super::super::{admission::Operation, outgoing::Destination};
use crate::{
    kinds::expressions,
    meta::{LabelSelector, Meta, Value},
    schema::cel::Program,
};

#[derive(Debug)]
pub struct Hook {
    pub name: String,
    /// `configuration/name/place`, for the second round.
    pub id: String,
    rules: Vec<Rule>,
    /// Requests in other versions of the same objects are for it too (`matchPolicy: Equivalent`).
    pub is_equivalent: bool,
    pub namespaces: Result<LabelSelector, String>,
    pub objects: Result<LabelSelector, String>,
    pub fails_open: bool,
    /// Nothing but the request's object is changed by it, so that it may be asked in a dry run.
    pub is_harmless: bool,
    pub is_reinvoked: bool,
    pub timeout: Duration,
    pub review_versions: Vec<String>,
    pub destination: Result<Destination, String>,
    /// The texts of its match conditions and what they compile to.
    pub conditions: Vec<(String, Result<Program, String>)>,
}

#[derive(Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
}

/// What a rule is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub is_namespaced: bool,
}

impl Hook {
    /// The webhooks of a configuration, in their order.
    pub fn all(configuration: &Value) -> Vec<Self> {
        configuration.items_at(&["webhooks"]).iter().enumerate().map(|(at, it)| Self::new(configuration.name(), at, it)).collect()
    }

    fn new(configuration: &str, at: usize, webhook: &Value) -> Self {
        let seconds = webhook.int_at(&["timeoutSeconds"]).and_then(|it| u64::try_from(it).ok()).unwrap_or(10);
        Self {
            name: webhook.text("name").to_owned(),
            id: format!("{configuration}/{}/{at}", webhook.text("name")),
            rules: webhook.items_at(&["rules"]).iter().map(Rule::new).collect(),
            is_equivalent: webhook.text("matchPolicy") != "Exact",
            namespaces: selector(webhook, "namespaceSelector"),
            objects: selector(webhook, "objectSelector"),
            fails_open: webhook.text("failurePolicy") == "Ignore",
            is_harmless: matches!(webhook.text("sideEffects"), "None" | "NoneOnDryRun"),
            is_reinvoked: webhook.text("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            review_versions: texts(webhook, "admissionReviewVersions"),
            destination: Destination::new(&webhook["clientConfig"]),
            conditions: conditions(webhook.items_at(&["matchConditions"])),
        }
    }

    /// The place under which the webhook knows the request: its own, or an equivalent one by the first rule that has any.
    pub fn matched<'a>(&self, operation: Operation, own: &'a Place, equivalents: &'a [Place]) -> Option<&'a Place> {
        if self.rules.iter().any(|it| it.matches(operation, own)) {
            return Some(own);
        }
        let others = || equivalents.iter().filter(|it| self.is_equivalent && *it != own);
        self.rules.iter().find_map(|rule| others().find(|it| rule.matches(operation, it)))
    }
}

fn conditions(list: &[Value]) -> Vec<(String, Result<Program, String>)> {
    let environment = LazyCell::new(expressions::environment);
    list.iter().map(|it| it.text("expression").trim()).map(|it| (it.to_owned(), expressions::condition(&environment, it))).collect()
}

/// An absent selector selects everything, as its default does.
fn selector(webhook: &Value, field: &str) -> Result<LabelSelector, String> {
    match webhook.get(field).filter(|it| !it.is_null()) {
        None => Ok(LabelSelector::everything()),
        found => LabelSelector::from_value(found),
    }
}

fn texts(object: &Value, field: &str) -> Vec<String> {
    object.items_at(&[field]).iter().filter_map(|it| Some(it.as_str()?.to_owned())).collect()
}

impl Rule {
    fn new(rule: &Value) -> Self {
        Self {
            operations: texts(rule, "operations"),
            groups: texts(rule, "apiGroups"),
            versions: texts(rule, "apiVersions"),
            resources: texts(rule, "resources"),
            scope: rule.text("scope").to_owned(),
        }
    }

    fn matches(&self, operation: Operation, place: &Place) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|it| it == "*" || it == wanted);
        self.is_in_scope(place)
            && has(&self.operations, operation.as_str())
            && has(&self.groups, &place.group)
            && has(&self.versions, &place.version)
            && self.resources.iter().any(|it| {
                let (resource, subresource) = it.split_once('/').unwrap_or((it, ""));
                (resource == "*" || resource == place.resource) && (subresource == "*" || subresource == place.subresource)
            })
    }

    fn is_in_scope(&self, place: &Place) -> bool {
        match self.scope.as_str() {
            "" | "*" => true,
            "Namespaced" => place.is_namespaced,
            "Cluster" => !place.is_namespaced,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn place(text: &str, is_namespaced: bool) -> Place {
        let mut parts = text.split('|').map(str::to_owned);
        let [group, version, resource, subresource] = [(); 4].map(|()| parts.next().unwrap_or_default());
        Place { group, version, resource, subresource, is_namespaced }
    }

    fn hook(rule: Value, policy: &str) -> Hook {
        Hook::new("c", 0, &json!({"name": "h", "matchPolicy": policy, "rules": [rule]}))
    }

    #[test]
    fn rules_match_as_upstreams() {
        let rule = |operations: &[&str], group: &str, version: &str, resource: &str, scope: &str| {
            json!({"operations": operations, "apiGroups": [group], "apiVersions": [version], "resources": [resource], "scope": scope})
        };
        let cases = [
            (rule(&["CREATE"], "", "v1", "pods", "*"), "|v1|pods", true, true),
            (rule(&["UPDATE"], "", "v1", "pods", "*"), "|v1|pods", true, false),
            (rule(&["*"], "*", "*", "*", "*"), "apps|v1|deployments", true, true),
            (rule(&["*"], "*", "*", "*", "*"), "apps|v1|deployments|scale", true, false),
            (rule(&["*"], "*", "*", "*/*", "*"), "apps|v1|deployments|scale", true, true),
            (rule(&["*"], "*", "*", "*/*", "*"), "apps|v1|deployments", true, true),
            (rule(&["*"], "*", "*", "*/scale", "*"), "apps|v1|deployments|status", true, false),
            (rule(&["*"], "", "*", "pods/*", "*"), "|v1|pods", true, true),
            (rule(&["*"], "", "*", "pods/exec", "*"), "|v1|pods", true, false),
            (rule(&["*"], "apps", "v1beta1", "deployments", "*"), "apps|v1|deployments", true, false),
            (rule(&["*"], "*", "*", "*", "Cluster"), "|v1|nodes", false, true),
            (rule(&["*"], "*", "*", "*", "Cluster"), "|v1|pods", true, false),
            (rule(&["*"], "*", "*", "*", "Namespaced"), "|v1|namespaces", false, false),
        ];
        for (rule, asked, is_namespaced, expected) in cases {
            let (hook, own) = (hook(rule.clone(), "Exact"), place(asked, is_namespaced));
            assert_eq!(hook.matched(Operation::Create, &own, &[]).is_some(), expected, "{rule} {asked}");
        }
    }

    #[test]
    fn equivalent_places_match_in_the_order_of_the_rules() {
        let rule = |versions: &[&str]| json!({"operations": ["*"], "apiGroups": ["g"], "apiVersions": versions, "resources": ["xs"]});
        let (v1, v2, v3) = (place("g|v1|xs", true), place("g|v2|xs", true), place("g|v3|xs", true));
        let all = [v1.clone(), v2.clone(), v3.clone()];
        let matched = |policy: &str, versions: &[&str], own: &Place| hook(rule(versions), policy).matched(Operation::Update, own, &all).cloned();
        assert_eq!(matched("Equivalent", &["v2"], &v1), Some(v2.clone()));
        assert_eq!(matched("Equivalent", &["v2", "v1"], &v1), Some(v1.clone()));
        assert_eq!(matched("Exact", &["v2"], &v1), None);
        let ordered = Hook::new("c", 0, &json!({"name": "h", "rules": [rule(&["v3"]), rule(&["v2"])]}));
        assert_eq!(ordered.matched(Operation::Update, &v1, &all), Some(&v3));
    }
}
