"""Defines a kind of its own and works with it by the dynamic client, as generic tools do."""

import json, threading

from kubernetes import client, dynamic
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError, ResourceNotFoundError

from program import NAMESPACE, eventually, refused

api = dynamic.DynamicClient(client.ApiClient())
text, number = {"type": "string"}, {"type": "integer", "minimum": 0}
schema = {
    "type": "object", "required": ["spec"],
    "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {"size": number, "flavour": {**text, "enum": ["sweet", "sour"], "default": "sweet"}}},
        "status": {"type": "object", "properties": {"replicas": number, "selector": text}},
    },
}
api.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition").create(body={
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "pickles.food.example.com"},
    "spec": {
        "group": "food.example.com", "scope": "Namespaced", "names": {"kind": "Pickle", "plural": "pickles", "singular": "pickle", "shortNames": ["pk"]},
        "versions": [{
            "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.replicas"}},
        }],
    },
})


def discovered():
    api.resources.invalidate_cache()
    try:
        return api.resources.get(api_version="food.example.com/v1", kind="Pickle")
    except ResourceNotFoundError:
        return None


pickles = eventually("the kind is served", discovered)
assert pickles.namespaced and pickles.short_names == ["pk"], pickles


def pickle(name, **spec):
    return {"apiVersion": "food.example.com/v1", "kind": "Pickle", "metadata": {"name": name}, "spec": spec}


made = pickles.create(body={**pickle("first", size=1, colour="green"), "status": {"replicas": 9}}, namespace=NAMESPACE)
assert made.spec.to_dict() == {"size": 1, "flavour": "sweet"} and made.status is None, made  # default, pruned, status not taken
assert made.metadata.generation == 1
for wrong in ({"size": -1}, {"size": 1, "flavour": "salty"}, {}):
    why = json.loads(refused(422, pickles.create, body=pickle("wrong", **wrong), namespace=NAMESPACE))
    assert why["reason"] == "Invalid" and why["details"]["causes"], why

seen = []
watching = threading.Thread(target=lambda: seen.extend((it["type"], it["object"].spec.size) for it in pickles.watch(namespace=NAMESPACE, timeout=4)), daemon=True)
watching.start()
eventually("the watch begins", lambda: seen)
patched = pickles.patch(body=pickle("first", size=2), namespace=NAMESPACE, content_type="application/merge-patch+json")
assert patched.metadata.generation == 2
stale = made.to_dict()
try:
    pickles.replace(body=stale, namespace=NAMESPACE)
    raise AssertionError("a stale object was written")
except ConflictError as error:
    assert "the object has been modified; please apply your changes to the latest version and try again" in error.summary(), error.summary()

status = pickles.status.patch(body={"status": {"replicas": 2}}, name="first", namespace=NAMESPACE, content_type="application/merge-patch+json")
assert status.status.replicas == 2 and status.metadata.generation == 2
scale = pickles.scale.patch(body={"spec": {"replicas": 5}}, name="first", namespace=NAMESPACE, content_type="application/merge-patch+json")
assert scale.kind == "Scale" and scale.spec.replicas == 5 and scale.status.replicas == 2
assert [it.spec.size for it in pickles.get(namespace=NAMESPACE).items] == [5]
pickles.delete(name="first", namespace=NAMESPACE)
try:
    pickles.get(name="first", namespace=NAMESPACE)
    raise AssertionError("deleted, and still there")
except NotFoundError as error:
    assert error.summary() == 'pickles.food.example.com "first" not found', error.summary()
watching.join()
assert seen == [("ADDED", 1), ("MODIFIED", 2), ("MODIFIED", 2), ("MODIFIED", 5), ("DELETED", 5)], seen
