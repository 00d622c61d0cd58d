//! Checks the expressions of validating policies against the types of what they are for, and tells in their status what does not fit.
//! Follows pkg/controller/validatingadmissionpolicystatus and apiserver `pkg/admission/plugin/policy/validating/typechecking.go`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::Controller;
use crate::{
    client::{Error, ObjectKey, Result, writes},
    kinds::{self, Registry, expressions::Seen},
    meta::{Meta, object::split_api_version},
    schema::cel::Decl,
};

/// The most types that the expressions of one policy are checked against (`maxTypesToCheck`).
const TYPES_MAX: usize = 10;

pub struct ValidatingAdmissionPolicyStatusController;
type Shell = super::Shell<ValidatingAdmissionPolicyStatusController>;

impl Controller for ValidatingAdmissionPolicyStatusController {
    type Key = ObjectKey;
    const NAME: &'static str = "validatingadmissionpolicy-status-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.validating_policies);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(policy) = shell.informers.validating_policies.get(key) else { return Ok(None) };
        let generation = policy.metadata.generation.unwrap_or_default();
        if policy.status.as_ref().and_then(|it| it.observed_generation).unwrap_or_default() >= generation {
            return Ok(None);
        }
        let value = |error: serde_json::Error| Error::Invalid(error.to_string());
        let spec = serde_json::to_value(&policy.spec).map_err(value)?;
        let mut types = Types { registry: kinds::table::registry(), custom: Vec::new() };
        for (group, version) in versions(&spec) {
            if !types.registry.iter().any(|it| it.group == group) {
                types.custom.extend(custom(&shell.client, &group, &version).await?);
            }
        }
        let warnings = check(&spec, &types);
        let policies = writes::api::<ValidatingAdmissionPolicy>(&shell.client, "");
        let status = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": policy.name_any()},
            "status": {"observedGeneration": generation, "typeChecking": {"expressionWarnings": warnings}},
        });
        let written = policies.patch_status(&key.name, &PatchParams::apply(Self::NAME).force(), &Patch::Apply(status)).await;
        writes::unless_not_found(written)?;
        Ok(None)
    }
}

/// Group and version of everything that the policy names.
fn versions(spec: &Value) -> BTreeSet<(String, String)> {
    let rules = spec.items_at(&["matchConstraints", "resourceRules"]).iter();
    let named = rules.flat_map(|rule| {
        let words = |field: &str| rule.texts_at(&[field]).map(str::to_owned).collect::<Vec<_>>();
        let versions = words("apiVersions");
        words("apiGroups").into_iter().flat_map(move |group| versions.clone().into_iter().map(move |version| (group.clone(), version)))
    });
    let (group, version) = split_api_version(spec["paramKind"].text("apiVersion"));
    named.chain([(group.to_owned(), version.to_owned())]).filter(|(group, version)| !group.contains('*') && !version.is_empty() && !version.contains('*')).collect()
}

/// The custom resources of a version, as discovery and OpenAPI tell them; none where there is no such version.
async fn custom(client: &kube::Client, group: &str, version: &str) -> Result<Vec<Custom>> {
    let get = |path: String| {
        let request = http::Request::get(path).body(Vec::new());
        async move {
            let request = request.map_err(|error| Error::Invalid(error.to_string()))?;
            match client.request::<Value>(request).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Value::Null),
                other => Ok::<_, Error>(other?),
            }
        }
    };
    let resources = get(format!("/apis/{group}/{version}")).await?;
    let document = get(format!("/openapi/v3/apis/{group}/{version}")).await?;
    let schemas = || document.map_at(&["components", "schemas"]).into_iter().flatten().map(|it| it.1);
    let schema = |kind: &str| schemas().find(|it| it.items_at(&["x-kubernetes-group-version-kind"]).iter().any(|it| it.text("kind") == kind && it.text("version") == version));
    let whole = resources.items_at(&["resources"]).iter().filter(|it| !it.text("name").contains('/'));
    let found = whole.filter_map(|it| {
        let kind = it.text("kind").to_owned();
        let decl = Decl::from_structural(schema(&kind)?, true, &kind)?;
        Some(Custom { group: group.to_owned(), version: version.to_owned(), plural: it.text("name").to_owned(), kind, decl })
    });
    Ok(found.collect())
}

struct Custom {
    group: String,
    version: String,
    plural: String,
    kind: String,
    decl: Decl,
}

/// The kinds that a policy can name: built-in ones and custom resources.
struct Types {
    registry: Registry,
    custom: Vec<Custom>,
}

impl Types {
    /// Kind and type of what has that plural name or that kind.
    fn find(&self, group: &str, version: &str, plural: &str, kind: &str) -> Option<(String, Decl)> {
        let own = self.registry.iter().find(|it| it.group == group && (it.plural == plural || it.kind == kind));
        if let Some(own) = own {
            let version = own.versions.iter().find(|it| it.name == version)?;
            return Some((own.kind.to_string(), Decl::from_schema(&version.schema, &own.kind)));
        }
        let custom = self.custom.iter().find(|it| it.group == group && it.version == version && (it.plural == plural || it.kind == kind))?;
        Some((custom.kind.clone(), custom.decl.clone()))
    }
}

/// A type under its group, version and kind, as Go prints them.
type Named = (String, Decl);

/// The types that a policy's rules name one by one; those with wildcards are not looked at.
fn types(spec: &Value, known: &Types) -> Vec<Named> {
    let mut places = BTreeSet::new();
    for rule in spec.items_at(&["matchConstraints", "resourceRules"]) {
        let words = |field: &str| -> Vec<&str> { rule.texts_at(&[field]).collect() };
        let (groups, versions) = (words("apiGroups"), words("apiVersions"));
        if groups.iter().chain(&versions).any(|it| it.contains('*')) {
            continue;
        }
        let resources: Vec<&str> = words("resources").into_iter().filter(|it| !it.contains(['*', '/'])).collect();
        let pairs = groups.iter().flat_map(|group| versions.iter().map(move |version| (*group, *version)));
        places.extend(pairs.flat_map(|(group, version)| resources.iter().map(move |resource| (group, version, *resource))));
    }
    let found = places.into_iter().filter_map(|(group, version, resource)| {
        let (kind, decl) = known.find(group, version, resource, "")?;
        Some((format!("{group}/{version}, Kind={kind}"), decl))
    });
    let mut found: Vec<Named> = found.take(TYPES_MAX).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// `status.typeChecking.expressionWarnings`
fn check(spec: &Value, known: &Types) -> Vec<Value> {
    let types = types(spec, known);
    let kind = &spec["paramKind"];
    let (group, version) = split_api_version(kind.text("apiVersion"));
    let params = known.find(group, version, "", kind.text("kind")).map(|it| it.1);
    let mut warnings = Vec::new();
    for (at, validation) in spec.items_at(&["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = validation.text(field);
            let complaint = |(name, decl): &Named| {
                let seen = Seen::with(spec, Some(decl.clone()), params.clone());
                seen.scope.compile(text, &[]).err().map(|why| format!("{name}: {why}\n"))
            };
            let told: Vec<String> = types.iter().filter(|_| !text.is_empty()).filter_map(complaint).collect();
            if !told.is_empty() {
                warnings.push(json!({"fieldRef": format!("spec.validations[{at}].{field}"), "warning": told.join("\n")}));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_checked_against_the_types_that_rules_name() {
        let known = Types { registry: kinds::table::registry(), custom: Vec::new() };
        let warnings = |expression: &str, resource: &str| {
            let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": [resource]});
            let spec = json!({"matchConstraints": {"resourceRules": [rule]}, "variables": [{"name": "n", "expression": "object.spec.replicas"}], "validations": [{"expression": expression}]});
            check(&spec, &known).iter().map(|it| (it.text("fieldRef").to_owned(), it.text("warning").to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(warnings("object.spec.replicas > 1", "deployments"), []);
        assert_eq!(warnings("object.spec.replicas > '1'", "*"), []);
        let at = "spec.validations[0].expression".to_owned();
        let misfit = "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n";
        assert_eq!(warnings("object.spec.replicas > '1'", "deployments"), [(at.clone(), misfit.to_owned())]);
        let missing = "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:12: undefined field 'nope'\n | object.spec.nope == variables.n\n | ...........^\n";
        assert_eq!(warnings("object.spec.nope == variables.n", "deployments"), [(at, missing.to_owned())]);
    }
}
