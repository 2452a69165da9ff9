"""A federation over real connections: one flower-superlink, and a flower-supernode for each site.

All of them are processes of their own, on the loopback address, with TLS and keys.
"""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr", reason="Flower is not installed: `make test-federated` installs it")

import httpx

from dcamt import api

pytestmark = [
    pytest.mark.slow,
    *(
        pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed")
        for name in ("openssl", "ssh-keygen")
    ),
]

NAMES = ("south", "north", "east")
BIN = Path(sys.executable).parent


def write_certificates(folder):
    """An authority, ca.pem, and a certificate of it, link.pem and link.key, as the page has it."""
    page = (Path(__file__).parents[2] / "docs" / "federated.md").read_text()
    (commands,) = (block for block in page.split("```") if "openssl x509" in block)
    script = commands.removeprefix("sh\n").replace("rsa:4096", "rsa:2048")
    subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True)


def write_key(path):
    """A key of a site, and beside it the public one, as the page has it."""
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", path]
    subprocess.run(command, check=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Gate(BaseHTTPRequestHandler):
    """Passes what sites ask of the link, and nothing else, as a proxy before it would."""

    protocol_version = "HTTP/1.1"
    link, passed, refused = None, 0, 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.startswith("/v1/fleet/"):
            type(self).refused += 1
            self.send_error(403)
            return
        type(self).passed += 1
        keep = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        found = self.link.request("POST", self.path, content=body, headers=keep)
        self.send_response(found.status_code)
        for name, value in found.headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "content-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.content)))
        self.end_headers()
        self.wfile.write(found.content)

    def log_message(self, *given):
        pass


@contextmanager
def gate_before(federation):
    """The port of a gate before the link of a federation."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(federation.root / "link.pem", federation.root / "link.key")
    trusted = ssl.create_default_context(cafile=federation.root / "ca.pem")
    with httpx.Client(base_url=f"https://127.0.0.1:{federation.port}", verify=trusted) as link:
        kind = type("Gate", (Gate,), {"link": link})
        served = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        served.socket = context.wrap_socket(served.socket, server_side=True)
        Thread(target=served.serve_forever, daemon=True).start()
        try:
            yield served.server_port, kind
        finally:
            served.shutdown()


class Federation:
    """A link and its nodes, below one folder."""

    def __init__(self, root, sites):
        self.root, self.sites, self.processes = root, sites, {}
        self.port = free_port()
        root.mkdir()
        write_certificates(root)
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(root / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }
        (root / "flwr").mkdir()
        (root / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "link"\n[superlink.link]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{root / "ca.pem"}"\ninsecure = false\n'
        )

    def start(self, name, *command, **environment):
        log = (self.root / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [BIN / command[0], *map(str, command[1:])],
            env={**self.environment, "FLWR_HOME": str(self.root / f"home-{name}"), **environment},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def start_link(self):
        self.start(
            "link", "flower-superlink", "--ssl-ca-certfile", self.root / "ca.pem",
            "--ssl-certfile", self.root / "link.pem", "--ssl-keyfile", self.root / "link.key",
            "--enable-supernode-auth", "--port", self.port,
        )  # fmt: skip
        self.wait(self.is_open, 60)

    def is_open(self):
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def start_node(self, name, config="", new=True, port=None):
        key = self.root / f"key-{name}"
        if new:
            write_key(key)
        self.flwr("supernode", "register", key.with_suffix(".pub"), "--name", name)
        folder = self.root / "sites" / name
        self.start(
            name, "flower-supernode", "--root-certificates", self.root / "ca.pem",
            "--superlink", f"127.0.0.1:{port or self.port}", "--port", free_port(),
            "--auth-supernode-private-key", key, "--node-config",
            f'dataset="{self.sites[name]}" folder="{folder}" {config}',
        )  # fmt: skip

    def flwr(self, *command):
        done = subprocess.run(
            [BIN / "flwr", *map(str, command)],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, app, *options):
        return json.loads(self.flwr("run", app, *options, "--format", "json").stdout)["run-id"]

    def status(self, run):
        found = json.loads(self.flwr("ls", "--format", "json").stdout)["runs"]
        return next(one["status"] for one in found if str(one["run-id"]) == str(run))

    def finish(self, run, limit=900):
        self.wait(lambda: self.status(run).startswith("finished"), limit)
        return self.status(run)

    def log(self, run):
        return self.flwr("log", run, "--show").stdout

    def wait(self, condition, limit):
        until = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < until, self.tail()
            time.sleep(5)

    def tail(self):
        return "\n".join(f"{p.name}: {p.read_text()[-3000:]}" for p in self.root.glob("*.log"))

    def kill(self, name):
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()  # until then its port is open

    def close(self):
        for name in list(self.processes):
            self.kill(name)


@pytest.fixture(scope="module")
def sites(hospitals):
    return {name: hospitals / name for name in NAMES}


@pytest.fixture
def federation(sites, tmp_path, cache):
    made = Federation(tmp_path / "federation", sites)
    try:
        made.start_link()
        yield made
    finally:
        made.close()


def weights(folder):
    found = load_file(folder / "last.safetensors")
    return {name: value for name, value in found.items() if not name.startswith("optimizer/")}


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def write_app(tmp_path, settings, rounds=2, **options):
    return api.federate(
        NAMES, tmp_path / "run", rounds=rounds, iterations=2, app=tmp_path / "app", set=settings,
        **{"timeout": 300, **options},
    )  # fmt: skip


def test_sites_behind_connections_train_the_weights_of_folders_on_one_machine(
    federation, sites, settings, tmp_path
):
    for name in NAMES:
        federation.start_node(name)
    run = federation.submit(write_app(tmp_path, settings))
    assert federation.finish(run) == "finished:completed", federation.tail()
    here = api.federate(
        sites.values(), tmp_path / "here", rounds=2, iterations=2, set=settings, quiet=True
    )
    there = tmp_path / "run"
    assert_same(weights(there), weights(here))
    for name in ("config.yaml", "split.json", "versions.json"):
        assert (there / name).read_text() == (here / name).read_text()
    scores = [json.loads((run / "validation.json").read_text()) for run in (there, here)]
    assert scores[0] == scores[1]
    for name in NAMES:
        assert_same(weights(federation.root / "sites" / name), weights(here / "sites" / name))


FAULTY = """
import time
import torch
from dcamt.runs import flower_site

client = flower_site.client
train = flower_site.train_round


def faulty(site, shared, since, *given):
    sent = train(site, shared, since, *given)
    name = site.folder.name
    if (name, since) == ("north", 0):
        next(iter(sent.weights.values()))[0] = torch.nan
    if (name, since) in (("east", 0), ("south", 2)):
        (site.folder / "asleep").touch()
        time.sleep({sleep})
    return sent


flower_site.train_round = faulty
"""


def test_a_round_goes_on_without_a_site_that_is_killed_or_silent_or_sends_what_is_not_finite(
    federation, settings, tmp_path
):
    timeout = 120
    app = write_app(tmp_path, settings, timeout=timeout)
    project = (app / "pyproject.toml").read_text()
    faulty = project.replace("dcamt.runs.flower_site:client", "faulty:client")
    (app / "pyproject.toml").write_text(faulty)
    (app / "faulty.py").write_text(FAULTY.format(sleep=timeout + 30))
    for name in NAMES:
        federation.start_node(name)
    run = federation.submit(app)
    federation.wait((federation.root / "sites" / "east" / "asleep").exists, 600)
    federation.kill("east")
    assert federation.finish(run) == "finished:completed", federation.tail()
    told = federation.log(run)
    for line in (
        "round 1 of 2: south is done",
        "round 1 of 2: north is left out: the weight ",
        "round 1 of 2: east is left out: ",
        f"round 2 of 2: south is left out: it did not answer within {timeout} s",
        "round 2 of 2: north is done",
        "round 2 of 2: east is left out: it is not connected",
    ):
        assert line in told, told
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())
    assert "phantom_" not in told  # names of cases stay at their sites


def test_after_the_link_was_killed_the_app_goes_on_with_the_same_weights(
    federation, sites, settings, tmp_path
):
    app = write_app(tmp_path, settings)
    for name in NAMES:
        federation.start_node(name)
    federation.submit(app)
    federation.wait((tmp_path / "run" / "last.safetensors").exists, 900)
    for name in ("link", *NAMES):
        federation.kill(name)
    federation.start_link()
    for name in NAMES:
        federation.start_node(name, new=False)
    run = federation.submit(app, "--run-config", "resume=true")
    assert federation.finish(run) == "finished:completed", federation.tail()
    here = api.federate(
        sites.values(), tmp_path / "here", rounds=2, iterations=2, set=settings, quiet=True
    )
    assert_same(weights(tmp_path / "run"), weights(here))


def test_masked_sums_train_the_same_weights_but_for_rounding(federation, sites, settings, tmp_path):
    with gate_before(federation) as (port, gate):
        for name in NAMES:
            federation.start_node(name, "secure=true", port=port)
        app = write_app(tmp_path, settings, rounds=1, secure=True)
        run = federation.submit(app)
        assert federation.finish(run) == "finished:completed", federation.tail()
        trusted = ssl.create_default_context(cafile=federation.root / "ca.pem")
        refused = httpx.post(f"https://127.0.0.1:{port}/v1/control/list-runs", verify=trusted)
        assert refused.status_code == 403
    assert gate.passed > 100
    assert gate.refused == 1  # no site has asked for anything else
    assert "round 1 of 1: south, north, east is done" in federation.log(run)
    here = weights(
        api.federate(
            sites.values(), tmp_path / "here", rounds=1, iterations=2, set=settings, quiet=True
        )
    )
    there = weights(tmp_path / "run")
    assert there.keys() == here.keys()
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-6, atol=1e-6)
