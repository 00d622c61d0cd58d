// Runs commands in a pod, copies a file into it, and attaches to its main process. Needs: pods.

import assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import * as k8s from '@kubernetes/client-node';
import { Kept, config, eventually, namespace, runningPod } from './program.mjs';

const pod = await runningPod('echo', 'while read line; do echo "heard $line"; done', { stdin: true });

async function execute(command, input) {
    const [out, err] = [new Kept(), new Kept()];
    let status;
    const stdin = input === undefined ? null : new PassThrough();
    await new k8s.Exec(config).exec(namespace, pod, 'main', command, out, err, stdin, false, (it) => (status = it));
    stdin?.end(input);
    await eventually(`${command} ends`, () => status);
    return { out: out.text, err: err.text, status };
}

const plain = await execute(['sh', '-c', 'echo out; echo err >&2']);
assert.deepEqual([plain.out, plain.err, plain.status.status], ['out\n', 'err\n', 'Success']);
const failed = await execute(['sh', '-c', 'exit 3']);
assert.equal(failed.status.reason, 'NonZeroExitCode');
assert.deepEqual(failed.status.details.causes, [{ reason: 'ExitCode', message: '3' }]);
// The end of the input is told (v5.channel.k8s.io), so that `wc` ends.
const counted = await execute(['wc', '-c'], 'x'.repeat(200_000));
assert.equal(counted.out.trim(), '200000');

const folder = mkdtempSync(join(tmpdir(), 'howdah-'));
const text = 'as kubectl cp\n'.repeat(10_000);
writeFileSync(join(folder, 'there'), text);
await new k8s.Cp(config).cpToPod(namespace, pod, 'main', folder, '/tmp');
await eventually('the file arrives', async () => (await execute(['wc', '-c', '/tmp/there'])).out.startsWith(`${text.length} `));
assert.equal((await execute(['cat', '/tmp/there'])).out, text);

const [input, output] = [new PassThrough(), new Kept()];
const socket = await new k8s.Attach(config).attach(namespace, pod, 'main', output, null, input, false);
input.write('a word\n');
await eventually('the process answers', () => output.text === 'heard a word\n');
socket.close();
process.exit(0);
