"""Runs commands in a pod, copies files, follows a log and forwards a port over WebSockets. Needs: pods."""

import io, json, tarfile

from kubernetes import watch
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import RESIZE_CHANNEL, STDIN_CHANNEL

from program import NAMESPACE, core, refused, running_pod

pod = running_pod("shell", """
    mkdir -p /www && echo hello from the pod > /www/index.html && httpd -p 8080 -h /www
    for it in 1 2 3 4 5 6 7 8 9 10; do echo tick $it; sleep 0.2; done; echo done; sleep 1000""")


def execute(*command, **options):
    options = {"stdin": False, "stdout": True, "stderr": True, "tty": False, **options}
    return stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=list(command), **options)


assert execute("echo", "one  two", "$HOME") == "one  two $HOME\n"

shell = execute("sh", stdin=True, _preload_content=False)
shell.write_stdin("echo out; echo err >&2; exit 7\n")
shell.run_forever(timeout=30)
assert (shell.read_stdout(), shell.read_stderr(), shell.returncode) == ("out\n", "err\n", 7)

much = execute("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x", _preload_content=False)
much.run_forever(timeout=30)
assert much.read_stdout() == "x" * 3_000_000 and much.returncode == 0

terminal = execute("sh", stdin=True, tty=True, _preload_content=False)
terminal.write_channel(RESIZE_CHANNEL, json.dumps({"Width": 123, "Height": 45}))
terminal.write_stdin("sleep 0.3; stty size; exit\n")
terminal.run_forever(timeout=30)
assert "45 123" in terminal.read_stdout(), "the terminal has the size that was asked for"

missing = execute("/no/such/program", _preload_content=False)
missing.run_forever(timeout=30)
why = missing.read_stderr()
assert "no such file or directory" in why and missing.returncode > 125, why

# As `kubectl cp` does: an archive into the pod, and out of it.
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as tar:
    entry = tarfile.TarInfo("copied/data.bin")
    entry.size = 1 << 20
    tar.addfile(entry, io.BytesIO(bytes(range(256)) * 4096))
into = execute("tar", "xf", "-", "-C", "/tmp", stdin=True, _preload_content=False, binary=True)
for at in range(0, len(archive.getvalue()), 32 << 10):
    into.write_stdin(archive.getvalue()[at:at + (32 << 10)])
into.close_channel(STDIN_CHANNEL)  # v5.channel.k8s.io can say so
into.run_forever(timeout=30)
assert into.returncode == 0, into.read_stderr()
out = execute("tar", "cf", "-", "-C", "/tmp", "copied", _preload_content=False, binary=True)
out.run_forever(timeout=30)
with tarfile.open(fileobj=io.BytesIO(out.read_stdout())) as tar:
    assert tar.extractfile("copied/data.bin").read() == bytes(range(256)) * 4096

lines, following = [], watch.Watch()
for line in following.stream(core.read_namespaced_pod_log, pod, NAMESPACE):
    lines.append(line)
    if line == "done":
        following.stop()
assert lines == [f"tick {it}" for it in range(1, 11)] + ["done"], lines
assert core.read_namespaced_pod_log(pod, NAMESPACE, tail_lines=2) == "tick 10\ndone\n"
assert core.read_namespaced_pod_log(pod, NAMESPACE, limit_bytes=4) == "tick"
stamped = core.read_namespaced_pod_log(pod, NAMESPACE, timestamps=True, tail_lines=1)
assert stamped.split(" ", 1)[0].endswith("Z") and stamped.endswith(" done\n"), stamped
assert "container nope is not valid for pod shell" in refused(400, core.read_namespaced_pod_log, pod, NAMESPACE, container="nope")

ports = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8080,8081")
socket = ports.socket(8080)
socket.settimeout(20)
socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
answer = b""
while part := socket.recv(4096):
    answer += part
assert b" 200 OK\r\n" in answer and answer.endswith(b"hello from the pod\n"), answer
assert ports.error(8080) is None
refusing = ports.socket(8081)
refusing.settimeout(20)
assert refusing.recv(10) == b"" and "8081" in ports.error(8081), ports.error(8081)
