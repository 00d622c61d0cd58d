//! Stock kubectl against the real program: what people see.

use crate::cluster::{Cluster, has_kubectl};

/// Commands and what they print, in order, on one cluster.
fn transcript(cluster: &Cluster, steps: &[(&str, &str)]) {
    for (arguments, expected) in steps {
        let (_, output) = cluster.kubectl(arguments);
        assert_eq!(output.trim(), expected.trim(), "kubectl {arguments}");
    }
}

#[test]
fn objects_are_made_read_changed_and_deleted() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    transcript(
        &cluster,
        &[
            ("create configmap settings --from-literal=color=blue", "configmap/settings created"),
            ("create configmap settings --from-literal=color=red", "error: failed to create configmap: configmaps \"settings\" already exists"),
            ("get configmap settings -o jsonpath={.data.color}", "blue"),
            ("get configmap nothing", "Error from server (NotFound): configmaps \"nothing\" not found"),
            ("patch configmap settings -p {\"data\":{\"size\":\"9\"}}", "configmap/settings patched"),
            ("patch configmap settings --type=json -p [{\"op\":\"remove\",\"path\":\"/data/color\"}]", "configmap/settings patched"),
            ("get configmap settings -o jsonpath={.data}", "{\"size\":\"9\"}"),
            ("label configmap settings tier=back", "configmap/settings labeled"),
            ("get configmaps -l tier=back -o name", "configmap/settings"),
            ("get configmaps -l tier=front", "No resources found in default namespace."),
            ("create secret generic password --from-literal=value=x", "secret/password created"),
            ("get secret password -o jsonpath={.data.value}", "eA=="),
            ("create namespace team", "namespace/team created"),
            ("create role reader --verb=get --resource=pods -n team", "role.rbac.authorization.k8s.io/reader created"),
            ("auth can-i list pods --as=bob -n team", "no"),
            ("auth can-i get pods", "yes"),
            ("auth whoami -o jsonpath={.status.userInfo.username}", "kubernetes-admin"),
            ("get pods --as=bob", "Error from server (Forbidden): pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""),
            ("delete configmap settings", "configmap \"settings\" deleted from default namespace"),
            ("get configmap settings --ignore-not-found", ""),
            ("delete namespace team", "namespace \"team\" deleted"),
            ("delete namespace default", "Error from server (Forbidden): namespaces \"default\" is forbidden: this namespace may not be deleted"),
        ],
    );
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "howdah/hello:1"}]
"#;

#[test]
fn a_deployment_runs_on_simulated_nodes_and_survives_kill_9() {
    if !has_kubectl() {
        return;
    }
    let mut cluster = Cluster::start(&["--simulated-nodes", "3", "--node", "none"]);
    let (applied, output) = cluster.kubectl_with("apply -f -", DEPLOYMENT);
    assert!(applied, "{output}");
    cluster.eventually("get deployment web -o jsonpath={.status.readyReplicas}", "3");
    let (_, names) = cluster.kubectl("get pods -o name");
    cluster.crash_and_restart();
    assert_eq!(cluster.kubectl("get pods -o name").1, names);
    cluster.kubectl("scale deployment web --replicas=5");
    cluster.eventually("get deployment web -o jsonpath={.status.readyReplicas}", "5");
    let (rolled, output) = cluster.kubectl("set image deployment/web web=howdah/hello:2");
    assert!(rolled, "{output}");
    let (rolled, output) = cluster.kubectl("rollout status deployment/web --timeout=60s");
    assert!(rolled, "{output}");
    assert!(output.contains("deployment \"web\" successfully rolled out"), "{output}");
    let (undone, output) = cluster.kubectl("rollout undo deployment/web");
    assert!(undone, "{output}");
    let (_, output) = cluster.kubectl("rollout status deployment/web --timeout=60s");
    assert!(output.contains("successfully rolled out"), "{output}");
    cluster.eventually("get pods -l app=web -o jsonpath={.items[0].spec.containers[0].image}", "howdah/hello:1");
    let (deleted, output) = cluster.kubectl("delete deployment web --cascade=foreground --timeout=60s");
    assert!(deleted, "{output}");
    cluster.eventually("get pods -o name", "");
}

#[test]
fn who_names_no_class_gets_the_default_one() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let class = |name: &str, is_default: bool| {
        format!("apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {{name: {name}, annotations: {{ingressclass.kubernetes.io/is-default-class: \"{is_default}\"}}}}\nspec: {{controller: example.com/{name}}}\n---\n")
    };
    let (made, output) = cluster.kubectl_with("create -f -", &(class("other", false) + &class("usual", true)));
    assert!(made, "{output}");
    transcript(
        &cluster,
        &[
            ("create ingress a --rule=a.example.com/=web:80", "ingress.networking.k8s.io/a created"),
            ("create ingress b --class=other --rule=b.example.com/=web:80", "ingress.networking.k8s.io/b created"),
            ("create ingress c --annotation=kubernetes.io/ingress.class=old --rule=c.example.com/=web:80", "ingress.networking.k8s.io/c created"),
            ("get ingresses -o jsonpath={.items[*].spec.ingressClassName}", "usual other"),
        ],
    );
}

#[test]
fn server_side_apply_finds_conflicts() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let (applied, output) = cluster.kubectl_with("apply --server-side -f -", DEPLOYMENT);
    assert!(applied, "{output}");
    let more = DEPLOYMENT.replace("replicas: 3", "replicas: 4");
    let (applied, output) = cluster.kubectl_with("apply --server-side --field-manager=other -f -", &more);
    assert!(!applied && output.contains("Apply failed with 1 conflict: conflict with \"kubectl\": .spec.replicas"), "{output}");
    let (applied, output) = cluster.kubectl_with("apply --server-side --field-manager=other --force-conflicts -f -", &more);
    assert!(applied, "{output}");
    assert_eq!(cluster.kubectl("get deployment web -o jsonpath={.spec.replicas}").1, "4");
}
