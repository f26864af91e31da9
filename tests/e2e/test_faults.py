"""Faults of the machine under a running server: a disk that is full, a store that is locked or gone, a clock that jumps,
no descriptors, kill -9. It goes on answering, and when the fault has passed the ledger has every token once."""
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import tempfile
import threading
import time

import openai

from harness import CAPITAL, Server, guest, raises, realm, wait_until
from test_limits import ask, say

SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=12)
DAY_S = 86400


class Told:
    """What clients were told that they used; the ledger has to say the same."""

    def __init__(self, server):
        self.server, self.prompt, self.completion, self.requests = server, {}, {}, {}

    def ask(self, tenant="alpha", client=None):
        u = (client or self.server.client(tenant)).chat.completions.create(**SHORT).usage
        self.prompt[tenant] = self.prompt.get(tenant, 0) + u.prompt_tokens
        self.completion[tenant] = self.completion.get(tenant, 0) + u.completion_tokens
        self.requests[tenant] = self.requests.get(tenant, 0) + 1

    def stands(self):
        """Whether the ledger has all of it, and nothing else."""
        rows = {u["tenant"]: u for u in self.server.usage() if u["requests"]}
        return {t: (u["requests"], u["prompt_tokens"], u["completion_tokens"]) for t, u in rows.items()} == \
            {t: (self.requests[t], self.prompt[t], self.completion[t]) for t in self.requests}


def agrees(s):
    """The tenants' sums are the engine's own counters."""
    rows, engine = s.usage(), s.usage("--engine")
    engine = engine[0] if isinstance(engine, list) else engine
    for field in ("prompt_tokens", "cached_tokens", "completion_tokens", "program_cpu_ns", "tensor_ns"):
        assert sum(u[field] for u in rows) == engine[field], (rows, engine)


@contextlib.contextmanager
def limited(s, what, most):
    """The running process may not have more of a resource than this; the rest of the machine may."""
    soft, hard = resource.prlimit(s.process.pid, what)
    resource.prlimit(s.process.pid, what, (most, hard))
    try:
        yield
    finally:
        if s.process.poll() is None:
            resource.prlimit(s.process.pid, what, (soft, hard))


def test_a_full_disk():
    """No file may grow: answers come as ever, what they used is written when there is room again."""
    with Server(tenants=("alpha", "beta")) as s:
        told = Told(s)
        told.ask()
        with limited(s, resource.RLIMIT_FSIZE, 0):
            for tenant in ("alpha", "beta", "alpha"):
                told.ask(tenant)
            wait_until(lambda: any("not written, will be tried again" in line for line in s.log), what="it is said")
            assert s.usage("--tenant", "beta")[0]["requests"] == 0
            agrees(s)
        wait_until(told.stands, what="the ledger has it all")
        told.ask()
        assert told.stands()
        agrees(s)
        # killed while the disk is full: what could not be written is lost, and nothing disagrees
        with limited(s, resource.RLIMIT_FSIZE, 0):
            s.client().chat.completions.create(**SHORT)
            s.stop(signal.SIGKILL)
        s.start()
        assert told.stands()
        agrees(s)
        told.ask("beta")
        assert told.stands()


def test_values_on_a_full_disk():
    """A program's value that cannot be stored is refused, and is not there afterwards."""
    with Server(programs={"alpha": guest("limits")}) as s:
        assert ask(s, "alpha", "store 3") == "3 0 0 "
        with limited(s, resource.RLIMIT_FSIZE, 0):
            n, code, again, why = ask(s, "alpha", "store 3").split(" ", 3)
            assert (n, int(code) < 0) == ("0", True) and "store" in why, (n, code, again, why)
        assert ask(s, "alpha", "store 3") == "3 0 0 "


def test_a_locked_store():
    """Another process is writing the store for ten seconds: answers end as ever, new tenants' too, and what they used is
    in the ledger when it is free, once, though the server was killed meanwhile."""
    with Server(tenants=("alpha", "beta", "gamma")) as s:
        told = Told(s)
        told.ask()
        usual = []
        for _ in range(3):
            begin = time.monotonic()
            told.ask()
            usual.append(time.monotonic() - begin)
        most = max(usual) + 4  # waiting for the store takes 5 s at least, a busy machine two now and then
        for kill in (False, True):
            other = sqlite3.connect(s.state / "realm.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            held, n = time.monotonic(), 0
            while n < 6 or (not kill and time.monotonic() - held < 10):
                begin = time.monotonic()
                told.ask(("alpha", "beta", "gamma")[n % 3])
                assert time.monotonic() - begin < most, (time.monotonic() - begin, usual)
                n += 1
            assert not told.stands()  # it is not in the ledger, which nobody else reads less of
            agrees(s)
            assert s.http("/health")[0] == 200 and s.http("/v1/models", key=s.key["beta"])[0] == 200
            if kill:
                s.stop(signal.SIGKILL)
            else:
                assert sum("is locked by another process" in line for line in s.log) == 1, s.log
            other.execute("ROLLBACK")
            other.close()
            if kill:
                assert told.stands()  # whoever opens the store next takes it in
                s.start()
            else:
                wait_until(told.stands, what="the ledger has it all")
            agrees(s)
            assert not list(s.state.glob("late-*"))
        told.ask()
        assert told.stands()


def test_a_store_that_is_gone():
    """Its folder is moved away under the server, and comes back."""
    with Server(tenants=("alpha", "beta")) as s:
        told = Told(s)
        told.ask()
        away = s.state.with_name("away")
        s.state.rename(away)
        for tenant in ("alpha", "beta"):
            told.ask(tenant)
        wait_until(lambda: any("not written" in line and "realm.db" in line for line in s.log), what="it is said")
        away.rename(s.state)
        wait_until(told.stands, what="the ledger has it all")
        # gone for good: it still answers, and ends when it is asked to
        shutil.rmtree(s.state)
        s.client().chat.completions.create(**SHORT)
        assert s.http("/health")[0] == 200 and s.stop() == 0


def test_clock_jumps():
    dir = pathlib.Path(tempfile.mkdtemp(prefix="realm-e2e-"))
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", dir / "clock.so", pathlib.Path(__file__).parent / "clock.c"],
                       check=True)
        offset = dir / "offset"
        offset.write_bytes(struct.pack("q", 0))

        def jump(to_s):
            with open(offset, "r+b") as f:
                f.write(struct.pack("q", to_s))

        with Server(tenants=("alpha", "beta", "gamma"), env={"LD_PRELOAD": str(dir / "clock.so"), "CLOCK_OFFSET": str(offset)},
                    limits={"alpha": {"tokens_per_day": 60}, "gamma": {"requests_per_minute": 1}}) as s:
            told = Told(s)
            refused = lambda t: raises(openai.RateLimitError, lambda: s.client(t).chat.completions.create(**SHORT))
            expiring = realm("key", "create", "beta", "--expires", "1h", state=s.state).strip().splitlines()[-1]
            valid = lambda: s.http("/v1/models", key=expiring)[0] == 200
            while told.prompt.get("alpha", 0) + told.completion.get("alpha", 0) < 60:
                told.ask()
            told.ask("gamma")
            assert refused("alpha").code == "insufficient_quota" and refused("gamma").code == "rate_limit_exceeded"
            assert valid()
            running = s.client("beta").chat.completions.create(**{**SHORT, "max_tokens": 200}, stream=True,
                                                               extra_body={"ignore_eos": True})
            n = sum(1 for _, _ in zip(range(5), running))
            for to_s in (DAY_S, -400 * DAY_S, 400 * DAY_S, 2 * DAY_S):
                jump(to_s)
                n += sum(1 for _, _ in zip(range(5), running))
                told.ask("beta")
                assert valid() == (to_s < 3600), to_s
                assert refused("gamma").code == "rate_limit_exceeded"  # a minute is not measured with that clock
            assert n == 25 and sum(1 for _ in running) > 0
            told.ask()  # another day
            jump(0)
            assert valid() and refused("alpha").code == "insufficient_quota"  # never more than a day's worth
            agrees(s)
            assert s.usage("--tenant", "alpha")[0]["requests"] == told.requests["alpha"]
    finally:
        shutil.rmtree(dir, ignore_errors=True)


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_descriptors():
    """Who is connected is served; who comes is turned away or waits, at no cost; afterwards all is as before."""
    with Server(tenants=("alpha", "beta", "gamma"), programs={"gamma": guest("limits")}) as s:
        told, client, late = Told(s), s.client(), s.client("gamma")
        told.ask(client=client)
        late.models.list()  # connected; its program is opened with its first request
        program = say("handles 2")
        pid = s.process.pid
        with limited(s, resource.RLIMIT_NOFILE, 3):
            told.ask(client=client)  # on the connection that it has
            before = cpu_s(pid)
            with socket.create_connection(("127.0.0.1", s.port), timeout=1) as new:
                new.settimeout(1)
                try:
                    new.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    answer = new.recv(1000)
                except (TimeoutError, ConnectionError):
                    answer = b""
                assert not answer or b" 503 " in answer, answer
                time.sleep(1)
            assert cpu_s(pid) - before < 0.5, "it waits for descriptors without rest"
            told.ask(client=client)
            e = raises(openai.APIStatusError, lambda: late.chat.completions.create(**program))
            assert e.status_code >= 500 and e.code, e
        assert late.chat.completions.create(**program).choices[0].message.content == "2 0 0 "
        wait_until(lambda: s.http("/health")[0] == 200, what="connections are taken again")
        told.ask("beta")
        assert s.usage("--tenant", "alpha")[0]["requests"] == told.requests["alpha"]
        agrees(s)
        n = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(20):
            s.http("/health")
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= n, what="no descriptor is left behind")


def test_kill_9_at_any_moment():
    """Streams, prefixes, programs and clients that leave, of three tenants: whenever it is killed, the tenants' sums are
    the engine's counters, nothing that anybody was told is missing, and no more is counted than was computed."""
    with Server(tenants=("alpha", "beta", "gamma"), programs={"gamma": guest("limits")}) as s:
        told = Told(s)
        for i in range(3):
            stop = threading.Event()
            threads = [threading.Thread(target=until_killed, args=(s, told, t, stop)) for t in ("alpha", "alpha", "beta")]
            threads += [threading.Thread(target=tries, args=(s, stop, dict(
                model="smollm2", temperature=0, max_tokens=30, messages=[{"role": "user", "content": "generations 2"}])))]
            threads += [threading.Thread(target=leaves, args=(s, stop))]
            had = sum(told.requests.values())
            for t in threads:
                t.start()
            wait_until(lambda: sum(told.requests.values()) >= had + 2, 60, "some are answered")
            time.sleep(0.07 * i)  # another moment each time
            s.stop(signal.SIGKILL)
            stop.set()
            for t in threads:
                t.join()
            agrees(s)
            rows = {u["tenant"]: u for u in s.usage()}
            for tenant in told.requests:
                assert rows[tenant]["prompt_tokens"] >= told.prompt[tenant]
                assert rows[tenant]["completion_tokens"] >= told.completion[tenant]
                assert rows[tenant]["cached_tokens"] <= rows[tenant]["prompt_tokens"]
            s.start()


def until_killed(s, told, tenant, stop):
    mine = Told(s)
    while not stop.is_set():
        try:
            mine.ask(tenant)
        except openai.APIError:
            break
        with LOCK:
            for field in ("prompt", "completion", "requests"):
                getattr(told, field)[tenant] = getattr(told, field).get(tenant, 0) + getattr(mine, field)[tenant]
        mine = Told(s)


LOCK = threading.Lock()


def tries(s, stop, request):
    while not stop.is_set():
        try:
            s.client("gamma").chat.completions.create(**request)
        except openai.APIError:
            pass


def leaves(s, stop):
    while not stop.is_set():
        try:
            stream = s.client("beta").chat.completions.create(**SHORT, stream=True)
            next(stream)
            stream.close()
        except (openai.APIError, StopIteration):
            pass
