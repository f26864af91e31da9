"""The whole server, measured from outside: start, memory, health under load, tokens per second of many tenants.

usage: bench/server.py BUILD MODEL.gguf          (standard library alone; `make bench-server` runs it)

Every figure is from this run on this machine; servers are on loopback and the load is bounded.
"""
import http.client
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BUILD, MODEL = pathlib.Path(sys.argv[1]), sys.argv[2]
REALM = str(BUILD / "realm")
QUESTION = [{"role": "user", "content": "Tell me a long story about a river and the people who live beside it."}]


class Server:
    """A server with `n` tenants, every third of which brings a program of its own."""

    def __init__(self, n):
        self.dir = tempfile.TemporaryDirectory(prefix="realm-bench-")
        self.keys = []
        for i in range(n):
            program = ["--program", str(BUILD / "guest" / "shout.wasm")] if i % 3 == 1 else []
            self.command("tenant", "create", f"t{i}", *program)
            self.keys.append(self.command("key", "create", f"t{i}").split()[-1])
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            [REALM, "serve", "--state", self.dir.name, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
             "--model", f"m={MODEL}"], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"listening on http://\S+:(\d+)", line):
                self.port = int(found[1])
            if line.rstrip() == "realm: ready":
                break
        self.ready_s = time.monotonic() - self.begin
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def command(self, *args):
        return subprocess.run([REALM, *args, "--state", self.dir.name], check=True, capture_output=True,
                              text=True).stdout

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.dir.cleanup()

    def memory_mib(self):
        """(resident, of it private) in MiB: the model file's mapped pages are shared, packed weights private."""
        text = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        field = lambda name: int(re.search(name + r":\s+(\d+)", text)[1]) / 1024
        return field("Rss"), field("Private_Dirty")

    def stream(self, key, max_tokens, times=None, messages=QUESTION):
        """Runs one streamed request; notes when each piece came. Returns completion tokens."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        body = {"model": "m", "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
                "ignore_eos": True, "stream_options": {"include_usage": True}}
        c.request("POST", "/v1/chat/completions", json.dumps(body),
                  {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
        answer, tokens = c.getresponse(), 0
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {answer.read().decode()}")
        for line in answer:
            if times is not None and line.startswith(b'data: {') and b'"content":"' in line:
                times.append(time.monotonic())
            if b'"usage":{' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        c.close()
        return tokens


def together(jobs):
    """Runs callables at once; (results, seconds)."""
    results = [None] * len(jobs)

    def run(i):
        results[i] = jobs[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    begin = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results, time.monotonic() - begin


def gaps_ms(times):
    return [(b - a) * 1e3 for a, b in zip(times, times[1:])]


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p))]


def start_and_memory():
    s = Server(16)
    try:
        s.stream(s.keys[0], 1)
        first = time.monotonic() - s.begin
        print(f"start to ready {s.ready_s * 1e3:.0f} ms, to the first answer {first * 1e3:.0f} ms")
        one = s.memory_mib()
        print(f"memory after one tenant's request: {one[0]:.0f} MiB resident, {one[1]:.0f} private"
              f" (model file {os.path.getsize(MODEL) / 2**20:.0f} MiB)")
        together([lambda k=k: s.stream(k, 64) for k in s.keys])
        many = s.memory_mib()
        print(f"memory after 16 tenants at once, 64 tokens each: {many[0]:.0f} MiB resident, {many[1]:.0f} private:"
              f" {(many[0] - one[0]) / 15:.2f} MiB for each further tenant, its KV included")
    finally:
        s.close()


def throughput():
    s = Server(16)
    try:
        s.stream(s.keys[0], 8)
        for n in (1, 4, 16):
            tokens, seconds = together([lambda k=k: s.stream(k, 96) for k in s.keys[:n]])
            print(f"{n:2} tenants at once: {sum(tokens) / seconds:.0f} tokens/s through HTTP, programs and ledger")
    finally:
        s.close()


def health():
    s = Server(4)
    try:
        load = threading.Thread(target=together, args=([lambda k=k: s.stream(k, 192) for k in s.keys * 8],))
        load.start()
        time.sleep(1)
        taken = []
        while load.is_alive() and len(taken) < 500:
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=10)
            begin = time.monotonic()
            c.request("GET", "/health")
            c.getresponse().read()
            taken.append((time.monotonic() - begin) * 1e3)
            c.close()
            time.sleep(0.005)
        load.join()
        print(f"/health with 32 generations running: median {statistics.median(taken):.2f} ms,"
              f" p99 {percentile(taken, 0.99):.2f} ms over {len(taken)} new connections")
    finally:
        s.close()


def neighbour():
    """A tenant's inter-token time alone, beside a program that loops for ever, and beside 16 other generations."""
    s = Server(2)
    try:
        alone, spinning, crowded = [], [], []
        s.stream(s.keys[0], 96, alone)
        wat = BUILD / "wasm" / "test" / "spin.wasm"
        if wat.exists():
            s.command("tenant", "create", "spinner", "--program", str(wat), "--set", "cpu_ms_per_wake=20000")
            key = s.command("key", "create", "spinner").split()[-1]

            def spin():
                c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
                c.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": QUESTION}),
                          {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
                time.sleep(4)
                c.close()

            t = threading.Thread(target=spin)
            t.start()
            time.sleep(0.5)
            s.stream(s.keys[0], 96, spinning)
            t.join()
        together([lambda: s.stream(s.keys[0], 96, crowded)] + [lambda: s.stream(s.keys[1], 96)] * 16)
        for name, times in (("alone", alone), ("beside a program that spins", spinning),
                            ("beside 16 generations of another tenant", crowded)):
            if len(times) > 2:
                print(f"inter-token time {name}: median {statistics.median(gaps_ms(times)):.2f} ms,"
                      f" p99 {percentile(gaps_ms(times), 0.99):.2f} ms")
    finally:
        s.close()


start_and_memory()
throughput()
health()
neighbour()
