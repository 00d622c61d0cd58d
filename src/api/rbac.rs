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
use crate::meta::{LabelSelector, Meta, Result, Status, Value, object::GroupResource, status};

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
    /// By (namespace, name); ClusterRoles have no namespace.
    roles: HashMap<(String, String), Rules>,
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
        let has_names = self.resource_names.is_empty() || (!part.resource_names.is_empty() && part.resource_names.iter().all(|it| self.has_name(it)));
        part.verbs.iter().all(|it| holds(&self.verbs, it))
            && part.api_groups.iter().all(|it| holds(&self.api_groups, it))
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
        let mut index = Self { roles: rules.collect(), ..Self::default() };
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
        let rules = self.referred(&role.kind, &role.name, &namespace);
        let bindings = match namespace.as_str() {
            "" => &mut self.cluster,
            _ => self.namespaces.entry(namespace.clone()).or_default(),
        };
        bindings.add(Binding { name, namespace, role, subjects, rules });
    }

    /// The bindings by which rules apply to `user` in `namespace`, those of the cluster first.
    fn sources<'a, 'u>(&'a self, user: &'u User, namespace: &str) -> impl Iterator<Item = Source<'a>> + use<'a, 'u> {
        [&self.cluster].into_iter().chain(self.namespaces.get(namespace)).flat_map(move |it| it.sources(user))
    }

    /// The rules that apply to `user` in `namespace`, and the bindings' errors.
    pub fn rules_for<'a>(&'a self, user: &User, namespace: &str) -> (Vec<&'a Rule>, Vec<&'a str>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for source in self.sources(user, namespace) {
            match &source.binding.rules {
                Ok(found) => rules.extend(found.iter()),
                Err(error) => errors.push(error.as_str()),
            }
        }
        (rules, errors)
    }

    /// Whether a rule of the ClusterRole `name` allows it, whoever is bound to that.
    pub fn role_allows(&self, name: &str, attributes: &Attributes) -> bool {
        self.roles.get(&(String::new(), name.to_owned())).is_some_and(|rules| rules.iter().any(|it| it.allows(attributes)))
    }

    /// The reason why RBAC allows it, or the errors met on the way, if any.
    pub fn decide(&self, user: &User, attributes: &Attributes) -> std::result::Result<String, String> {
        let mut errors = Vec::new();
        for source in self.sources(user, &attributes.namespace) {
            match &source.binding.rules {
                Ok(rules) if rules.iter().any(|it| it.allows(attributes)) => return Ok(format!("RBAC: allowed by {source}")),
                Ok(_) => (),
                Err(error) => errors.push(error),
            }
        }
        Err(status::aggregate(&errors).map(|it| format!("RBAC: {it}")).unwrap_or_default())
    }

    /// The rules of the role that a binding in a namespace refers to.
    fn referred(&self, kind: &str, name: &str, namespace: &str) -> std::result::Result<Rules, String> {
        let namespace = match kind {
            "Role" => namespace,
            "ClusterRole" => "",
            _ => return Err(format!("unsupported role reference kind: {kind:?}")),
        };
        let rules = self.roles.get(&(namespace.to_owned(), name.to_owned()));
        rules.cloned().ok_or_else(|| format!("{}.{GROUP} {name:?} not found", kind.to_lowercase()))
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
        let errors = status::aggregate(&errors).map(|it| format!("; resolution errors: [{it}]")).unwrap_or_default();
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

    /// In the order of the bindings.
    fn sources<'a>(&'a self, user: &User) -> impl Iterator<Item = Source<'a>> + use<'a> {
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        let mut places: Vec<(u32, u32)> = self.users.get(&user.name).into_iter().chain(of_groups).flatten().copied().collect();
        places.sort_unstable();
        places.dedup_by_key(|(binding, _)| *binding);
        places.into_iter().map(|(binding, subject)| {
            let binding = &self.bindings[binding as usize];
            Source { binding, subject: &binding.subjects[subject as usize] }
        })
    }
}

/// A create (`old` is `None`) or an update of an object of the group `rbac.authorization.k8s.io`, by which nobody may grant more than he holds.
pub struct Grant<'a> {
    pub index: &'a Index,
    pub user: &'a User,
    /// The plural.
    pub resource: &'a str,
    pub namespace: &'a str,
    pub object: &'a Value,
    pub old: Option<&'a Value>,
    /// Asks the authorizer about the verbs `escalate` and `bind`.
    pub is_authorized: &'a dyn Fn(&Attributes) -> bool,
}

impl Grant<'_> {
    pub fn check(&self) -> Result<()> {
        if self.user.is_in(super::identity::MASTERS) || self.old.is_some_and(|old| is_only_collecting_garbage(self.object, old)) {
            return Ok(());
        }
        let checked = match self.resource {
            "roles" | "clusterroles" => self.check_role(),
            "rolebindings" | "clusterrolebindings" => self.check_binding()?,
            _ => Ok(()),
        };
        checked.map_err(|why| Status::forbidden(&GroupResource::new(GROUP, self.resource.to_owned()), self.object.name(), why))
    }

    fn check_role(&self) -> std::result::Result<(), String> {
        if self.may("escalate", self.resource, self.old.map_or("", Value::name)) {
            return Ok(());
        }
        self.index.confirm(self.user, self.namespace, &rules_of(self.object))?;
        let aggregates = |role: &Value| !role.items_at(&["aggregationRule", "clusterRoleSelectors"]).is_empty();
        if aggregates(self.object) || self.old.is_some_and(aggregates) {
            let cluster_admin = self.index.confirm(self.user, self.namespace, &full_authority());
            cluster_admin.map_err(|_| "must have cluster-admin privileges to use the aggregationRule".to_owned())?;
        }
        Ok(())
    }

    fn check_binding(&self) -> Result<std::result::Result<(), String>> {
        let (kind, name) = (self.object.text_at(&["roleRef", "kind"]), self.object.text_at(&["roleRef", "name"]));
        if self.may("bind", if kind == "ClusterRole" { "clusterroles" } else { "roles" }, name) {
            return Ok(Ok(()));
        }
        let missing = |_| Status::not_found(&GroupResource::new(GROUP, kind.to_lowercase()), name);
        let rules = self.index.referred(kind, name, self.namespace).map_err(missing)?;
        Ok(self.index.confirm(self.user, self.namespace, &rules))
    }

    fn may(&self, verb: &str, resource: &str, name: &str) -> bool {
        let namespace = self.namespace.to_owned();
        (self.is_authorized)(&Attributes { namespace, name: name.to_owned(), ..Attributes::new(verb, GROUP, resource) })
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

fn url_covers(rule: &str, path: &str) -> bool {
    rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

#[cfg(test)]
mod tests;
