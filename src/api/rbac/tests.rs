use serde_json::json;

use super::*;

fn role(namespace: &str, name: &str, rules: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "rules": rules})
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Value {
    let subject = |text: &&str| {
        let mut parts = text.split(':');
        let (kind, name) = (parts.next().unwrap(), parts.next().unwrap());
        json!({"kind": kind, "name": name, "namespace": parts.next().unwrap_or("")})
    };
    let (kind, role) = role.split_once('/').unwrap();
    let subjects: Vec<Value> = subjects.iter().map(subject).collect();
    json!({"metadata": {"namespace": namespace, "name": name}, "roleRef": {"kind": kind, "name": role}, "subjects": subjects})
}

fn user(text: &str) -> User {
    let mut parts = text.split(',').map(str::to_owned);
    User { name: parts.next().unwrap(), groups: parts.collect(), ..User::default() }
}

/// `verb group/resource/subresource namespace name`, `-` for empty; or `verb /path`.
fn attributes(text: &str) -> Attributes {
    let words: Vec<String> = text.split(' ').map(|it| if it == "-" { String::new() } else { it.to_owned() }).collect();
    if words[1].starts_with('/') {
        return Attributes { verb: words[0].clone(), path: words[1].clone(), ..Attributes::default() };
    }
    let mut parts = words[1].split(':').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let (group, resource, subresource) = (part(), part(), part());
    Attributes { verb: words[0].clone(), group, resource, subresource, namespace: words[2].clone(), name: words[3].clone(), ..Attributes::default() }
}

fn index() -> Index {
    let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    let roles = [
        role("", "admin", all.clone()),
        role("ns1", "admin", all),
        role("", "reader", json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}])),
        role("ns1", "named", json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one", "two"]}])),
        role("", "scaler", json!([{"verbs": ["update"], "apiGroups": ["*"], "resources": ["*/scale"]}])),
        role("", "paths", json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}])),
    ];
    let bindings = [
        binding("", "root", "ClusterRole/admin", &["User:super-admin", "Group:super-admins"]),
        binding("ns1", "admins", "ClusterRole/admin", &["User:admin", "Group:admins"]),
        binding("ns1", "local", "Role/admin", &["ServiceAccount:bot"]),
        binding("ns1", "named", "Role/named", &["User:carol"]),
        binding("", "readers", "ClusterRole/reader", &["ServiceAccount:bot:ns2", "User:jane"]),
        binding("", "scalers", "ClusterRole/scaler", &["User:hpa"]),
        binding("", "paths", "ClusterRole/paths", &["Group:everyone"]),
        binding("", "lost", "ClusterRole/gone", &["User:lost"]),
        binding("", "nowhere", "ClusterRole/admin", &["ServiceAccount:nobody"]),
    ];
    Index::new(&roles, &bindings)
}

#[test]
fn rules_allow_what_upstreams_would() {
    // (user and its groups, question, whether it is allowed)
    let cases = [
        ("super-admin", "get :pods ns1 -", true),
        ("foo,super-admins", "delete apps:deployments:scale ns2 x", true),
        ("super-admin", "get /healthz", false),
        ("admin", "get :pods ns1 x", true),
        ("admin", "get :pods ns2 x", false),
        ("admin", "get :pods - x", false),
        ("foo,admins", "get :pods ns1 x", true),
        ("foo,users", "get :pods ns1 x", false),
        ("system:serviceaccount:ns1:bot", "create :pods ns1 -", true),
        ("system:serviceaccount:ns1:bot", "create :pods ns2 -", false),
        ("system:serviceaccount:ns2:bot", "get :pods ns9 x", true),
        ("system:serviceaccount:ns2:bot", "create :pods ns9 x", false),
        ("system:serviceaccount:ns2:nobody", "get :pods ns9 x", false),
        ("carol", "get :configmaps ns1 one", true),
        ("carol", "get :configmaps ns1 three", false),
        ("carol", "list :configmaps ns1 -", false),
        ("jane", "get :pods:log ns1 x", true),
        ("jane", "get :pods:exec ns1 x", false),
        ("jane", "get apps:pods ns1 x", false),
        ("jane", "get :nodes - x", false),
        ("hpa", "update apps:deployments:scale ns1 x", true),
        ("hpa", "update apps:deployments ns1 x", false),
        ("hpa", "update apps:deployments:status ns1 x", false),
        ("x,everyone", "get /healthz", true),
        ("x,everyone", "get /healthz/etcd", false),
        ("x,everyone", "get /api/v1", true),
        ("x,everyone", "get /api", false),
        ("x,everyone", "post /api/v1", false),
        ("x,everyone", "get :pods - -", false),
    ];
    let index = index();
    for (who, question, expected) in cases {
        let decision = index.decide(&user(who), &attributes(question));
        assert_eq!(decision.is_ok(), expected, "{who}: {question}: {decision:?}");
    }
}

#[test]
fn reasons_name_the_binding() {
    let index = index();
    let cases = [
        ("jane", "get :pods a x", Ok("RBAC: allowed by ClusterRoleBinding \"readers\" of ClusterRole \"reader\" to User \"jane\"")),
        ("x,admins", "get :pods ns1 x", Ok("RBAC: allowed by RoleBinding \"admins/ns1\" of ClusterRole \"admin\" to Group \"admins\"")),
        (
            "system:serviceaccount:ns1:bot",
            "get :pods ns1 x",
            Ok("RBAC: allowed by RoleBinding \"local/ns1\" of Role \"admin\" to ServiceAccount \"bot/ns1\""),
        ),
        ("lost", "get :pods ns1 x", Err("RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found")),
        ("nobody", "get :pods ns1 x", Err("")),
    ];
    for (who, question, expected) in cases {
        assert_eq!(index.decide(&user(who), &attributes(question)), expected.map(str::to_owned).map_err(str::to_owned));
    }
}

#[test]
fn nobody_grants_more_than_he_holds() {
    let index = index();
    let get_pods = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    let more = json!([{"verbs": ["get", "delete", "list", "update"], "apiGroups": [""], "resources": ["pods"]}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]);
    let refused = "user \"jane\" (groups=[\"a\" \"b\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"update\"]}\n{NonResourceURLs:[\"/x\"], Verbs:[\"get\"]}";
    let aggregating = {
        let mut role = role("", "all", json!([]));
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
        role
    };
    // (resource, namespace, object, what the authorizer allows beside, expected error)
    let cases = [
        ("clusterroles", "", role("", "r", get_pods.clone()), "", String::new()),
        ("roles", "ns1", role("ns1", "r", get_pods), "", String::new()),
        ("clusterroles", "", role("", "r", more.clone()), "", format!("clusterroles.rbac.authorization.k8s.io \"r\" is forbidden: {refused}")),
        ("clusterroles", "", role("", "r", more), "escalate", String::new()),
        (
            "clusterroles",
            "",
            aggregating,
            "",
            "clusterroles.rbac.authorization.k8s.io \"all\" is forbidden: must have cluster-admin privileges to use the aggregationRule".to_owned(),
        ),
        ("clusterrolebindings", "", binding("", "b", "ClusterRole/reader", &[]), "", String::new()),
        ("clusterrolebindings", "", binding("", "b", "ClusterRole/admin", &[]), "bind", String::new()),
        (
            "clusterrolebindings",
            "",
            binding("", "b", "ClusterRole/scaler", &[]),
            "",
            "clusterrolebindings.rbac.authorization.k8s.io \"b\" is forbidden: user \"jane\" (groups=[\"a\" \"b\"]) is attempting to grant \
             RBAC permissions not currently held:\n{APIGroups:[\"*\"], Resources:[\"*/scale\"], Verbs:[\"update\"]}"
                .to_owned(),
        ),
        ("rolebindings", "ns1", binding("ns1", "b", "Role/none", &[]), "bind", String::new()),
        ("rolebindings", "ns1", binding("ns1", "b", "Role/none", &[]), "", "role.rbac.authorization.k8s.io \"none\" not found".to_owned()),
        ("rolebindings", "ns1", binding("ns1", "b", "ClusterRole/reader", &[]), "", String::new()),
        ("pods", "ns1", json!({}), "", String::new()),
    ];
    for (resource, namespace, object, verb, expected) in cases {
        let checked = Grant { index: &index, user: &user("jane,a,b"), resource, namespace, object: &object, old: None, is_authorized: &|it| it.verb == verb }.check();
        let message = checked.err().map(|it| it.message).unwrap_or_default();
        assert_eq!(message, expected, "{resource} {object}");
    }
}

#[test]
fn garbage_collection_is_no_escalation() {
    let index = index();
    let old = role("", "r", json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]));
    let mut collected = old.clone();
    collected.set_metadata("finalizers", json!([]));
    let mut changed = old.clone();
    changed.set_metadata("labels", json!({"a": "b"}));
    let (jane, old) = (user("jane"), Some(&old));
    let check = |object: &Value| Grant { index: &index, user: &jane, resource: "clusterroles", namespace: "", object, old, is_authorized: &|_| false }.check();
    assert!(check(&collected).is_ok());
    assert_eq!(check(&changed).unwrap_err().code, 403);
}

#[test]
fn roles_aggregate_each_rule_once_by_name() {
    let labelled = |name: &str, label: &str, rules: Value| {
        let mut role = role("", name, rules);
        role.set_metadata("labels", json!({label: "true"}));
        role
    };
    let (a, b, c) = (json!({"verbs": ["a"]}), json!({"verbs": ["b"]}), json!({"verbs": ["c"]}));
    let roles = [
        labelled("z", "view", json!([b, a])),
        labelled("y", "view", json!([a])),
        labelled("x", "edit", json!([c])),
        labelled("me", "view", json!([c])),
    ];
    let rule = json!({"clusterRoleSelectors": [{"matchLabels": {"view": "true"}}]});
    assert_eq!(aggregate("me", &rule, &roles), [a, b]);
}

#[test]
fn a_decision_among_hundreds_of_bindings_is_quick() {
    let roles: Vec<Value> =
        (0..200).map(|it| role("", &format!("r{it}"), json!([{"verbs": ["get"], "apiGroups": [""], "resources": [format!("x{it}")]}]))).collect();
    let bindings: Vec<Value> =
        (0..200).map(|it| binding("", &format!("b{it}"), &format!("ClusterRole/r{it}"), &[&format!("User:u{}", it % 50)])).collect();
    let index = Index::new(&roles, &bindings);
    let (who, question) = (user("u7,system:authenticated"), attributes("get :x157 ns1 x"));
    let started = std::time::Instant::now();
    for _ in 0..1000 {
        assert!(index.decide(&who, &question).is_ok());
    }
    // 5 us each where it is optimised; tests are not.
    assert!(started.elapsed() < std::time::Duration::from_millis(100), "{:?}", started.elapsed());
}
