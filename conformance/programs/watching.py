"""Watches from the revision of a list, stops, and goes on later from the last event, as an operator without an informer does."""

import time

from kubernetes import watch

from program import NAMESPACE, config_map, core, refused


def events(seconds=5, **more):
    stream = watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, timeout_seconds=seconds, label_selector="app=watched", **more)
    return stream


def named(event):
    return event["type"], event["object"].metadata.name


core.create_namespaced_config_map(NAMESPACE, config_map("before", labels={"app": "watched"}))
start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
core.create_namespaced_config_map(NAMESPACE, config_map("one", {"at": "1"}, {"app": "watched"}))
core.create_namespaced_config_map(NAMESPACE, config_map("other", labels={"app": "other"}))
core.patch_namespaced_config_map("one", NAMESPACE, {"data": {"at": "2"}})
core.patch_namespaced_config_map("one", NAMESPACE, {"data": {"at": "2"}})  # changes nothing
core.patch_namespaced_config_map("before", NAMESPACE, {"metadata": {"labels": {"app": "other"}}})  # leaves the selection
core.delete_namespaced_config_map("one", NAMESPACE)

seen, following = [], events(resource_version=start)
for event in following:
    seen.append(event)
    if len(seen) == 2:
        break
assert [named(it) for it in seen] == [("ADDED", "one"), ("MODIFIED", "one")], seen
assert [it["object"].data["at"] for it in seen] == ["1", "2"]

began = time.monotonic()
rest = list(events(seconds=2, resource_version=seen[-1]["object"].metadata.resource_version))
assert [named(it) for it in rest] == [("DELETED", "before"), ("DELETED", "one")], rest
assert 1.5 < time.monotonic() - began < 10, "timeoutSeconds ends a watch"
assert int(rest[-1]["object"].metadata.resource_version) > int(seen[-1]["object"].metadata.resource_version)

# Without a revision what is there comes first; bookmarks carry a revision only.
core.create_namespaced_config_map(NAMESPACE, config_map("two", labels={"app": "watched"}))
assert [named(it) for it in events(seconds=1)] == [("ADDED", "two")]
marked = list(events(seconds=2, allow_watch_bookmarks=True, send_initial_events=True, resource_version_match="NotOlderThan"))
assert [it["type"] for it in marked][:2] == ["ADDED", "BOOKMARK"], marked
assert marked[1]["raw_object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}, marked[1]

assert "Invalid value" in refused(400, lambda: list(events(resource_version="yesterday")))
