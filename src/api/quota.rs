//! Quotas are charged in the same transaction as the write that they allow, so that they are exact whoever writes at the same time.
//! Source: apiserver `pkg/admission/plugin/resourcequota/controller.go` (`checkRequest`).

use super::admission::Context;
use crate::{
    kinds::quota::{self, Usage, amounts},
    meta::{Meta, Result, Value},
    store::{Change, Draft, Expect, Write},
};

const QUOTAS: &str = "resourcequotas";
const DEADLINE: &[&str] = &["spec", "activeDeadlineSeconds"];

/// The writes that charge the quotas of the object's namespace; 403 where one would be exceeded.
pub fn charge(context: &Context<'_>, object: &Value) -> Result<Vec<Write>> {
    let target = context.target;
    let (group, plural) = (target.kind.group.as_ref(), target.kind.plural.as_ref());
    let is_measured = match context.old {
        None => target.subresource.is_none(),
        Some(old) => match (group, plural, target.subresource_name()) {
            // A pod that gets a deadline comes under other quotas.
            ("", "pods", "") => old.at(DEADLINE).is_some() != object.at(DEADLINE).is_some(),
            ("", "pods", "resize") | ("", "services", "") | ("", "persistentvolumeclaims", "" | "status") | ("resource.k8s.io", "resourceclaims", "") => true,
            _ => false,
        },
    };
    if !is_measured || target.namespace.is_empty() {
        return Ok(Vec::new());
    }
    let mut writes = Vec::new();
    for stored in context.snapshot.list(QUOTAS, Some(&target.namespace), None) {
        let found = stored.value();
        if !quota::is_in_scope(&found, group, plural, object) {
            continue;
        }
        if let Some(charged) = charged(context, &found, (group, plural), object)? {
            let draft = Draft::new(&charged, stored.header.clone());
            writes.push(Write { key: stored.key.clone(), expect: Expect::At(stored.revision), change: Change::Put(draft) });
        }
    }
    Ok(writes)
}

/// The quota after the write; `None` when it does not change.
fn charged(context: &Context<'_>, found: &Value, (group, plural): (&str, &str), object: &Value) -> Result<Option<Value>> {
    let hard = amounts(found, &["status", "hard"]);
    // What comes under the quota only by this change is charged as a whole.
    let counted = context.old.filter(|it| quota::is_in_scope(found, group, plural, it));
    let before = counted.map(|it| quota::usage(group, plural, it)).unwrap_or_default();
    let more: Usage = quota::usage(group, plural, object)
        .into_iter()
        .filter(|(name, _)| hard.contains_key(name))
        .filter_map(|(name, now)| {
            let more = now.sub(before.get(&name).copied().unwrap_or_default());
            (!more.is_zero() && !more.is_negative()).then_some((name, more))
        })
        .collect();
    let refuse = |why: String| Err(context.forbid(object, why));
    if group.is_empty() && plural == "pods" {
        let missing = quota::missing(found, object);
        if !missing.is_empty() {
            return refuse(format!("failed quota: {}: must specify {missing}", found.name()));
        }
    }
    let used = amounts(found, &["status", "used"]);
    let unknown: Vec<&str> = more.keys().filter(|it| !used.contains_key(*it)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return refuse(format!("status unknown for quota: {}, resources: {}", found.name(), unknown.join(",")));
    }
    let exceeded: Vec<&String> = more.iter().filter(|(name, more)| used[*name].add(**more) > hard[*name]).map(|it| it.0).collect();
    if !exceeded.is_empty() {
        let list = |of: &Usage| exceeded.iter().map(|it| format!("{it}={}", of[*it])).collect::<Vec<_>>().join(",");
        return refuse(format!("exceeded quota: {}, requested: {}, used: {}, limited: {}", found.name(), list(&more), list(&used), list(&hard)));
    }
    if more.is_empty() {
        return Ok(None);
    }
    let mut charged = found.clone();
    for (name, more) in &more {
        charged.set_at(&["status", "used", name], used[name].add(*more).to_string());
    }
    Ok(Some(charged))
}
