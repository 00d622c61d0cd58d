// An informer that is started again when its connection breaks, as the client's documentation says, through a server that is killed.
// Needs: restart.

import assert from 'node:assert/strict';
import * as k8s from '@kubernetes/client-node';
import { config, core, eventually, namespace, restartServer } from './program.mjs';

const labelSelector = 'app=cached';
const list = () => core.listNamespacedConfigMap({ namespace, labelSelector });
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list, labelSelector);
const seen = [];
for (const event of ['add', 'update', 'delete']) {
    informer.on(event, (it) => seen.push(`${event} ${it.metadata.name}`));
}
let breaks = 0;
informer.on('error', () => {
    breaks += 1;
    setTimeout(() => informer.start(), 200);
});

const create = (name) => core.createNamespacedConfigMap({ namespace, body: { metadata: { name, labels: { app: 'cached' } }, data: { at: '1' } } });
const change = (name, value) =>
    core.patchNamespacedConfigMap(
        { namespace, name, body: [{ op: 'replace', path: '/data/at', value }] },
        k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.JsonPatch),
    );
await create('kept');
await create('gone');
await informer.start();
await eventually('the cache is filled', () => seen.length === 2);
await change('kept', '2');
await eventually('the change arrives', () => seen.includes('update kept'));

await restartServer();
await create('new');
await core.deleteNamespacedConfigMap({ namespace, name: 'gone' });
await eventually('the cache is right again', () => {
    const names = informer.list().map((it) => it.metadata.name).sort();
    return names.join() === 'kept,new';
});
assert.equal(informer.get('kept', namespace).data.at, '2');
assert.deepEqual([...seen].sort(), ['add gone', 'add kept', 'add new', 'delete gone', 'update kept']);
await informer.stop();
process.exit(0);
