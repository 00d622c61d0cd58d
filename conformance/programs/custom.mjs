// A custom kind by its group, version and plural, watched, patched in three ways, and applied from the server side by two managers.

import assert from 'node:assert/strict';
import * as k8s from '@kubernetes/client-node';
import { config, eventually, namespace, refused } from './program.mjs';

const group = 'tea.example.com';
const kind = { group, version: 'v1', namespace, plural: 'teapots' };
const schema = {
    type: 'object',
    properties: {
        spec: {
            type: 'object',
            properties: {
                litres: { type: 'number' },
                lid: { type: 'string' },
                spouts: {
                    type: 'array',
                    items: { type: 'object', required: ['name'], properties: { name: { type: 'string' }, bent: { type: 'boolean' } } },
                    x_kubernetes_list_type: 'map',
                    x_kubernetes_list_map_keys: ['name'],
                },
            },
        },
    },
};
await config.makeApiClient(k8s.ApiextensionsV1Api).createCustomResourceDefinition({
    body: {
        metadata: { name: `teapots.${group}` },
        spec: {
            group,
            scope: 'Namespaced',
            names: { plural: 'teapots', singular: 'teapot', kind: 'Teapot' },
            versions: [{ name: 'v1', served: true, storage: true, schema: { openAPIV3Schema: schema } }],
        },
    },
});
const custom = config.makeApiClient(k8s.CustomObjectsApi);
await eventually('the kind is served', async () => {
    try {
        return await custom.listNamespacedCustomObject(kind);
    } catch (error) {
        assert.equal(error.code, 404);
    }
});

const seen = [];
const watch = await new k8s.Watch(config).watch(`/apis/${group}/v1/namespaces/${namespace}/teapots`, {}, (type, it) => seen.push(`${type} ${it.spec.litres}`), () => {});
const teapot = (spec) => ({ apiVersion: `${group}/v1`, kind: 'Teapot', metadata: { name: 'brown' }, spec });
const made = await custom.createNamespacedCustomObject({ ...kind, body: teapot({ litres: 1 }) });
assert.equal(made.metadata.generation, 1);
const exists = await refused(409, custom.createNamespacedCustomObject({ ...kind, body: teapot({ litres: 2 }) }));
assert.equal(exists.message, 'teapots.tea.example.com "brown" already exists');

const patch = (body, strategy) => custom.patchNamespacedCustomObject({ ...kind, name: 'brown', body }, k8s.setHeaderOptions('Content-Type', strategy));
assert.equal((await patch([{ op: 'replace', path: '/spec/litres', value: 1.5 }], k8s.PatchStrategy.JsonPatch)).spec.litres, 1.5);
assert.deepEqual((await patch({ spec: { lid: 'round', litres: 2 } }, k8s.PatchStrategy.MergePatch)).spec, { lid: 'round', litres: 2 });
const strategic = await refused(415, patch({}, k8s.PatchStrategy.StrategicMergePatch));
assert.match(strategic.message, /application\/json-patch\+json, application\/merge-patch\+json, application\/apply-patch\+yaml/);
await eventually('the watch has seen it', () => seen.join() === 'ADDED 1,MODIFIED 1.5,MODIFIED 2');
watch.abort();

// Each manager has what it applied: lists are merged by name, and what one no longer applies goes.
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const apply = (manager, spec, force) => {
    const body = teapot(spec);
    body.metadata.namespace = namespace;
    return objects.patch(body, undefined, undefined, manager, force, k8s.PatchStrategy.ServerSideApply);
};
await apply('potter', { spouts: [{ name: 'left', bent: true }, { name: 'right' }] });
const both = await apply('painter', { spouts: [{ name: 'top' }] });
assert.deepEqual(both.spec.spouts.map((it) => it.name), ['left', 'right', 'top']);
const conflict = await refused(409, apply('painter', { spouts: [{ name: 'left', bent: false }] }));
assert.match(conflict.message, /conflict with "potter": \.spec\.spouts\[name="left"\]\.bent/);
const less = await apply('potter', { spouts: [{ name: 'left', bent: true }] });
assert.deepEqual(less.spec.spouts.map((it) => it.name), ['left', 'top']);
assert.deepEqual([less.spec.lid, less.spec.litres], ['round', 2]);
await custom.deleteNamespacedCustomObject({ ...kind, name: 'brown' });
const missing = await refused(404, custom.getNamespacedCustomObject({ ...kind, name: 'brown' }));
assert.equal(missing.message, 'teapots.tea.example.com "brown" not found');
process.exit(0);
