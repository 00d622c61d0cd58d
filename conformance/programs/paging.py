"""Lists page by page, as a backup does: every page is of the same moment, whatever is written meanwhile."""

import json

from program import NAMESPACE, config_map, core, refused

for number in range(57):
    core.create_namespaced_config_map(NAMESPACE, config_map(f"item-{number:02}", {"number": str(number)}, {"parity": "even" if number % 2 == 0 else "odd"}))

first = core.list_namespaced_config_map(NAMESPACE, limit=10)
assert len(first.items) == 10 and first.metadata.remaining_item_count == 48, first.metadata  # kube-root-ca.crt is there too
core.create_namespaced_config_map(NAMESPACE, config_map("item-99"))
core.delete_namespaced_config_map("item-50", NAMESPACE)

names, page, pages = [it.metadata.name for it in first.items], first, 1
while page.metadata._continue:
    page = core.list_namespaced_config_map(NAMESPACE, limit=10, _continue=page.metadata._continue)
    assert page.metadata.resource_version == first.metadata.resource_version
    names += [it.metadata.name for it in page.items]
    pages += 1
assert pages == 6 and names == sorted(f"item-{it:02}" for it in range(57)) + ["kube-root-ca.crt"], names
assert page.metadata.remaining_item_count is None

odd = core.list_namespaced_config_map(NAMESPACE, limit=5, label_selector="parity in (odd)")
assert [it.data["number"] for it in odd.items] == ["1", "3", "5", "7", "9"]
assert odd.metadata._continue and odd.metadata.remaining_item_count is None  # not counted where there is a selector

why = json.loads(refused(400, core.list_namespaced_config_map, NAMESPACE, limit=5, _continue="nonsense"))
assert why["reason"] == "BadRequest" and why["message"].startswith("invalid continue token: continue key is not valid"), why
one = core.list_namespaced_config_map(NAMESPACE, field_selector="metadata.name=item-99")
assert [it.metadata.name for it in one.items] == ["item-99"]
core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="parity")
assert [it.metadata.name for it in core.list_namespaced_config_map(NAMESPACE).items] == ["item-99", "kube-root-ca.crt"]
