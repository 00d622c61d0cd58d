//! The FlowSchemas and priority levels of a new cluster: the mandatory and the suggested ones.
//! Source: apiserver `pkg/apis/flowcontrol/bootstrap/default.go`.

use serde_json::json;

use crate::meta::Value;

/// Name, shares of the seats, per cent of them that may be lent, queues and the hand that is dealt of them; without queues it refuses.
type Level = (&'static str, u32, u32, Option<(u32, u32)>);

const LEVELS: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some((128, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("node-high", 40, 25, Some((64, 6))),
    ("system", 30, 33, Some((64, 6))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
];
const QUEUE_LENGTH: u32 = 50;

/// All of them.
pub fn objects() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let levels = LEVELS.iter().map(|(name, shares, lendable, queues)| {
        let response = match queues {
            Some((queues, hand)) => json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH}}),
            None => json!({"type": "Reject"}),
        };
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}))
    });
    [object("PriorityLevelConfiguration", "exempt", exempt)].into_iter().chain(levels).chain(schemas()).collect()
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let metadata = json!({"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}});
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec})
}

fn schemas() -> Vec<Value> {
    let groups = |names: &[&str]| -> Vec<Value> { names.iter().map(|it| json!({"kind": "Group", "group": {"name": it}})).collect() };
    let users = |names: &[&str]| -> Vec<Value> { names.iter().map(|it| json!({"kind": "User", "user": {"name": it}})).collect() };
    let accounts = || vec![json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})];
    let everyone = || groups(&["system:unauthenticated", "system:authenticated"]);
    let resources = |verbs: &[&str], group: &str, resources: &[&str], is_cluster: bool| {
        let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
        if is_cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let anything = |subjects: Vec<Value>| {
        json!({"subjects": subjects, "resourceRules": [resources(&["*"], "*", &["*"], true)], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
    };
    let leases = |verbs: &[&str]| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let elections: Vec<Value> = users(&["system:kube-controller-manager", "system:kube-scheduler"]).into_iter().chain(accounts()).collect();
    let nodes = json!({"subjects": groups(&["system:nodes"]), "resourceRules": [resources(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]});
    let probes = json!({"subjects": everyone(), "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let all = [
        ("exempt", "exempt", 1, "", anything(groups(&["system:masters"]))),
        ("probes", "exempt", 2, "", probes),
        ("system-leader-election", "leader-election", 100, "ByUser", json!({"subjects": elections, "resourceRules": [leases(&["get", "create", "update"])]})),
        ("system-node-high", "node-high", 400, "ByUser", nodes),
        ("system-nodes", "system", 500, "ByUser", anything(groups(&["system:nodes"]))),
        ("kube-controller-manager", "workload-high", 800, "ByNamespace", anything(users(&["system:kube-controller-manager"]))),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", anything(users(&["system:kube-scheduler"]))),
        ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", anything(accounts())),
        ("service-accounts", "workload-low", 9000, "ByUser", anything(groups(&["system:serviceaccounts"]))),
        ("global-default", "global-default", 9900, "ByUser", anything(everyone())),
        ("catch-all", "catch-all", 10_000, "ByUser", anything(everyone())),
    ];
    let schema = |(name, level, precedence, distinguisher, rules): (&str, &str, u32, &str, Value)| {
        let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rules]});
        if !distinguisher.is_empty() {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        object("FlowSchema", name, spec)
    };
    all.into_iter().map(schema).collect()
}
