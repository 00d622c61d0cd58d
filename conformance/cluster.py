"""A fresh cluster of its own port and data, and a Postgres of its own, for conformance/run and conformance/clients."""

import contextlib, json, os, pathlib, pwd, re, shutil, signal, socket, subprocess, tempfile, time

START_WITHIN = 60
# Errors of the server that are another's: what stands behind a proxy, a webhook or an APIService answers for itself. And one that upstream
# has too: an applied field that the schema lacks is its 500.
OTHERS_ERRORS = r"/proxy([/? ]|$)|failed calling webhook|error trying to reach service|aggregated API server|failed to create typed patch object"


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


class Postgres:
    """A database server that ends with the run. Its programs refuse root: there they run as `postgres`, or `nobody`."""

    def __init__(self):
        self.programs = Postgres.found()
        if self.programs is None:
            raise SystemExit("There is no Postgres on this machine: apt-get install postgresql")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="howdah-postgres-"))
        self.user = []
        if os.geteuid() == 0:
            name = "postgres" if any(it.pw_name == "postgres" for it in pwd.getpwall()) else "nobody"
            self.user = ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups"]
            shutil.chown(self.folder, name)

    @staticmethod
    def found():
        """The folder of its programs: where HOWDAH_POSTGRES says, or the newest; "" where they are on the PATH."""
        if given := os.environ.get("HOWDAH_POSTGRES"):
            return f"{given}/"
        folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda it: [int(part) for part in re.findall(r"\d+", it.parent.name)])
        return "" if shutil.which("initdb") else f"{folders[-1]}/" if folders else None

    def __enter__(self):
        port, data = free_port(), self.folder / "data"
        self.call("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
        settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={self.folder}"
        self.call("pg_ctl", "-D", data, "-w", "-l", self.folder / "log", "-o", settings, "start")
        return f"postgres://postgres@127.0.0.1:{port}/postgres"

    def __exit__(self, *_):
        self.call("pg_ctl", "-D", self.folder / "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, program, *arguments):
        done = subprocess.run([*self.user, f"{self.programs}{program}", *arguments], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        if done.returncode:
            raise SystemExit(f"{program} failed: {done.stdout.decode(errors='replace')}")


def is_server_error(request):
    """Whether the server failed to answer."""
    return (request["status"] or 0) >= 500 and not re.search(OTHERS_ERRORS, f"{request['path']} {request.get('message', '')}")


def shown(request):
    return f"{request['status']} {request['verb']} {request['path']} for {request['user']} ({request['agent']}) in {request['milliseconds']} ms {request.get('message', '')}"


@contextlib.contextmanager
def registry(folder):
    """The folder's images as a registry, for tests that pull what is there; its URL."""
    process = subprocess.Popen([pathlib.Path(__file__).parent / "registry", folder], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


class Cluster:
    """howdah in a folder: `data`, `admin.conf`, `howdah.log`, and `trace.jsonl`, the requests."""

    def __init__(self, howdah, folder, store="sqlite", images=(), arguments=()):
        self.howdah, self.store, self.images, self.arguments = howdah, store, images, arguments
        self.data, self.kubeconfig, self.log, self.trace = (folder / it for it in ("data", "admin.conf", "howdah.log", "trace.jsonl"))
        self.port, self.process = free_port(), None

    def __enter__(self):
        shutil.rmtree(self.data, ignore_errors=True)
        for file in (self.log, self.trace):
            file.unlink(missing_ok=True)
        for archive in self.images:
            subprocess.run([self.howdah, "image", "import", "--data-dir", self.data, archive], check=True, stdout=subprocess.DEVNULL)
        self.start()
        return self

    def start(self):
        start = self.at()
        command = [self.howdah, "up", "--bind", f"127.0.0.1:{self.port}", "--data-dir", self.data, "--kubeconfig", self.kubeconfig, "--store", self.store, "--trace", self.trace, *self.arguments]
        self.process = subprocess.Popen(command, stdout=self.log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True)
        until = time.monotonic() + START_WITHIN
        while time.monotonic() < until and self.process.poll() is None:
            if "Ctrl-C stops it" in self.said(start):
                return
            time.sleep(0.1)
        raise SystemExit(f"The cluster does not start:\n{self.said(start)}")

    def crash(self):
        """Kills the server as `kill -9` does, and starts it again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def at(self):
        return self.log.stat().st_size if self.log.exists() else 0

    def said(self, start, most=200_000):
        """The cluster's log since `start`."""
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read(most).decode(errors="replace")

    def requests(self):
        """What the API was asked since the cluster was new."""
        with self.trace.open() as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # `kill -9` cuts one off
                    yield json.loads(line)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
