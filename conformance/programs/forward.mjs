// Forwards a port and follows a log. Needs: pods.

import assert from 'node:assert/strict';
import { connect, createServer } from 'node:net';
import * as k8s from '@kubernetes/client-node';
import { Kept, config, eventually, namespace, runningPod } from './program.mjs';

const pod = await runningPod('web', `
    mkdir -p /www && echo hello > /www/index.html && httpd -p 8080 -h /www
    it=0; while sleep 0.1; do it=$((it + 1)); echo line $it; done`);

// A local port whose connections go to the pod's, as in the client's examples.
const forward = new k8s.PortForward(config);
const server = createServer((socket) => forward.portForward(namespace, pod, [8080], socket, null, socket));
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const get = () =>
    new Promise((resolve, reject) => {
        let text = '';
        const socket = connect(server.address().port, '127.0.0.1', () => socket.write('GET / HTTP/1.0\r\n\r\n'));
        socket.setTimeout(20_000, () => reject(new Error('no answer')));
        socket.on('data', (it) => {
            text += it;
            if (text.endsWith('hello\n')) {
                socket.destroy();
                resolve(text);
            }
        });
        socket.on('error', reject);
    });
const answers = await Promise.all([get(), get(), get()]);
assert.ok(answers.every((it) => it.startsWith('HTTP/1.0 200 OK') || it.startsWith('HTTP/1.1 200 OK')), answers[0]);

const log = new Kept();
const following = await new k8s.Log(config).log(namespace, pod, 'main', log, { follow: true });
await eventually('the log is followed', () => log.text.includes('line 30\n'));
following.abort();
assert.ok(log.text.startsWith('line 1\nline 2\nline 3\n'), log.text.slice(0, 100));
process.exit(0);
