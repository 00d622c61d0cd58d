//! RBAC: which rules apply to a user, and what a set of rules allows.
//!
//! Roles and bindings are parsed once into an [`Index`] from subject to bindings; a decision looks only at the bindings of the user and its
//! groups. Source: kubernetes `plugin/pkg/auth/authorizer/rbac/rbac.go`, `pkg/registry/rbac/validation/rule.go`, `pkg/registry/rbac/*/policybased`,
//! component-helpers `auth/rbac/validation/policy_comparator.go`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    identity::{Attributes, User},
    tokens::quoted,
};
use crate::meta::{LabelSelector, Meta, Result, Status, Value, object::GroupResource};

pub const GROUP: &str = "rbac.authorization.k8s.io";
const ALL: &str = "*";

/// `rbac/v1.PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// Every role and binding of the cluster, found by subject.
#[derive(Debug, Default)]
pub struct Index {
    cluster: Bindings,
    namespaces: HashMap<String, Bindings>,
    roles: Roles,
}

/// The bindings of one namespace, or those of the cluster.
#[derive(Debug, Default)]
struct Bindings {
    bindings: Vec<Binding>,
    /// User name → (place in `bindings`, place of the subject). Service accounts stand under their user names.
    users: HashMap<String, Vec<(u32, u32)>>,
    groups: HashMap<String, Vec<(u32, u32)>>,
}

#[derive(Debug)]
struct Binding {
    name: String,
    namespace: String,
    role: RoleRef,
    subjects: Vec<Subject>,
    /// The rules of the role, or why there are none.
    rules: std::result::Result<Rules, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

type Rules = Arc<[Rule]>;

#[derive(Debug, Default)]
struct Roles {
    /// By (namespace, name); ClusterRoles have no namespace.
    rules: HashMap<(String, String), Rules>,
}

/// What a walk over the rules of a user found.
pub enum Found<'a> {
    Rule {
        rule: &'a Rule,
        source: Source<'a>,
    },
    /// A binding whose role cannot be read.
    Error(&'a str),
}

/// The binding and the subject in it by which a rule applies; prints as upstream describes it.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    binding: &'a Binding,
    subject: &'a Subject,
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !holds(&self.verbs, &attributes.verb) {
            return false;
        }
        if attributes.is_resource() {
            holds(&self.api_groups, &attributes.group) && self.has_resource(attributes) && self.has_name(&attributes.name)
        } else {
            self.non_resource_urls.iter().any(|it| it == ALL || url_covers(it, &attributes.path))
        }
    }

    fn has_resource(&self, attributes: &Attributes) -> bool {
        let (resource, subresource) = (attributes.resource.as_str(), attributes.subresource.as_str());
        self.resources.iter().any(|rule| {
            if subresource.is_empty() {
                return rule == ALL || rule == resource;
            }
            rule == ALL || matches!(rule.split_once('/'), Some((left, right)) if right == subresource && (left == ALL || left == resource))
        })
    }

    fn has_name(&self, name: &str) -> bool {
        self.resource_names.is_empty() || self.resource_names.iter().any(|it| it == name)
    }

    /// Rules of one verb, one resource and at most one name each, that allow the same.
    fn parts(&self) -> Vec<Rule> {
        let mut parts = Vec::new();
        for (group, resource, verb) in triples(&self.api_groups, &self.resources, &self.verbs) {
            let part = Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
            match self.resource_names.as_slice() {
                [] => parts.push(part),
                names => parts.extend(names.iter().map(|name| Rule { resource_names: one(name), ..part.clone() })),
            }
        }
        for url in &self.non_resource_urls {
            parts.extend(self.verbs.iter().map(|verb| Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() }));
        }
        parts
    }

    /// Whether this rule allows all that `part` (of [`Rule::parts`]) allows.
    fn covers(&self, part: &Rule) -> bool {
        let has_names = self.resource_names.is_empty() || (!part.resource_names.is_empty() && has_all(&self.resource_names, &part.resource_names));
        (self.verbs.iter().any(|it| it == ALL) || has_all(&self.verbs, &part.verbs))
            && (self.api_groups.iter().any(|it| it == ALL) || has_all(&self.api_groups, &part.api_groups))
            && part.resources.iter().all(|it| self.covers_resource(it))
            && has_names
            && part.non_resource_urls.iter().all(|url| self.non_resource_urls.iter().any(|it| url_covers(it, url)))
    }

    fn covers_resource(&self, resource: &str) -> bool {
        let subresource = resource.split_once('/').map(|(_, it)| it);
        let is_any = |rule: &str| subresource.is_some_and(|it| rule.strip_prefix("*/") == Some(it));
        self.resources.iter().any(|rule| rule == ALL || rule == resource || is_any(rule))
    }
}

/// `rbacv1helpers.CompactString`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let filled = fields.into_iter().filter(|(_, texts)| !texts.is_empty());
        let parts: Vec<String> = filled.map(|(name, texts)| format!("{name}:{}", quoted(texts))).collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding { name, namespace, role, .. } = self.binding;
        match namespace.as_str() {
            "" => write!(f, "ClusterRoleBinding {name:?} of {} {:?} to ", role.kind, role.name)?,
            namespace => write!(f, "RoleBinding \"{name}/{namespace}\" of {} {:?} to ", role.kind, role.name)?,
        }
        let Subject { kind, name, namespace: own } = self.subject;
        match kind.as_str() {
            "ServiceAccount" => write!(f, "{kind} \"{name}/{}\"", if own.is_empty() { namespace } else { own }),
            _ => write!(f, "{kind} {name:?}"),
        }
    }
}

impl Index {
    /// Indexes Roles and ClusterRoles, RoleBindings and ClusterRoleBindings. Objects that do not read as such grant nothing.
    pub fn new<'a>(roles: impl IntoIterator<Item = &'a Value>, bindings: impl IntoIterator<Item = &'a Value>) -> Self {
        let rules = roles.into_iter().map(|role| ((role.namespace().to_owned(), role.name().to_owned()), rules_of(role).into()));
        let mut index = Self { roles: Roles { rules: rules.collect() }, ..Self::default() };
        for binding in bindings {
            index.add(binding);
        }
        index
    }

    fn add(&mut self, object: &Value) {
        let read = |field: &str| object.get(field).cloned().unwrap_or_default();
        let role: RoleRef = serde_json::from_value(read("roleRef")).unwrap_or_default();
        let subjects: Vec<Subject> = serde_json::from_value(read("subjects")).unwrap_or_default();
        let (name, namespace) = (object.name().to_owned(), object.namespace().to_owned());
        let rules = self.roles.referred(&role.kind, &role.name, &namespace);
        let bindings = match namespace.as_str() {
            "" => &mut self.cluster,
            _ => self.namespaces.entry(namespace.clone()).or_default(),
        };
        bindings.add(Binding { name, namespace, role, subjects, rules });
    }

    /// Calls `visit` with the rules that apply to `user` in `namespace`, those of the cluster first, until it returns true.
    pub fn find<'a>(&'a self, user: &User, namespace: &str, mut visit: impl FnMut(Found<'a>) -> bool) {
        if !self.cluster.find(user, &mut visit) && !namespace.is_empty() {
            if let Some(bindings) = self.namespaces.get(namespace) {
                bindings.find(user, &mut visit);
            }
        }
    }

    /// The rules that apply to `user` in `namespace`, and the bindings' errors.
    pub fn rules_for(&self, user: &User, namespace: &str) -> (Vec<&Rule>, Vec<&str>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        self.find(user, namespace, |found| {
            match found {
                Found::Rule { rule, .. } => rules.push(rule),
                Found::Error(error) => errors.push(error),
            }
            false
        });
        (rules, errors)
    }

    /// Whether a rule of the ClusterRole `name` allows it, whoever is bound to that.
    pub fn role_allows(&self, name: &str, attributes: &Attributes) -> bool {
        self.roles.rules.get(&(String::new(), name.to_owned())).is_some_and(|rules| rules.iter().any(|it| it.allows(attributes)))
    }

    /// The reason why RBAC allows it, or the errors met on the way, if any.
    pub fn decide(&self, user: &User, attributes: &Attributes) -> std::result::Result<String, String> {
        let (mut reason, mut errors) = (None, Vec::new());
        self.find(user, &attributes.namespace, |found| {
            match found {
                Found::Rule { rule, source } if rule.allows(attributes) => reason = Some(format!("RBAC: allowed by {source}")),
                Found::Rule { .. } => (),
                Found::Error(error) => errors.push(error),
            }
            reason.is_some()
        });
        reason.ok_or_else(|| aggregate_errors(&errors).map(|it| format!("RBAC: {it}")).unwrap_or_default())
    }

    /// Refuses rules that `user` does not hold itself (`ConfirmNoEscalation`).
    fn confirm(&self, user: &User, namespace: &str, rules: &[Rule]) -> std::result::Result<(), String> {
        let (held, errors) = self.rules_for(user, namespace);
        let missing: Vec<Rule> = rules.iter().flat_map(Rule::parts).filter(|part| !held.iter().any(|it| it.covers(part))).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let described: BTreeSet<String> = compact(missing).iter().map(ToString::to_string).collect();
        let described: Vec<String> = described.into_iter().collect();
        let errors = aggregate_errors(&errors).map(|it| format!("; resolution errors: [{it}]")).unwrap_or_default();
        let (name, groups) = (&user.name, quoted(&user.groups));
        Err(format!("user {name:?} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{}{errors}", described.join("\n")))
    }
}

impl Bindings {
    fn add(&mut self, binding: Binding) {
        let at = self.bindings.len() as u32;
        for (subject, place) in binding.subjects.iter().zip(0u32..) {
            let namespace = if subject.namespace.is_empty() { &binding.namespace } else { &subject.namespace };
            match subject.kind.as_str() {
                "User" => self.users.entry(subject.name.clone()).or_default().push((at, place)),
                "Group" => self.groups.entry(subject.name.clone()).or_default().push((at, place)),
                "ServiceAccount" if !namespace.is_empty() => {
                    self.users.entry(User::service_account(namespace, &subject.name).name).or_default().push((at, place));
                }
                _ => (),
            }
        }
        self.bindings.push(binding);
    }

    /// Visits in the order of the bindings; returns whether the visitor was satisfied.
    fn find<'a>(&'a self, user: &User, visit: &mut impl FnMut(Found<'a>) -> bool) -> bool {
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        let mut places: Vec<(u32, u32)> = self.users.get(&user.name).into_iter().chain(of_groups).flatten().copied().collect();
        places.sort_unstable();
        places.dedup_by_key(|(binding, _)| *binding);
        places.into_iter().any(|(binding, subject)| self.bindings[binding as usize].visit(subject as usize, visit))
    }
}

impl Binding {
    fn visit<'a>(&'a self, subject: usize, visit: &mut impl FnMut(Found<'a>) -> bool) -> bool {
        let source = Source { binding: self, subject: &self.subjects[subject] };
        match &self.rules {
            Ok(rules) => rules.iter().any(|rule| visit(Found::Rule { rule, source })),
            Err(error) => visit(Found::Error(error)),
        }
    }
}

impl Roles {
    fn referred(&self, kind: &str, name: &str, namespace: &str) -> std::result::Result<Rules, String> {
        let namespace = match kind {
            "Role" => namespace,
            "ClusterRole" => "",
            _ => return Err(format!("unsupported role reference kind: {kind:?}")),
        };
        let rules = self.rules.get(&(namespace.to_owned(), name.to_owned()));
        rules.cloned().ok_or_else(|| format!("{}.{GROUP} {name:?} not found", kind.to_lowercase()))
    }
}

/// Refuses a create (`old` is `None`) or update of a role or binding by which `user` would grant more than it holds. `resource` is the plural
/// in the group `rbac.authorization.k8s.io`; other resources pass. `is_authorized` asks the authorizer about the verbs `escalate` and `bind`.
pub fn check_escalation(
    index: &Index,
    user: &User,
    resource: &str,
    namespace: &str,
    object: &Value,
    old: Option<&Value>,
    is_authorized: impl Fn(&Attributes) -> bool,
) -> Result<()> {
    if user.is_in(super::identity::MASTERS) || old.is_some_and(|old| is_only_collecting_garbage(object, old)) {
        return Ok(());
    }
    let checked = match resource {
        "roles" | "clusterroles" => check_role(index, user, resource, namespace, object, old, is_authorized),
        "rolebindings" | "clusterrolebindings" => check_binding(index, user, namespace, object, is_authorized)?,
        _ => Ok(()),
    };
    checked.map_err(|why| Status::forbidden(&GroupResource::new(GROUP, resource.to_owned()), object.name(), why))
}

fn check_role(
    index: &Index,
    user: &User,
    resource: &str,
    namespace: &str,
    object: &Value,
    old: Option<&Value>,
    is_authorized: impl Fn(&Attributes) -> bool,
) -> std::result::Result<(), String> {
    let name = if old.is_some() { object.name() } else { "" };
    if is_authorized(&question("escalate", resource, namespace, name)) {
        return Ok(());
    }
    index.confirm(user, namespace, &rules_of(object))?;
    let aggregates = |role: &Value| !role.items_at(&["aggregationRule", "clusterRoleSelectors"]).is_empty();
    if aggregates(object) || old.is_some_and(aggregates) {
        let cluster_admin = index.confirm(user, namespace, &full_authority());
        cluster_admin.map_err(|_| "must have cluster-admin privileges to use the aggregationRule".to_owned())?;
    }
    Ok(())
}

fn check_binding(
    index: &Index,
    user: &User,
    namespace: &str,
    object: &Value,
    is_authorized: impl Fn(&Attributes) -> bool,
) -> Result<std::result::Result<(), String>> {
    let (kind, name) = (object.text_at(&["roleRef", "kind"]), object.text_at(&["roleRef", "name"]));
    let resource = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
    if is_authorized(&question("bind", resource, namespace, name)) {
        return Ok(Ok(()));
    }
    let missing = |_| Status::not_found(&GroupResource::new(GROUP, kind.to_lowercase()), name);
    let rules = index.roles.referred(kind, name, namespace).map_err(missing)?;
    Ok(index.confirm(user, namespace, &rules))
}

fn question(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        version: ALL.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

/// `rbacregistry.IsOnlyMutatingGCFields`.
fn is_only_collecting_garbage(object: &Value, old: &Value) -> bool {
    let strip = |value: &Value| {
        let mut value = value.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            value.remove_metadata(field);
        }
        value
    };
    strip(object) == strip(old)
}

/// The rules that a ClusterRole with this `aggregationRule` gathers from `roles`: of each selector the matching roles by name, each rule once.
/// Source: kubernetes `pkg/controller/clusterroleaggregation`.
pub fn aggregate<'a>(own_name: &str, aggregation_rule: &Value, roles: impl IntoIterator<Item = &'a Value>) -> Vec<Value> {
    let by_name: BTreeMap<&str, &Value> = roles.into_iter().filter(|role| role.name() != own_name).map(|role| (role.name(), role)).collect();
    let mut rules: Vec<Value> = Vec::new();
    for selector in aggregation_rule.items_at(&["clusterRoleSelectors"]) {
        let selector = LabelSelector::from_value(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing());
        for role in by_name.values().filter(|role| selector.matches_object(role)) {
            let new = role.items_at(&["rules"]).iter().filter(|rule| !rules.contains(rule)).cloned().collect::<Vec<_>>();
            rules.extend(new);
        }
    }
    rules
}

/// The rules of a Role or ClusterRole; those that do not read as rules grant nothing.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    role.items_at(&["rules"]).iter().filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
}

fn full_authority() -> Vec<Rule> {
    let all = || one(ALL);
    vec![
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

fn one(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

fn triples<'a>(groups: &'a [String], resources: &'a [String], verbs: &'a [String]) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    let pairs = groups.iter().flat_map(move |group| resources.iter().map(move |resource| (group, resource)));
    pairs.flat_map(move |(group, resource)| verbs.iter().map(move |verb| (group.as_str(), resource.as_str(), verb.as_str())))
}

/// Joins rules that differ only by verb and have one group, one resource and at most one name (`CompactRules`).
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let (mut compacted, mut simple) = (Vec::new(), BTreeMap::<_, Rule>::new());
    for rule in rules {
        if !rule.non_resource_urls.is_empty() {
            compacted.push(rule);
            continue;
        }
        let key = (rule.api_groups.clone(), rule.resources.clone(), rule.resource_names.clone());
        match simple.get_mut(&key) {
            Some(known) => known.verbs.extend(rule.verbs),
            None => _ = simple.insert(key, rule),
        }
    }
    compacted.extend(simple.into_values());
    compacted
}

fn holds(texts: &[String], text: &str) -> bool {
    texts.iter().any(|it| it == ALL || it == text)
}

fn has_all(texts: &[String], wanted: &[String]) -> bool {
    wanted.iter().all(|it| texts.contains(it))
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

/// `utilerrors.NewAggregate`: each error once, in brackets when several.
fn aggregate_errors(errors: &[&str]) -> Option<String> {
    let mut distinct: Vec<&str> = Vec::new();
    for error in errors {
        if !distinct.contains(error) {
            distinct.push(error);
        }
    }
    match distinct.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

#[cfg(test)]
mod tests;
