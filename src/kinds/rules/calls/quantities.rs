//! Names and amounts of resources. Source: `pkg/apis/core/validation/validation.go`, `pkg/apis/core/helper/helpers.go`.

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test,
            words::{push_if, quantities, requested, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Quantity, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("podresources", pod_resources),
    ("overhead", |site, _, errors| {
        for (name, amount, value) in quantities(site.value, &[]) {
            let path = site.path().child("limits").key(name);
            container_name(name, &path, errors);
            amount_of(name, amount, value, &path, errors);
        }
    }),
    ("quota", |site, _, errors| {
        for (name, amount, value) in quantities(site.value, &[]) {
            let path = site.path().key(name);
            quota_name(name, &path, errors);
            amount_of(name, amount, value, &path, errors);
        }
    }),
    ("amounts", |site, _, errors| {
        for (name, amount, value) in quantities(site.value, &[]) {
            amount_of(name, amount, value, &site.path().child(name), errors);
        }
    }),
    ("containerresource", |site, _, errors| container_name(text(site.value), site.path(), errors)),
    ("resource", |site, _, errors| _ = resource_name(text(site.value), site.path(), errors)),
    ("containerresources", |site, _, errors| requirements(site.value, site.path(), container_name, errors)),
    ("podfixed", |site, _, errors| {
        let limits = serde_json::json!({"limits": site.value});
        requirements(&limits, &site.path().parent(), container_name, errors);
    }),
    ("scopes", |site, _, errors| scopes(site, errors)),
    ("scopeselector", |site, _, errors| scope_selector(site, errors)),
];

const STANDARD: [&str; 20] = [
    "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage", "pods",
    "resourcequotas", "services", "replicationcontrollers", "secrets", "configmaps", "persistentvolumeclaims", "storage", "requests.storage", "services.nodeports", "services.loadbalancers",
];
/// Counted in whole numbers.
const INTEGERS: [&str; 9] =
    ["pods", "resourcequotas", "services", "replicationcontrollers", "secrets", "configmaps", "persistentvolumeclaims", "services.nodeports", "services.loadbalancers"];
const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether a quota may speak of it.
fn is_limited(name: &str) -> bool {
    (name != "storage" && STANDARD.contains(&name)) || is_huge_pages(name)
}

/// Unprefixed, or of `kubernetes.io` (`IsNativeResource`).
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// `IsExtendedResourceName`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_integer(name: &str) -> bool {
    INTEGERS.contains(&name) || is_extended(name)
}

/// `validateResourceName`: whether more may be said of it.
fn resource_name(name: &str, path: &Path, errors: &mut FieldErrors) -> bool {
    let problems = names::qualified_name(name);
    let is_qualified = problems.is_empty();
    check::all(problems, name, path, errors);
    let is_standard = name.contains('/') || STANDARD.contains(&name) || is_huge_pages(name) || name.starts_with("requests.hugepages-");
    push_if(is_qualified && !is_standard, FieldError::invalid(path, name, "must be a standard resource type or fully qualified"), errors);
    is_qualified && is_standard
}

/// `validateContainerResourceName`.
fn container_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    resource_name(name, path, errors);
    if !name.contains('/') {
        let is_fine = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_pages(name);
        push_if(!is_fine, FieldError::invalid(path, name, "must be a standard resource for containers"), errors);
    } else if !is_native(name) {
        push_if(!is_extended(name), FieldError::invalid(path, name, "doesn't follow extended resource name standard"), errors);
    }
}

fn pod_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    if resource_name(name, path, errors) {
        let is_fine = matches!(name, "cpu" | "memory") || is_huge_pages(name);
        push_if(!is_fine, FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]), errors);
    }
}

fn quota_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    resource_name(name, path, errors);
    let is_fine = name.contains('/') || is_limited(name) || name.starts_with("requests.hugepages-");
    push_if(!is_fine, FieldError::invalid(path, name, "must be a standard resource for quota"), errors);
}

/// `ValidateResourceQuantityValue`.
fn amount_of(name: &str, amount: Quantity, value: &Value, path: &Path, errors: &mut FieldErrors) {
    push_if(amount.is_negative(), FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"), errors);
    push_if(is_integer(name) && !amount.is_whole(), FieldError::invalid(path, value.clone(), "must be an integer"), errors);
}

/// Resources that may be promised more than once.
fn is_overcommitted(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

/// `validateResourceRequirements`.
fn requirements(value: &Value, path: &Path, check_name: fn(&str, &Path, &mut FieldErrors), errors: &mut FieldErrors) {
    for (name, amount, value) in quantities(value, &["limits"]) {
        let path = path.child("limits").key(name);
        check_name(name, &path, errors);
        amount_of(name, amount, value, &path, errors);
    }
    for (name, amount, wanted) in quantities(value, &["requests"]) {
        let own = path.child("requests").key(name);
        check_name(name, &own, errors);
        amount_of(name, amount, wanted, &own, errors);
        let limit = value.text_at(&["limits", name]);
        match limit.parse::<Quantity>() {
            Ok(most) if amount != most && !is_overcommitted(name) => {
                errors.push(FieldError::invalid(&path.child("requests"), wanted.clone(), format!("must be equal to {name} limit of {limit}")));
            }
            Ok(most) if amount > most => {
                errors.push(FieldError::invalid(&path.child("requests"), wanted.clone(), format!("must be less than or equal to {name} limit of {limit}")));
            }
            Err(_) if !is_overcommitted(name) => errors.push(FieldError::required(&path.child("limits"), "Limit must be set for non overcommitable resources")),
            _ => (),
        }
    }
    let has = |is: fn(&str) -> bool| ["limits", "requests"].iter().any(|kind| quantities(value, &[kind]).any(|it| is(it.0)));
    if has(is_huge_pages) && !has(|it| matches!(it, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// `validatePodResources`: what all containers get together.
fn pod_resources(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (resources, spec, path) = (site.value, site.object, site.path());
    if resources.is_null() {
        return;
    }
    if spec.text_at(&["os", "name"]) == "windows" {
        return errors.push(FieldError::forbidden(path, "may not be set for a windows pod"));
    }
    if resources.get("claims").is_some() {
        errors.push(FieldError::forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level"));
    }
    requirements(resources, path, pod_name, errors);
    let sums = requested(spec.items_at(&["containers"]));
    for (name, wanted, value) in quantities(resources, &["requests"]) {
        if let Some(sum) = sums.get(name).filter(|it| **it > wanted) {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.push(FieldError::invalid(&path.child("requests").key(name), value.clone(), detail));
        }
    }
    for (at, container) in spec.items_at(&["containers"]).iter().enumerate() {
        for (name, limit, value) in quantities(container, &["resources", "limits"]) {
            let most = resources.text_at(&["limits", name]);
            if most.parse::<Quantity>().is_ok_and(|it| limit > it) {
                let path = path.child("containers").index(at).key(name).child("limits");
                errors.push(FieldError::invalid(&path, value.clone(), format!("must be less than or equal to pod limits of {most}")));
            }
        }
    }
}

const SCOPES: [&str; 7] = ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "PriorityClass", "CrossNamespacePodAffinity", "VolumeAttributesClass"];

/// `IsResourceQuotaScopeValidForResource`.
fn may_scope(scope: &str, resource: &str) -> bool {
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || COMPUTE.contains(&resource)
        }
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

/// Each of these errors has all scopes, so that without a bound they would be as large as the square of their number.
const MISPLACED_TOLD: usize = 256;

/// Tells of each resource to which a scope does not apply.
fn misplaced(scopes: &[&str], spec: &Value, path: &Path, value: &Value, errors: &mut FieldErrors) {
    let resources: Vec<&str> = spec.map_at(&["hard"]).into_iter().flatten().map(|it| it.0.as_str()).filter(|it| is_limited(it)).collect();
    let wrong = SCOPES.iter().filter(|it| scopes.contains(it)).flat_map(|scope| resources.iter().filter(|it| !may_scope(scope, it)));
    errors.extend(wrong.take(MISPLACED_TOLD).map(|_| FieldError::invalid(path, value.clone(), "unsupported scope applied to resource")));
}

fn conflict(scopes: &[&str]) -> bool {
    [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]].iter().any(|pair| pair.iter().all(|it| scopes.contains(it)))
}

/// `validateResourceQuotaScopes`.
fn scopes(site: &Site<'_>, errors: &mut FieldErrors) {
    let scopes = super::super::texts(Some(site.value), &[]);
    let wrong = |detail: &'static str| FieldError::invalid(site.path(), site.value.clone(), detail);
    errors.extend(scopes.iter().filter(|it| !SCOPES.contains(it)).take(MISPLACED_TOLD).map(|_| wrong("unsupported scope")));
    misplaced(&scopes, site.object, site.path(), site.value, errors);
    errors.extend(conflict(&scopes).then(|| wrong("conflicting scopes")));
}

/// `validateScopedResourceSelectorRequirement`.
fn scope_selector(site: &Site<'_>, errors: &mut FieldErrors) {
    let path = site.path().child("matchExpressions");
    let wanted = site.value.items_at(&["matchExpressions"]);
    for one in wanted {
        let (scope, operator, values) = (one.text("scopeName"), one.text("operator"), one.items_at(&["values"]));
        push_if(!SCOPES.contains(&scope), FieldError::invalid(&path.child("scopeName"), scope, "unsupported scope"), errors);
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope) && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(&path.child("operator"), operator, detail));
        }
        match operator {
            "In" | "NotIn" => push_if(values.is_empty(), FieldError::required(&path.child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"), errors),
            "Exists" | "DoesNotExist" => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                push_if(!values.is_empty(), FieldError::invalid(&path.child("values"), one["values"].clone(), detail), errors);
            }
            _ => errors.push(FieldError::invalid(&path.child("operator"), operator, "not a valid selector operator")),
        }
    }
    let names: Vec<&str> = wanted.iter().map(|it| it.text("scopeName")).collect();
    misplaced(&names, site.object, &path, site.value, errors);
    let scopes = site.object.get("scopes").cloned().unwrap_or_default();
    push_if(conflict(&names), FieldError::invalid(&path, scopes, "conflicting scopes"), errors);
}
