"""Creates what a YAML file of several documents says and rolls it out; then applies changes from the server side. Needs: pods."""

import tempfile

from kubernetes import client, dynamic, utils

from program import IMAGE, NAMESPACE, core, eventually, refused

MANIFEST = f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: page}}
data: {{index.html: "first\\n"}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: httpd
        image: {IMAGE}
        command: [httpd, -f, -p, "8080", -h, /www]
        readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}
        volumeMounts: [{{name: page, mountPath: /www}}]
      volumes: [{{name: page, configMap: {{name: page}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"""

api = client.ApiClient()
apps = client.AppsV1Api()
with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
    file.write(MANIFEST)
    file.flush()
    created = utils.create_from_yaml(api, file.name, namespace=NAMESPACE)
    assert [it[0].kind for it in created] == ["ConfigMap", "Deployment", "Service"], created
    try:
        utils.create_from_yaml(api, file.name, namespace=NAMESPACE)
        raise AssertionError("created twice")
    except utils.FailToCreateError as error:
        assert [it.reason for it in error.api_exceptions] == ["Conflict"] * 3, error
eventually("the rollout is complete", lambda: apps.read_namespaced_deployment("web", NAMESPACE).status.ready_replicas == 2)


def page():
    try:
        return core.connect_get_namespaced_service_proxy("web:80", NAMESPACE)
    except client.ApiException as error:
        assert error.status == 503, error  # no endpoint yet
        return None


assert eventually("the Service answers", page) == "first\n"

deployments = dynamic.DynamicClient(api).resources.get(api_version="apps/v1", kind="Deployment")


def apply(manager, replicas, **more):
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas}}
    return deployments.server_side_apply(body=body, namespace=NAMESPACE, field_manager=manager, **more)


why = refused(409, apply, "autoscaler", 3)
assert "Apply failed with 1 conflict" in why and ".spec.replicas" in why, why
applied = apply("autoscaler", 3, force_conflicts=True)
owners = {it.manager: it.operation for it in applied.metadata.managedFields if "f:replicas" in it.fieldsV1.to_dict().get("f:spec", {})}
assert owners == {"autoscaler": "Apply"}, owners
assert apply("autoscaler", 3).metadata.resourceVersion == applied.metadata.resourceVersion, "an apply that changes nothing writes nothing"
eventually("it scales", lambda: apps.read_namespaced_deployment("web", NAMESPACE).status.ready_replicas == 3)
apps.delete_namespaced_deployment("web", NAMESPACE, propagation_policy="Foreground")
eventually("all of it goes", lambda: not core.list_namespaced_pod(NAMESPACE).items and not apps.list_namespaced_replica_set(NAMESPACE).items)
