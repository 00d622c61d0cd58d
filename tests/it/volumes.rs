//! Volumes and claims: bound to each other at once or with their first pod, and kept while something uses them.

use crate::cluster::{Cluster, has_kubectl};

const OBJECTS: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: made}
provisioner: example.com/maker
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: shared}
spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: large}
spec: {capacity: {storage: 9Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: spare}
spec: {capacity: {storage: 9Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  local: {path: /mnt/disk}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [sim-1]}]}]}}
"#;

fn claim(name: &str, class: &str) -> String {
    format!("{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{storageClassName: '{class}', accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}}}")
}

fn pod(name: &str, claims: &[&str]) -> String {
    let volumes: Vec<String> = claims.iter().map(|it| format!("{{name: {it}, persistentVolumeClaim: {{claimName: {it}}}}}")).collect();
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: i}}], volumes: [{}]}}}}", volumes.join(", "))
}

/// Its pods mount what its claims give them.
const SET: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: data, mountPath: /data}]}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]
"#;

#[test]
fn claims_get_volumes_and_neither_goes_while_it_is_used() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory", "--node", "none", "--simulated-nodes", "3"]);
    let apply = |text: &str| {
        let (applied, output) = cluster.kubectl_with("apply -f -", text);
        assert!(applied, "{output}");
    };
    let events = |reason: &str| format!("get events --field-selector reason={reason} -o jsonpath={{.items[*].message}}");
    apply(OBJECTS);
    cluster.eventually("get pv -o jsonpath={.items[*].status.phase}", "Available Available Available Available");

    // At once, the smallest that is large enough; not before there is a pod; by somebody else; never.
    apply(&[claim("now", ""), claim("later", "local"), claim("ordered", "made"), claim("never", "unknown")].join("\n---\n"));
    cluster.eventually("get pvc now -o jsonpath={.status.phase}.{.spec.volumeName}.{.status.capacity.storage}", "Bound.shared.2Gi");
    cluster.eventually("get pv shared -o jsonpath={.status.phase}.{.spec.claimRef.name}", "Bound.now");
    cluster.eventually(&events("WaitForFirstConsumer"), "waiting for first consumer to be created before binding");
    cluster.eventually("get pvc ordered -o jsonpath={.metadata.annotations['volume\\.kubernetes\\.io/storage-provisioner']}", "example.com/maker");
    cluster.eventually(&events("ProvisioningFailed"), r#"storageclass.storage.k8s.io "unknown" not found"#);
    assert_eq!(cluster.kubectl("get pvc later never -o jsonpath={.items[*].status.phase}").1, "Pending Pending");

    // The pod goes where its volume is; pods whose claims are not there or not bound wait and say why.
    apply(&[pod("user", &["now", "later"]), pod("early", &["never"]), pod("lost", &["nothing"])].join("\n---\n"));
    cluster.eventually("get pod user -o jsonpath={.spec.nodeName}.{.status.phase}", "sim-1.Running");
    assert_eq!(cluster.kubectl("get pvc later -o jsonpath={.status.phase}.{.spec.volumeName}").1, "Bound.disk");
    let message = |pod: &str| format!("get pod {pod} -o jsonpath={{.status.conditions[0].message}}");
    let refused = |why: &str| format!("0/3 nodes are available: {why}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.");
    cluster.eventually(&message("early"), &refused("pod has unbound immediate PersistentVolumeClaims"));
    cluster.eventually(&message("lost"), &refused("persistentvolumeclaim \"nothing\" not found"));
    apply(&claim("nothing", ""));
    cluster.eventually("get pod lost -o jsonpath={.status.phase}", "Running");

    // What is used stays until its last user has gone.
    assert!(cluster.kubectl("delete pvc now later --wait=false").0 && cluster.kubectl("delete pv shared --wait=false").0);
    assert_eq!(cluster.kubectl("get pvc now -o jsonpath={.metadata.finalizers}").1, r#"["kubernetes.io/pvc-protection"]"#);
    assert_eq!(cluster.kubectl("get pv shared -o jsonpath={.metadata.finalizers}").1, r#"["kubernetes.io/pv-protection"]"#);
    assert!(cluster.kubectl("delete pod user --force").0);
    cluster.eventually("get pvc -o jsonpath={.items[*].metadata.name}", "never nothing ordered");
    cluster.eventually("get pv -o jsonpath={.items[*].metadata.name}", "disk large spare");
    cluster.eventually("get pv disk -o jsonpath={.status.phase}.{.spec.claimRef.name}", "Released.later");

    apply(SET);
    cluster.eventually("get pvc data-db-0 -o jsonpath={.status.phase}", "Bound");
    cluster.eventually("get pod db-0 -o jsonpath={.status.phase}", "Running");

    // A volume that goes before its claim leaves that behind.
    assert!(cluster.kubectl("delete pv large --wait=false").0);
    assert!(cluster.kubectl("patch pv large -p {\"metadata\":{\"finalizers\":null}}").0);
    cluster.eventually("get pvc nothing -o jsonpath={.status.phase}", "Lost");
}
