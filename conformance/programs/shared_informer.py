"""A shared informer keeps its cache right through a server that is killed and comes back. Needs: restart."""

import logging

from kubernetes.informer import ADDED, DELETED, MODIFIED, SharedInformer

from program import NAMESPACE, config_map, core, eventually, restart_server

logging.disable(logging.CRITICAL)  # it tells of every lost connection
seen = []
informer = SharedInformer(core.list_namespaced_config_map, namespace=NAMESPACE, label_selector="app=cached")
for kind in (ADDED, MODIFIED, DELETED):
    informer.add_event_handler(kind, lambda it, kind=kind: seen.append((kind, it.metadata.name)))

for name in ("kept", "changed", "deleted"):
    core.create_namespaced_config_map(NAMESPACE, config_map(name, {"at": "1"}, {"app": "cached"}))
informer.start()
eventually("the cache is filled", lambda: len(seen) == 3)
core.patch_namespaced_config_map("changed", NAMESPACE, {"data": {"at": "2"}})
eventually("the change arrives", lambda: (MODIFIED, "changed") in seen)

restart_server()
core.delete_namespaced_config_map("deleted", NAMESPACE)
core.create_namespaced_config_map(NAMESPACE, config_map("new", {"at": "3"}, {"app": "cached"}))
eventually("the cache is right again", lambda: sorted(it.metadata.name for it in informer.cache.list()) == ["changed", "kept", "new"])
assert informer.cache.get_by_key(f"{NAMESPACE}/changed").data == {"at": "2"}
assert seen.count((ADDED, "new")) == 1 and seen.count((DELETED, "deleted")) == 1 and seen.count((ADDED, "kept")) == 1, seen
informer.stop()
