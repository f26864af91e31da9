"""A real server process on free ports of loopback, tenants made with the command line, and raw sockets."""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

import openai

BUILD = pathlib.Path(os.environ["REALM_BUILD"]).resolve()
REALM = str(BUILD / "realm")
GUEST = BUILD / "guest"
MODEL = os.environ["REALM_TEST_MODEL"]  # SmolLM2-135M-Instruct
CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def realm(*args, state=None, check=True):
    """One command; its stdout."""
    command = [REALM, *args] + (["--state", str(state)] if state else [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stderr}")
    return done.stdout if check else done


def guest(name):
    """A program of tests/programs, freestanding C, as a module."""
    root, out = pathlib.Path(__file__).parents[2], BUILD / "programs" / f"{name}.wasm"
    out.parent.mkdir(parents=True, exist_ok=True)
    for command in (["clang-19", "--target=wasm32", "-mbulk-memory", "-O2", "-ffreestanding", "-nostdlib", "-I", root / "guest/c",
                     "-I", root / "include", "-c", root / "tests/programs" / f"{name}.c", "-o", out.with_suffix(".o")],
                    ["wasm-ld-19", "--no-entry", "--export-memory", out.with_suffix(".o"), "-o", out]):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    return out


class Skip(Exception):
    """What a test cannot do without is not on this machine, and cannot be installed by tools/setup."""


class Server:
    """`with Server(...) as s`: s.key[tenant], s.client(tenant), s.port, s.admin."""

    def __init__(self, tenants=("alpha",), programs={}, limits={}, args=(), state=None, model=MODEL, env={}):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="realm-e2e-"))
        self.state = state or self.dir / "state"
        self.args = list(args)
        self.model = model
        self.env = env
        self.key = {}
        self.process = None
        self.log = []
        for name in tenants:
            extra = ["--program", str(programs[name])] if name in programs else []
            for limit, value in limits.get(name, {}).items():
                extra += ["--set", f"{limit}={value}"]
            realm("tenant", "create", name, *extra, state=self.state)
            self.key[name] = realm("key", "create", name, state=self.state).strip().splitlines()[-1]
        self.admin_key = realm("key", "create", "--admin", state=self.state).strip().splitlines()[-1]

    def start(self):
        command = [REALM, "serve", "--state", str(self.state), "--listen", "127.0.0.1:0", "--admin-listen",
                   "127.0.0.1:0", "--threads", "2", *self.args]
        if self.model:
            command += ["--model", f"smollm2={self.model}"]
        self.log = []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **self.env})
        self.port = self.admin = None
        ready = threading.Event()

        def read(process):
            for line in process.stderr:
                self.log.append(line.rstrip())
                if m := re.search(r"listening on http://\S+:(\d+)", line):
                    self.port = int(m[1])
                if m := re.search(r"admin on http://\S+:(\d+)", line):
                    self.admin = int(m[1])
                if line.rstrip() == "realm: ready":
                    ready.set()
            ready.set()

        self.reader = threading.Thread(target=read, args=(self.process,), daemon=True)
        self.reader.start()
        if not ready.wait(120) or self.process.poll() is not None:
            raise AssertionError("the server did not start:\n" + "\n".join(self.log))
        return self

    def stop(self, sig=signal.SIGTERM, timeout=40):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(timeout)
        return self.process.returncode

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *exception):
        try:
            if self.process and self.process.poll() is None:
                self.process.terminate()
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
                    raise AssertionError("the server did not stop:\n" + "\n".join(self.log))
        finally:
            shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, tenant="alpha", kind=openai.OpenAI, **options):
        options.setdefault("max_retries", 0)
        return kind(base_url=self.url + "/v1", api_key=self.key.get(tenant, tenant), timeout=120, **options)

    def http(self, path, body=None, key=None, admin=False, method=None):
        """(status, headers, parsed JSON or text)"""
        url = f"http://127.0.0.1:{self.admin if admin else self.port}{path}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, fields, text = answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as e:
            status, fields, text = e.code, e.headers, e.read().decode()
        return status, fields, json.loads(text) if "json" in fields.get("content-type", "") else text

    def metric(self, name):
        text = self.http("/metrics", admin=True)[2]
        return sum(float(line.split()[-1]) for line in text.splitlines()
                   if line.startswith((name + " ", name + "{")))

    def usage(self, *args):
        return json.loads(realm("usage", *args, "--output", "json", state=self.state))

    def raw(self, data, wait=5):
        """Bytes sent as they are; everything that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as s:
            s.sendall(data)
            answer = b""
            try:
                while piece := s.recv(65536):
                    answer += piece
            except (TimeoutError, ConnectionResetError):
                pass
            return answer


def wait_until(condition, seconds=10, what="condition"):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def raises(kind, call):
    try:
        call()
    except kind as e:
        return e
    raise AssertionError(f"{kind.__name__} was expected")
