//! Which requests a webhook or a policy is for, and in which version of the object it sees them.
//! Source: apiserver `pkg/admission/plugin/webhook/{generic/webhook.go,predicates}`, `pkg/admission/plugin/policy/matching`.

use std::{collections::BTreeSet, sync::Arc};

use serde::Deserialize;
use serde_json::json;

use super::{
    admission::{Context, Operation},
    forms::View,
    identity::{Attributes, Decision, User},
};
use crate::{
    kinds::Kind,
    meta::{
        GroupVersionKind, LabelSelector, Meta, Result, Status, Value,
        object::GroupResource,
    },
    schema::{
        self, SchemaRef,
        cel::{Bindings, Val, authorizer::{Authorizer, Check}},
        codec,
    },
    store::Key,
};

pub const NAMESPACES: &str = "namespaces";
pub const GROUP: &str = "admissionregistration.k8s.io";
/// Kinds whose objects nobody is asked about, so that a bad one can be removed (`IsExemptAdmissionConfigurationResource`).
const EXEMPT: [&str; 6] = [
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

pub fn is_exempt(context: &Context<'_>) -> bool {
    let kind = &context.target.kind;
    kind.group == GROUP && EXEMPT.contains(&kind.kind.as_ref())
}

/// What a webhook, a policy or a binding says of the requests that it is for.
#[derive(Debug)]
pub struct Criteria {
    /// `None`: all requests.
    rules: Option<Vec<Rule>>,
    excluded: Vec<Rule>,
    /// Requests in other versions of the same objects are meant too (`matchPolicy: Equivalent`).
    is_equivalent: bool,
    namespaces: std::result::Result<LabelSelector, String>,
    objects: std::result::Result<LabelSelector, String>,
}

/// `NamedRuleWithOperations`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    /// Names of objects; none means all.
    resource_names: Vec<String>,
}

impl Criteria {
    /// Of a webhook: an object with `rules`.
    pub fn of_webhook(webhook: &Value) -> Self {
        Self { rules: Some(rules(webhook, "rules")), ..Self::new(webhook) }
    }

    /// Of a policy or its binding: `MatchResources`. Without rules it is for all requests.
    pub fn of_policy(resources: &Value) -> Self {
        let wanted = rules(resources, "resourceRules");
        Self { rules: (!wanted.is_empty()).then_some(wanted), excluded: rules(resources, "excludeResourceRules"), ..Self::new(resources) }
    }

    fn new(owner: &Value) -> Self {
        Self {
            rules: None,
            excluded: Vec::new(),
            is_equivalent: owner.text("matchPolicy") != "Exact",
            namespaces: selector(owner, "namespaceSelector"),
            objects: selector(owner, "objectSelector"),
        }
    }

    /// The form in which a request is meant: its own, or an equivalent one by the first rule that has any.
    fn matched(&self, asked: &Asked<'_>, forms: &[Form]) -> Option<usize> {
        let find = |rules: &[Rule]| self.find(rules, asked, forms);
        match &self.rules {
            _ if find(&self.excluded).is_some() => None,
            None => Some(OWN),
            Some(rules) => find(rules),
        }
    }

    fn find(&self, rules: &[Rule], asked: &Asked<'_>, forms: &[Form]) -> Option<usize> {
        let among = |forms: &[Form]| rules.iter().find_map(|rule| forms.iter().position(|it| rule.matches(asked, it)));
        among(&forms[..=OWN]).or_else(|| among(forms).filter(|_| self.is_equivalent))
    }
}

/// What is asked of an object, beside the form: operation, name and subresource.
struct Asked<'a>(Operation, &'a str, &'a str);

/// An absent selector selects everything, as its default does.
fn selector(owner: &Value, field: &str) -> std::result::Result<LabelSelector, String> {
    match owner.get(field).filter(|it| !it.is_null()) {
        None => Ok(LabelSelector::everything()),
        found => LabelSelector::from_value(found),
    }
}

/// A rule that does not read as one is for nothing.
fn rules(owner: &Value, field: &str) -> Vec<Rule> {
    owner.items_at(&[field]).iter().map(|it| Rule::deserialize(it).unwrap_or_default()).collect()
}

impl Rule {
    fn matches(&self, Asked(operation, name, part): &Asked<'_>, form: &Form) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|it| it == "*" || it == wanted);
        let is_in_scope = match self.scope.as_str() {
            "" | "*" => true,
            "Namespaced" => form.kind.is_namespaced(),
            "Cluster" => !form.kind.is_namespaced(),
            _ => false,
        };
        is_in_scope
            && has(&self.operations, operation.as_str())
            && has(&self.api_groups, &form.kind.group)
            && has(&self.api_versions, &form.view().version.name)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|it| it == name))
            && self.resources.iter().any(|it| {
                let (resource, subresource) = it.split_once('/').unwrap_or((it, ""));
                (resource == "*" || resource == form.kind.plural) && (subresource == "*" || subresource == *part)
            })
    }
}

/// What is remembered between the first and the second round of mutating webhooks, or policies (`webhookReinvokeContext`, `policyReinvokeContext`).
#[derive(Default)]
pub struct Round {
    is_second: bool,
    last: Value,
    /// Those that want to be asked again when something changes after them.
    invoked: BTreeSet<String>,
    due: BTreeSet<String>,
}

impl Round {
    /// What others have changed since the first round makes those due that want it.
    pub fn begin(&mut self, object: &Value) {
        if self.is_second && self.last != *object {
            self.something_changed();
        }
    }

    pub fn is_due(&self, id: &str) -> bool {
        !self.is_second || self.due.contains(id)
    }

    pub fn something_changed(&mut self) {
        self.due.append(&mut self.invoked);
    }

    /// It wants to be asked again.
    pub fn remember(&mut self, id: &str) {
        self.invoked.insert(id.to_owned());
    }

    pub fn end(&mut self, object: &Value) {
        self.is_second = true;
        self.last = object.clone();
    }
}

/// An object, null for none, in one of the forms of a question.
pub struct Versioned {
    pub form: usize,
    pub value: Value,
}

/// How a request can be put: in its own version, or in another one of the same objects.
pub struct Form {
    pub kind: Arc<Kind>,
    pub version: usize,
}

impl Form {
    pub fn view(&self) -> View<'_> {
        View { kind: &self.kind, version: &self.kind.versions[self.version] }
    }

    fn resource(&self) -> Value {
        json!({"group": self.kind.group, "version": self.view().version.name, "resource": self.kind.plural})
    }
}

/// The request's own form stands first.
pub const OWN: usize = 0;

/// A request as it is put to webhooks and policies.
pub struct Question<'a> {
    pub context: &'a Context<'a>,
    forms: Vec<Form>,
    /// Whether what is sent is the object itself; what a subresource takes beside it has one form only.
    is_object: bool,
    /// That of the request; a namespace is its own.
    pub namespace: String,
    pub name: String,
}

impl<'a> Question<'a> {
    pub fn new(context: &'a Context<'a>, object: &Value) -> Self {
        let target = context.target;
        let registry = context.server.registry.load();
        let resource = target.kind.resource();
        let rows = registry.iter().filter(|it| it.resource() == resource);
        let served = rows.flat_map(|kind| (0..kind.versions.len()).filter(|at| kind.versions[*at].is_served).map(move |at| (kind.clone(), at)));
        let has_part = |kind: &Kind| target.subresource.is_none() || kind.subresource(target.subresource_name()).is_some();
        let others = served.filter(|(kind, _)| has_part(kind)).map(|(kind, version)| Form { kind, version });
        let own = Form { kind: target.kind.clone(), version: target.version_at() };
        let is_other = |it: &Form| it.resource() != own.resource();
        let mut forms: Vec<Form> = others.filter(is_other).collect();
        forms.insert(OWN, own);
        let name = if target.name.is_empty() { object.name() } else { &target.name };
        Self {
            context,
            forms,
            is_object: target.body_type().1 == target.kind.kind,
            namespace: if resource == NAMESPACES { name } else { &target.namespace }.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The form in which the request is put to who has these criteria, if it is (`ShouldCallHook`).
    pub fn form_for(&self, criteria: &Criteria, object: &Value) -> Result<Option<usize>> {
        let namespace = self.matches_namespace(criteria, object);
        if namespace == Ok(false) || !self.matches_object(criteria, object).unwrap_or(true) {
            return Ok(None);
        }
        let Some(form) = criteria.matched(&Asked(self.context.operation, &self.name, self.context.target.subresource_name()), &self.forms) else { return Ok(None) };
        namespace?;
        self.matches_object(criteria, object)?;
        Ok(Some(form))
    }

    fn matches_namespace(&self, criteria: &Criteria, object: &Value) -> Result<bool> {
        if self.namespace.is_empty() && self.context.target.kind.plural != NAMESPACES {
            return Ok(true);
        }
        let selector = criteria.namespaces.as_ref().map_err(Status::internal)?;
        if selector.is_everything() {
            return Ok(true);
        }
        let is_whole = self.context.target.kind.resource() == NAMESPACES && self.context.target.subresource.is_none();
        if is_whole && matches!(self.context.operation, Operation::Create | Operation::Update) {
            return Ok(selector.matches_object(object));
        }
        let found = self.context.snapshot.get(&Key::new(NAMESPACES, "", &self.namespace));
        let found = found.ok_or_else(|| Status::not_found(&GroupResource::new("", NAMESPACES), &self.namespace))?;
        Ok(selector.matches_with(|key| found.header.label(key)))
    }

    fn matches_object(&self, criteria: &Criteria, object: &Value) -> Result<bool> {
        let selector = criteria.objects.as_ref().map_err(Status::internal)?;
        let is_selected = |object: &Value| object.is_object() && selector.matches_object(object);
        Ok(selector.is_everything() || is_selected(object) || self.context.old.is_some_and(is_selected))
    }

    /// The object in another form.
    pub async fn brought(&self, object: Versioned, form: usize) -> Result<Versioned> {
        if object.form == form || object.value.is_null() || !self.is_object {
            return Ok(Versioned { form, ..object });
        }
        let (from, to) = (self.forms[object.form].view(), self.forms[form].view());
        Ok(Versioned { form, value: self.context.server.convert(from, to, object.value).await.map_err(|it| Status::internal(it.message))? })
    }

    /// The object as it was, null for none, in a form.
    pub async fn old(&self, form: usize) -> Result<Value> {
        let old = Versioned { form: OWN, value: self.context.old.cloned().unwrap_or_default() };
        Ok(self.brought(old, form).await?.value)
    }

    /// `AdmissionRequest`, without its uid.
    pub fn request(&self, object: &Versioned, old: Value) -> Value {
        let mut request = self.attributes(object.form);
        request["object"] = object.value.clone();
        request["oldObject"] = old;
        request
    }

    /// An `AdmissionRequest` without its objects: the `request` of expressions.
    pub fn attributes(&self, form: usize) -> Value {
        let context = self.context;
        let mut request = json!({
            "kind": self.kind(form), "resource": self.forms[form].resource(),
            "requestKind": self.kind(OWN), "requestResource": self.forms[OWN].resource(),
            "operation": context.operation.as_str(), "userInfo": context.requester.user,
            "dryRun": context.is_dry_run, "options": context.options,
        });
        let subresource = context.target.subresource_name();
        for (field, text) in [("subResource", subresource), ("requestSubResource", subresource), ("name", &self.name), ("namespace", &self.namespace)] {
            if !text.is_empty() {
                request[field] = text.into();
            }
        }
        request
    }

    /// The type of the object in a form, if it is known.
    pub fn schema(&self, form: usize) -> Option<SchemaRef> {
        if self.is_object { Some(self.forms[form].view().version.schema.clone()) } else { self.context.target.body_schema() }
    }

    fn kind(&self, form: usize) -> Value {
        let form = &self.forms[form];
        let (api_version, kind) = if self.is_object { (form.view().api_version(), form.kind.kind.as_ref()) } else { self.context.target.body_type() };
        let GroupVersionKind { group, version, kind } = GroupVersionKind::of(&json!({"apiVersion": api_version, "kind": kind}));
        json!({"group": group, "version": version, "kind": kind})
    }

    /// A patched object, read as a client's would be, and the same with its defaults.
    pub fn decoded(&self, form: usize, value: Value) -> Result<(Value, Value)> {
        let view = self.forms[form].view();
        let schema = self.schema(form).ok_or_else(|| Status::internal("the type of the object is not known"))?;
        let decoded = codec::decode_value(value, &schema)?.0;
        let mut filled = decoded.clone();
        match self.is_object {
            true => view.kind.fill(view.version, &mut filled),
            false => schema::default::default(&mut filled, &schema),
        }
        Ok((decoded, filled))
    }
}

impl Question<'_> {
    /// With `authorizer` and `authorizer.requestResource`, which is what the request itself is about.
    pub fn bind<'v>(&'v self, bindings: Bindings<'v>) -> Bindings<'v> {
        let target = self.context.target;
        let (namespace, name, subresource) = (self.namespace.clone(), self.name.clone(), target.subresource_name().to_owned());
        let own = Attributes { namespace, name, subresource, ..Attributes::new("", &target.kind.group, &target.kind.plural) };
        let check = |it: Check<'v>| Val::Check(it.into());
        bindings.with("authorizer", check(Check::new(self))).with("authorizer.requestResource", check(Check::of_resource(self, own)))
    }
}

/// Answers what expressions ask of the authorizer, for the user of the request.
impl Authorizer for Question<'_> {
    fn authorize(&self, asked: &Attributes) -> Decision {
        let context = self.context;
        let account = asked.service_account.as_ref().map(|(namespace, name)| User::service_account(namespace, name));
        context.server.authorizer.authorize(account.as_ref().unwrap_or(&context.requester.user), asked, context.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `group|version|resource`.
    fn form(text: &str, is_namespaced: bool) -> Form {
        let mut parts = text.split('|').map(str::to_owned);
        let [group, version, plural] = [(); 3].map(|()| std::borrow::Cow::Owned(parts.next().unwrap_or_default()));
        let registry = crate::kinds::table::registry();
        let known = registry.iter().find(|it| it.is_namespaced() == is_namespaced).expect("a kind");
        let mut kind = Kind { group, plural, ..Kind::clone(known) };
        kind.versions[0].name = version;
        Form { kind: kind.into(), version: 0 }
    }

    fn hook(rule: Value, policy: &str) -> Criteria {
        Criteria::of_webhook(&json!({"matchPolicy": policy, "rules": [rule]}))
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
            let (hook, own) = (hook(rule.clone(), "Exact"), form(asked, is_namespaced));
            let asked_of = Asked(Operation::Create, "", asked.split('|').nth(3).unwrap_or_default());
            assert_eq!(hook.matched(&asked_of, &[own]).is_some(), expected, "{rule} {asked}");
        }
    }

    #[test]
    fn equivalent_forms_match_in_the_order_of_the_rules() {
        let rule = |versions: &[&str]| json!({"operations": ["*"], "apiGroups": ["g"], "apiVersions": versions, "resources": ["xs"]});
        let all = ["g|v1|xs", "g|v2|xs", "g|v3|xs"].map(|it| form(it, true));
        let matched = |policy: &str, versions: &[&str]| hook(rule(versions), policy).matched(&Asked(Operation::Update, "", ""), &all);
        assert_eq!(matched("Equivalent", &["v2"]), Some(1));
        assert_eq!(matched("Equivalent", &["v2", "v1"]), Some(OWN));
        assert_eq!(matched("Exact", &["v2"]), None);
        let ordered = Criteria::of_webhook(&json!({"rules": [rule(&["v3"]), rule(&["v2"])]}));
        assert_eq!(ordered.matched(&Asked(Operation::Update, "", ""), &all), Some(2));
    }
}
