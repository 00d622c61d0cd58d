// What the JavaScript programs share: the cluster of $KUBECONFIG and a namespace of their own, as conformance/clients gives them.

import { createInterface } from 'node:readline';
import { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import * as k8s from '@kubernetes/client-node';

export const config = new k8s.KubeConfig();
config.loadFromDefault();
export const namespace = process.env.NAMESPACE;
export const core = config.makeApiClient(k8s.CoreV1Api);
await core.createNamespace({ body: { metadata: { name: namespace } } });

/** The first true value of `condition`. */
export async function eventually(what, condition, seconds = 60) {
    for (const until = Date.now() + seconds * 1000; Date.now() < until; await sleep(100)) {
        const value = await condition();
        if (value) return value;
    }
    throw new Error(`not within ${seconds} s: ${what}`);
}

/** The Status with which `promise` must fail. */
export async function refused(code, promise) {
    try {
        await promise;
    } catch (error) {
        if (error.code !== code) throw error;
        return JSON.parse(error.body);
    }
    throw new Error(`${code} was expected`);
}

/** A stream that keeps what is written to it. */
export class Kept extends Writable {
    text = '';
    _write(chunk, _, done) {
        this.text += chunk;
        done();
    }
}

/** Creates a pod that runs a shell script, and waits until it runs. */
export async function runningPod(name, script, more = {}) {
    await eventually('pods can be made', async () => (await core.listNamespacedServiceAccount({ namespace })).items.length > 0);
    const containers = [{ name: 'main', image: process.env.IMAGE, command: ['sh', '-c', script], ...more }];
    const body = { metadata: { name, labels: { app: name } }, spec: { containers, terminationGracePeriodSeconds: 0 } };
    await core.createNamespacedPod({ namespace, body });
    const phase = async () => (await core.readNamespacedPod({ namespace, name })).status.phase;
    await eventually('the pod runs', async () => (await phase()) === 'Running');
    return name;
}

/** Has the server killed and started again. */
export async function restartServer() {
    const lines = createInterface({ input: process.stdin });
    console.log('RESTART');
    for await (const line of lines) {
        if (line === 'restarted') return;
    }
    throw new Error('the server does not come back');
}
