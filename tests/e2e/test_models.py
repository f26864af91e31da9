"""`realm models`: from a web server on loopback into a folder, and from there by name into run and serve."""
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading

from harness import CAPITAL, MODEL, REALM, Server, wait_until

SHA = hashlib.sha256(pathlib.Path(MODEL).read_bytes()).hexdigest()
SIZE = os.path.getsize(MODEL)


class Handler(http.server.BaseHTTPRequestHandler):
    """One model; after `stop_at` bytes it waits for `go_on`."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        s = self.server
        begin = int(m[1]) if (m := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        s.begins.append(begin)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{SIZE - 1}/{SIZE}")
        self.send_header("Content-Length", str(SIZE - begin))
        self.end_headers()
        with open(MODEL, "rb") as f, contextlib.suppress(OSError):
            f.seek(begin)
            if s.stop_at is not None and begin < s.stop_at:
                self.wfile.write(f.read(s.stop_at - begin))
                s.stopped.set()
                s.go_on.wait(60)
            shutil.copyfileobj(f, self.wfile)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def place(stop_at=None):
    """A folder with an index over a server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stop_at, server.stopped, server.go_on, server.begins = stop_at, threading.Event(), threading.Event(), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="realm-models-"))
    origin = f"http://127.0.0.1:{server.server_port}"
    (folder / "index.yaml").write_text(json.dumps({"origins": [origin], "models": [
        {"name": "smol", "url": origin + "/smol.gguf", "sha256": SHA, "size": SIZE, "description": "for tests"}]}))
    try:
        yield folder, server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
        shutil.rmtree(folder)


def command(folder, *args):
    return [REALM, args[0], *args[1:], "--models-dir", str(folder)]


def models(folder, *args, **options):
    return subprocess.run(command(folder, "models", *args), capture_output=True, text=True, timeout=120, **options)


def listed(folder):
    return {m["name"]: m for m in json.loads(models(folder, "list", "--output", "json").stdout)}


def test_pull_use_remove():
    with place() as (folder, server):
        assert listed(folder)["smol"]["state"] == "available"
        r = models(folder, "pull", "smol")
        assert r.returncode == 0 and r.stdout.startswith("smol installed: 98.4 MB") and r.stderr == "", r
        m = listed(folder)["smol"]
        assert m["state"] == "installed" and m["architecture"] == "llama" and m["context_length"] == 8192, m
        assert m["sha256"] == SHA and m["bytes"] == SIZE and m["source"].endswith("/smol.gguf"), m
        assert "smol " in models(folder, "list").stdout and SHA[:12] in models(folder, "list").stdout
        r = models(folder, "pull", "smol", "--output", "json")
        assert json.loads(r.stdout) == {"name": "smol", "bytes": SIZE, "fetched_bytes": 0, "sha256": SHA}
        assert server.begins == [0]
        run = subprocess.run(command(folder, "run", "--model", "smol", "--max-tokens", "12", CAPITAL[0]["content"]),
                             capture_output=True, text=True, timeout=60)
        assert "Paris" in run.stdout, run
        chat = subprocess.run(command(folder, "chat", "--model", "smol", "--max-tokens", "12"),
                              input=CAPITAL[0]["content"] + "\n", capture_output=True, text=True, timeout=60)
        assert "Paris" in chat.stdout, chat
        config = folder / "serve.yaml"
        config.write_text(f"models_dir: {folder}\nmodels:\n  - id: smol\n  - id: again\n    file: smol\n")
        with Server(model=None, args=("--config", str(config))) as s:
            assert [m.id for m in s.client().models.list()] == ["smol", "again"]
            assert "Paris" in s.client().chat.completions.create(model="smol", messages=CAPITAL, temperature=0,
                                                                 max_tokens=12).choices[0].message.content
        with Server(model=None, args=("--models-dir", str(folder), "--model", "smol")) as s:
            assert [m.id for m in s.client().models.list()] == ["smol"]
        config.write_text("models:\n  - id: smol\n  - id: nowhere\n")
        r = subprocess.run(command(folder, "serve", "--config", str(config), "--state", str(folder / "state")),
                           capture_output=True, text=True, timeout=60)
        assert r.returncode == 1 and "line 3: models[1].file: no model \"nowhere\"" in r.stderr, r
        r = models(folder, "remove", "smol")
        assert r.returncode == 0 and r.stdout == "smol removed: 98.4 MB freed\n", r
        assert listed(folder)["smol"]["state"] == "available"
        assert not [f for f in os.listdir(folder) if "smol" in f]
        r = models(folder, "remove", "smol")
        assert r.returncode == 1 and r.stderr.startswith("realm: models remove: smol: no model"), r


def test_interrupted_and_resumed():
    for sig in (signal.SIGINT, signal.SIGKILL):
        with place(stop_at=30_000_000) as (folder, server):
            p = subprocess.Popen(command(folder, "models", "pull", "smol"), stderr=subprocess.PIPE, text=True)
            assert server.stopped.wait(30)
            part = folder / ".smol.part"
            wait_until(lambda: part.exists() and part.stat().st_size >= 10_000_000, what="the first bytes are written")
            assert listed(folder)["smol"]["state"] == "partial"
            assert models(folder, "remove", "smol").stderr == "realm: models remove: smol: it is being pulled\n"
            # a second one waits for the first, and takes over when it is gone
            second = subprocess.Popen(command(folder, "models", "pull", "smol", "--output", "json"),
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert second.stderr.readline() == "realm: smol is being pulled already, waiting for it\n"
            p.send_signal(sig)
            server.stop_at = None
            server.go_on.set()
            _, err = p.communicate(timeout=30)
            assert p.returncode == (1 if sig == signal.SIGINT else -9) and "smol.gguf" not in os.listdir(folder), err
            if sig == signal.SIGINT:
                assert "goes on from here" in err
            out, err = second.communicate(timeout=60)
            assert second.returncode == 0, err
            assert 0 < json.loads(out)["fetched_bytes"] < SIZE - 10_000_000, out
            assert server.begins[0] == 0 and server.begins[1] > 10_000_000, server.begins
            assert hashlib.sha256((folder / "smol.gguf").read_bytes()).hexdigest() == SHA


def test_full_disk_and_bad_files():
    with place() as (folder, server):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        r = models(folder, "pull", "smol", preexec_fn=limit)
        assert r.returncode == 1 and r.stderr.count("\n") == 1 and "File too large" in r.stderr, r
        assert "smol.gguf" not in os.listdir(folder)
        assert (folder / ".smol.part").stat().st_size == 1 << 20
        r = models(folder, "pull", "smol", "--output", "json")
        assert json.loads(r.stdout)["fetched_bytes"] == SIZE - (1 << 20), r
        (folder / "cut.bin").write_bytes(pathlib.Path(MODEL).read_bytes()[:100_000])
        for args, why in ((("pull", "x", "--from", str(folder / "cut.bin")), "not installed"),
                          (("pull", "../x", "--from", MODEL), "a model's name"),
                          (("pull", "x", "--from", "/dev/zero"), "not a regular file"),
                          (("pull", "x", "--from", "http://192.0.2.1/x", "--sha256", SHA), "use https"),
                          (("pull", "x", "--from", "https://192.0.2.1/x"), "must be given"),
                          (("pull", "nowhere"), "no index")):
            r = models(folder, *args)
            assert r.returncode == 1 and r.stderr.count("\n") == 1 and why in r.stderr and r.stdout == "", (args, r)
        assert not [f for f in os.listdir(folder) if f.startswith((".x", "x"))]
        for args in ((), ("frobnicate",), ("pull",), ("list", "x"), ("remove", "x", "--from", "y")):
            assert models(folder, *args).returncode == 2
        (folder / "index.yaml").write_text("models:\n  - {name: a, fil: b}\n")
        r = models(folder, "list")
        assert r.returncode == 1 and "index.yaml: line 2: models[0].fil: unknown key" in r.stderr, r
