"""Everything at once, at random: tenants whose programs are good, hostile or made of random calls, requests of every kind,
clients that leave, and an operator who revokes keys, changes limits and programs, deletes tenants, makes them anew and has
the configuration read again. Two tenants have no part in it, and notice nothing. In the middle the server is told to end,
or is killed.

    REALM_TEST_SEED=N REALM_TEST_SECONDS=N tools/run-e2e build test_storm      another storm, or a longer one

The seed decides what is asked and done, and is printed; when each thing happens is the machine's affair.
"""
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import tempfile
import threading
import time

from harness import CAPITAL, GUEST, MODEL, Server, guest, realm, wait_until

SEED = int(os.environ.get("REALM_TEST_SEED", 1))
SECONDS = float(os.environ.get("REALM_TEST_SECONDS", 3))  # of a storm; each test has two
CLIENTS, TENANTS, DRAIN_S = 8, 12, 3
QUIET = {"quiet": None, "steady": "shout"}  # tenants and their programs
SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=8)
LIMITS = dict(requests_per_minute=(0, 0, 30), tokens_per_minute=(0, 0, 500), tokens_per_second=(0, 0, 40),
              generations=(64, 1, 2), kv_tokens=(0, 0, 64, 256, 1024), contexts=(16, 0, 1), handles=(1024, 4),
              output_bytes=(67108864, 30), memory_bytes=(67108864, 262144), cpu_ms_per_wake=(100, 20), wall_ms=(1500, 300),
              storage_bytes=(268435456, 100), tensor_bytes=(268435456, 65536), read_weights=(0, 1), weight=(100, 1, 1000))
BOUNDED = dict(cpu_ms_per_wake=100, wall_ms=1500)  # what programs have from the beginning: none outlives a storm
WORDS = ["generations 3", "tensors", "store 5", "contexts", "memory", "spin", "sleep", "emit 5", "read", "keep 2", "handles",
         "What is the capital of France?", "Count to ten.", "Ring-a-ring o' roses \u2603", "Write JSON."]
# what docs/api.md says that requests are told, but for what only a fault of the server is
TOLD = set("""invalid_json invalid_type invalid_value missing_required_parameter unknown_parameter unsupported_parameter
    unsupported_content unusable_schema context_length_exceeded invalid_request invalid_api_key permission_denied not_found
    model_not_found rate_limit_exceeded insufficient_quota program_failed overloaded model_loading no_model""".split())


# ---- programs ----

def calls():
    """The host's calls and their parameters' types, as programs in C see them."""
    text = (pathlib.Path(__file__).parents[2] / "guest/c/realm_calls.h").read_text()
    found = []
    for arguments, name in re.findall(r"^int\w+ \w+\(([^()]*)\)\s+REALM_IMPORT\((\w+)\);", text, re.M):
        kinds = [] if arguments == "void" else [
            "i32" if "*" in a else "i64" if "int64_t" in a else "f32" if "float" in a else "f64" if "double" in a else "i32"
            for a in arguments.split(",")]
        found.append((name, kinds))
    return found


DATA = [b"smollm2", b"text", b"k1", b"Once upon a time", b'[{"role":"user","content":"Hi"}]', b'{"type":"object"}',
        b'root ::= "a" | "b"']


def random_program(r, to):
    """A module of random calls with arguments that are often right: handles that calls returned, texts, room."""
    all_calls = calls()
    imports = "".join(f'(import "realm" "{name}" (func ${name} {"".join(f"(param {k}) " for k in kinds)}(result i32)))\n'
                      for name, kinds in all_calls)
    data, places, at = "", [], 1024
    for d in DATA:
        places.append((at, len(d)))
        data += f'(data (i32.const {at}) "{"".join(chr(92) + format(b, "02x") for b in d)}")\n'
        at += 64
    body = ""
    for _ in range(r.randrange(10, 60)):
        name, kinds = r.choice(all_calls)
        place = r.choice(places)
        for i, kind in enumerate(kinds):
            if kind != "i32":
                body += f"({kind}.const {r.choice((0, 1, -1, 7))})"
            elif r.random() < 0.3:
                body += f"(local.get {r.randrange(4)})"
            elif r.random() < 0.5:
                body += f"(i32.const {place[i % 2]})"
            else:
                body += f"(i32.const {r.choice((0, 0, 1, 2, 3, 8, 16, 64, 200, 2048, 4096, 65536, 262140, -1, -2147483648))})"
        body += f"(call ${name})(local.set {r.randrange(4)})\n"
    end = r.choice(["(i32.const 0)"] * 6 + ["(i32.const -1)", "(unreachable)", "(loop $l (br $l)) (i32.const 0)"])
    text = (f'(module {imports} (memory (export "memory") 4) {data} (func (export "realm_main") (result i32)\n'
            f"(local i32 i32 i32 i32 i32) (local.set 4 (i32.const {r.randrange(1, 4)}))\n"
            f"(loop $again {body} (br_if $again (local.tee 4 (i32.sub (local.get 4) (i32.const 1))))) {end}))")
    source = to.with_suffix(".wat")
    source.write_text(text)
    subprocess.run(["wat2wasm", source, "-o", to], check=True)
    return to


# ---- the storm ----

class Key:
    def __init__(self, text):
        self.text, self.going, self.gone_at = text, False, None


class Storm:
    """A server, its tenants and what its clients were told."""

    def __init__(self, dir, seed):
        print(f"     storm of seed {seed}, {SECONDS:g} s", flush=True)
        self.random, self.seed, self.dir = random.Random(seed), seed, pathlib.Path(dir)
        programs = [GUEST / f"{n}.wasm" for n in sorted(p.stem for p in GUEST.glob("*.wasm"))] + [guest("limits")] * 4
        programs += [random_program(self.random, self.dir / f"random{i}.wasm") for i in range(12)]
        self.programs = programs
        self.names = [f"tenant{i}" for i in range(TENANTS)]
        self.keys = {n: [] for n in self.names}
        self.told = {}  # tenant: [requests, prompt tokens, completion tokens]
        self.wrong, self.lock, self.statuses = [], threading.Lock(), {}
        self.stopping = self.calm = False
        self.n_runs = 0
        for n in QUIET:
            (self.dir / f"{n}.key").write_text(f"rk-{n}-chosen-by-the-operator")
        self.config = self.dir / "realm.yaml"
        self.configure()
        self.server = Server(tenants=(), state=self.dir / "state", args=["--config", str(self.config)], model=None)
        for n in self.names:
            self.create(n)

    def configure(self, second=False, requests=0):
        fresh = self.config.with_suffix(".new")  # never half of one: the last SIGHUP may still be under way
        fresh.write_text(
            f"state: state\nlisten: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nthreads: 2\ndrain_seconds: {DRAIN_S}\n"
            "engine: {kv_bytes: 64M, spill_bytes: 16M, max_generations: 12}\nmodels:\n" +
            "".join(f"  - {{id: {id}, file: {MODEL}}}\n" for id in ["smollm2"] + ["second"] * second) + "tenants:\n" +
            "".join(f"  - name: {n}\n    key_file: {n}.key\n    limits: {{requests_per_minute: {requests}}}\n" +
                    (f"    program: {GUEST / program}.wasm\n" if program else "") for n, program in QUIET.items()))
        fresh.rename(self.config)

    def create(self, name):
        realm("tenant", "create", name, "--program", str(self.random.choice(self.programs)),
              *(w for n, v in BOUNDED.items() for w in ("--set", f"{n}={v}")), state=self.server.state)
        self.add_key(name)

    def add_key(self, name):
        self.keys[name].append(Key(realm("key", "create", name, state=self.server.state).strip().splitlines()[-1]))

    def fails(self, *what):
        with self.lock:
            self.wrong.append(" ".join(str(w) for w in what))

    def upset(self):
        """One thing that an operator does."""
        r, state = self.random, self.server.state
        name = r.choice(self.names)
        what = r.choice(["limit", "limit", "program", "program", "key", "key", "delete", "reload", "look"])
        if what == "limit":
            limit = r.choice(sorted(LIMITS))
            realm("tenant", "set", name, "--set", f"{limit}={r.choice(LIMITS[limit])}", state=state)
        elif what == "program":
            words = ["--program", str(r.choice(self.programs))] if r.random() < 0.9 else ["--default-program"]
            done = realm("tenant", "set", name, *words, state=state, check=False)
            assert done.returncode == 0 or "memory_bytes" in done.stderr, done.stderr
        elif what == "key":
            self.add_key(name)
            key = next(k for k in self.keys[name] if not k.going)
            key.going = True
            realm("key", "revoke", key.text, state=state)
            key.gone_at = time.monotonic()
            self.keys[name] = self.keys[name][-3:]  # clients try an old one too
        elif what == "delete":
            keys = self.keys[name]
            for k in keys:
                k.going = True
            realm("tenant", "delete", name, state=state)
            for k in keys:
                k.gone_at = k.gone_at or time.monotonic()
            self.create(name)
            self.keys[name] = self.keys[name][-2:]
        elif what == "reload":
            self.configure(second=r.random() < 0.5, requests=r.choice((0, 1000000)))
            self.server.process.send_signal(signal.SIGHUP)
        else:
            before, engine, after = self.sums(), self.server.usage("--engine"), self.sums()
            assert all(before[f] <= engine[f] <= after[f] for f in before), (before, engine, after)
            for path, key in (("/metrics", None), ("/admin/v1/usage", self.server.admin_key), ("/ready", None)):
                status = self.server.http(path, admin=True, key=key)[0]
                assert status == 200, (path, status)

    def sums(self):
        rows = self.server.usage()
        return {f: sum(u[f] for u in rows) for f in ("prompt_tokens", "cached_tokens", "completion_tokens", "program_cpu_ns",
                                                      "tensor_ns")}

    def operator(self):
        while not self.calm:
            try:
                self.upset()
            except Exception as e:
                if not self.stopping:
                    self.fails("operator:", repr(e))
                return

    def request(self, r):
        """What a client asks: path, body, whether it is well-formed."""
        body = dict(model="second" if r.random() < 0.1 else "smollm2", max_tokens=r.choice((1, 4, 12, 24)),
                    temperature=r.choice((0, 1)), seed=r.randrange(1 << 30))
        if r.random() < 0.2:
            body["n"] = r.randrange(2, 6)
        if r.random() < 0.1:
            body["ignore_eos"] = True
        if r.random() < 0.15:
            body["json_schema"] = r.choice(({"type": "object"}, {"enum": ["a", "b"]}, {"type": "integer"}))
        if r.random() < 0.5:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        chat = r.random() < 0.6
        if chat:
            body["messages"] = [{"role": "user", "content": r.choice(WORDS)} for _ in range(r.choice((1, 1, 3)))]
        else:
            body["prompt"] = r.choice((r.choice(WORDS), WORDS[-4:], [100] * r.randrange(1, 200)))
        x = r.random()
        if x < 0.05:
            return "/tokenize", {"model": "smollm2", "content": r.choice(WORDS)}, True
        if x < 0.08:
            return "/v1/models", None, True
        if x < 0.12:
            body[r.choice(("max_tokens", "temperature", "n", "nonsense"))] = r.choice((-1, "x", [], {}, 1e300))
            return "/v1/chat/completions" if chat else "/v1/completions", body, False
        return "/v1/chat/completions" if chat else "/v1/completions", body, True

    def ask(self, key, path, body, leave=None, slow=False):
        """(status, answer's objects, whether it ended as it should)"""
        c = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(c):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            c.request("POST" if body is not None else "GET", path, json.dumps(body) if body is not None else None, headers)
            if leave == 0:
                return None, [], False
            a = c.getresponse()
            if "event-stream" not in a.headers.get("content-type", ""):
                return a.status, [json.loads(a.read())], True
            objects = []
            for line in a:
                if line.startswith(b"data: [DONE]"):
                    return a.status, objects, a.read().strip() == b""
                if slow:
                    time.sleep(0.02)
                if line.startswith(b"data: "):
                    objects.append(json.loads(line[6:]))
                    if len(objects) == leave:
                        return None, objects, False
            return a.status, objects, False

    def count(self, tenant, objects):
        usage = [o["usage"] for o in objects if o.get("usage")]
        if usage and "completion_tokens" in usage[-1]:
            with self.lock:
                t = self.told.setdefault(tenant, [0, 0, 0])
                for i, n in enumerate((1, usage[-1]["prompt_tokens"], usage[-1]["completion_tokens"])):
                    t[i] += n

    def client(self, index, run):
        r = random.Random(f"{self.seed} {run} {index}")
        while not self.calm:
            tenant = r.choice(self.names)
            keys = self.keys[tenant]
            key = r.choice(keys) if r.random() < 0.2 else next((k for k in keys[::-1] if not k.going), keys[-1])
            path, body, good = self.request(r)
            leave = r.randrange(6) if r.random() < 0.25 else None
            begun, gone = time.monotonic(), key.gone_at
            try:
                status, objects, whole = self.ask(key.text, path, body, leave, r.random() < 0.1)
            except (OSError, http.client.HTTPException, ValueError) as e:
                if self.stopping:
                    return
                self.fails("client:", tenant, path, body, f"{time.monotonic() - begun:.1f} s", repr(e))
                continue
            if status is None:
                continue
            self.judge(tenant, key, path, body, good, status, objects, whole, begun, gone)
            if self.stopping and status == 503:
                return

    def judge(self, tenant, key, path, body, good, status, objects, whole, begun, gone):
        error = next((o["error"] for o in objects if "error" in o), None)
        code = error and error["code"]
        with self.lock:
            self.statuses[status, code] = self.statuses.get((status, code), 0) + 1
        where = (tenant, path, body, status, objects[-1:], f"{time.monotonic() - begun:.1f} s")
        if self.stopping and (not whole or status == 503 or code in ("shutting_down", "cancelled")):
            return
        if not whole:
            self.fails("an answer without its end:", *where)
        elif status == 401 and not key.going:
            self.fails("a good key:", *where)
        elif status != 401 and gone and begun - gone > 5:
            self.fails("a revoked key:", *where)
        elif code == "model_not_found" and body["model"] != "second":
            self.fails("no model:", *where)
        elif error and code not in TOLD:
            self.fails("an error:", *where)
        elif not error and not good:
            self.fails("taken:", *where)
        elif status == 200 and not error:
            self.count(tenant, objects)

    def quiet(self, tenant):
        text = None
        while not self.calm:
            begun = time.monotonic()
            stream = self.n_quiet[tenant] % 2 == 1
            extra = dict(stream=True, stream_options={"include_usage": True}) if stream else {}
            try:
                status, objects, whole = self.ask(f"rk-{tenant}-chosen-by-the-operator", "/v1/chat/completions",
                                                  {**SHORT, **extra})
            except (OSError, http.client.HTTPException, ValueError) as e:
                if not self.stopping:
                    self.fails("quiet:", tenant, f"{time.monotonic() - begun:.1f} s", repr(e))
                return
            if self.stopping and (status == 503 or not whole):
                return
            self.n_quiet[tenant] += 1
            self.slowest = max(self.slowest, time.monotonic() - begun)
            try:
                got = "".join(o["choices"][0]["delta"].get("content") or "" for o in objects if o["choices"]) if stream else \
                    objects[0]["choices"][0]["message"]["content"]
            except (KeyError, IndexError):
                if not self.stopping:
                    self.fails("quiet:", tenant, status, objects[-1:])
                continue
            text = text or got
            if not whole or got != text or "paris" not in got.lower():
                self.fails("quiet:", tenant, status, got, "before:", text)
            self.count(tenant, objects)

    @contextlib.contextmanager
    def blows(self):
        self.stopping = self.calm = False
        self.n_runs += 1
        self.n_quiet, self.slowest = dict.fromkeys(QUIET, 0), 0
        threads = [threading.Thread(target=self.client, args=(i, self.n_runs)) for i in range(CLIENTS)]
        threads += [threading.Thread(target=self.quiet, args=(n,)) for n in QUIET]
        threads += [threading.Thread(target=self.operator)]
        for t in threads:
            t.start()
        try:
            time.sleep(SECONDS)
            wait_until(lambda: self.wrong or min(self.n_quiet.values()) >= 2, 60, "the quiet tenants are answered")
            yield
        finally:
            self.calm = True
            for t in threads:
                t.join(90)
            if os.environ.get("REALM_TEST_VERBOSE"):
                print(f"     {self.n_quiet}, slowest {self.slowest:.1f} s, {self.statuses}", flush=True)
            if stuck := sum(t.is_alive() for t in threads):
                self.fails(f"{stuck} threads wait for answers")
        assert not self.wrong, f"seed {self.seed}, {len(self.wrong)} wrong:\n" + "\n".join(self.wrong[:20]) + \
            "\n" + "\n".join(self.server.log[-20:])

    def ledger_has_it(self, exactly=()):
        """All that clients were told; of these tenants, who waited for all their answers, nothing else."""
        def adds_up():
            sums, engine = self.sums(), self.server.usage("--engine")
            return all(sums[f] == engine[f] for f in sums)

        wait_until(adds_up, 2, f"the ledger of seed {self.seed} adds up")  # the last may be written between two reads
        rows = {}
        for u in self.server.usage():
            row = rows.setdefault(u["tenant"], [0, 0, 0])
            for i, field in enumerate(("requests", "prompt_tokens", "completion_tokens")):
                row[i] += u[field]
        for tenant, told in self.told.items():
            assert all(has >= n for has, n in zip(rows[tenant], told)), (self.seed, tenant, rows[tenant], told)
            assert tenant not in exactly or rows[tenant] == told, (self.seed, tenant, rows[tenant], told)

    def ends(self):
        """The server is told to end while it is busy, and does."""
        process = self.server.process
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self.stopping = True
        begin = time.monotonic()
        assert self.server.stop(timeout=DRAIN_S + 30) == 0, (self.seed, self.server.log[-20:])
        assert time.monotonic() - begin < DRAIN_S + 4, (self.seed, time.monotonic() - begin)
        assert not children, children

    def leaves_nothing(self):
        left = sorted(str(p.relative_to(self.server.state)) for p in self.server.state.rglob("*") if p.is_file())
        if os.environ.get("REALM_TEST_VERBOSE"):
            print(f"     {len(left)} files are left")
        known = r"(realm|data)\.db|(programs/)?secret|programs/\w{64}\.cwasm|tenants/\d+/\w{64}\.gguf"
        left = [p for p in left if not re.fullmatch(known, p)]
        assert not left, (self.seed, left)


def gauges_are_zero(s):
    return all(s.metric(f"realm_{n}") == 0 for n in ("requests_active", "generations_running", "generations_queued",
                                                     "instances"))


def test_a_storm_that_ends_with_sigterm():
    with tempfile.TemporaryDirectory() as dir:
        storm = Storm(dir, SEED)
        with storm.server as s:
            with storm.blows():
                pass
            wait_until(lambda: gauges_are_zero(s), 10, "nothing is left of the requests")
            storm.ledger_has_it(exactly=QUIET)
            with storm.blows():
                storm.ends()
            storm.ledger_has_it()
            storm.leaves_nothing()


def test_a_storm_that_ends_with_sigkill():
    with tempfile.TemporaryDirectory() as dir:
        storm = Storm(dir, SEED + 1000000)
        with storm.server as s:
            with storm.blows():
                storm.stopping = True
                s.stop(signal.SIGKILL)
            storm.ledger_has_it()
            s.start()
            with storm.blows():
                storm.ends()
            storm.ledger_has_it()
            storm.leaves_nothing()
