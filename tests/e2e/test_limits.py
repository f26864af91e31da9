"""Each limit of docs/limits.md met by a client of a real server: what is under it works, the first over it is refused in
the way that the table says and by name, another tenant notices nothing, and it passes."""
import threading
import time

import openai

from harness import CAPITAL, Server, guest, raises, realm, wait_until

SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=16)
E_LIMIT, E_CROWDED, E_DENIED = -8, -22, -13
ROW_BYTES = 4 * 49152  # of logits
MIB = 1 << 20


def say(text, *before):
    return dict(model="smollm2", temperature=0, max_tokens=200,
                messages=[*({"role": "user", "content": b} for b in before), {"role": "user", "content": text}])


def ask(s, tenant, text, *before, **options):
    return s.client(tenant).chat.completions.create(**say(text, *before), **options).choices[0].message.content


def refused(s, tenant, status, code, *names, **request):
    """An answer of this status and code whose message has these words."""
    e = raises(openai.APIStatusError, lambda: s.client(tenant).chat.completions.create(**request))
    assert (e.status_code, e.code) == (status, code) and all(n in e.body["message"] for n in names), e
    return e


def set_limits(s, tenant, **limits):
    for limit, value in limits.items():
        realm("tenant", "set", tenant, "--set", f"{limit}={value}", state=s.state)


def walk(s, text, n, code, *words, tenant="alpha", again=0):
    """What the program says of its walk into a limit: n times it worked, then this, and once more afterwards."""
    done, got, after, *why = ask(s, tenant, text).split(" ", 3)
    assert (int(done), int(got), int(after)) == (n, code, again), (text, done, got, after, why)
    assert all(w in why[0] for w in words), why


def is_served(s, tenant="beta"):
    assert "Paris" in s.client(tenant).chat.completions.create(**SHORT).choices[0].message.content


def try_until_refused(s, request, most):
    """How many were admitted, how long that took, and what the first that was not is told."""
    begin = time.monotonic()
    for n in range(most + 1):
        try:
            s.client().chat.completions.create(**request)
        except openai.RateLimitError as e:
            return n, time.monotonic() - begin, e
    raise AssertionError(f"{most} requests and none was refused")


def passes(s, e, request):
    """Admitted when the time has passed that the refusal named, and refused until then."""
    after = int(e.response.headers["retry-after"])
    assert 1 <= after <= 15, after
    time.sleep(after)
    s.client().chat.completions.create(**request)


def test_requests_per_minute():
    with Server(tenants=("alpha", "beta"), limits={"alpha": {"requests_per_minute": 6}}) as s:
        tiny = {**SHORT, "max_tokens": 1}
        n, seconds, e = try_until_refused(s, tiny, 60)
        assert 6 <= n <= 6 + seconds / 10 + 1, (n, seconds)
        assert e.code == "rate_limit_exceeded" and "requests_per_minute: 6" in e.body["message"], e
        assert e.response.headers["x-ratelimit-limit-requests"] == "6"
        assert e.response.headers["x-ratelimit-remaining-requests"] == "0"
        is_served(s)
        passes(s, e, tiny)
        assert sum(u["requests"] for u in s.usage()) == n + 2  # a refused request is none


def test_tokens_per_minute():
    with Server(tenants=("alpha", "beta"), limits={"alpha": {"tokens_per_minute": 300}}) as s:
        begin = time.monotonic()
        for i in range(2):  # cached tokens count: they are held and answered for
            first = s.client().completions.with_raw_response.create(model="smollm2", prompt=[100] * 119, max_tokens=1)
            assert first.headers["x-ratelimit-limit-tokens"] == "300" and first.parse().usage.total_tokens == 120
        n, _, e = try_until_refused(s, SHORT, 40)
        seconds = time.monotonic() - begin
        assert n >= 1 and e.code == "rate_limit_exceeded" and "tokens_per_minute: 300" in e.body["message"], e
        row = [u for u in s.usage() if u["tenant"] == "alpha"][0]
        total, last = row["prompt_tokens"] + row["completion_tokens"], 60
        assert 300 <= total <= 300 + 5 * seconds + last, (total, seconds)
        assert e.response.headers["x-ratelimit-remaining-tokens"] == "0"
        is_served(s)
        passes(s, e, SHORT)


def test_tokens_per_day():
    with Server(tenants=("alpha", "beta"), limits={"alpha": {"tokens_per_day": 100}}) as s:
        n, _, e = try_until_refused(s, SHORT, 10)
        row = [u for u in s.usage() if u["tenant"] == "alpha"][0]
        used = row["prompt_tokens"] + row["completion_tokens"]
        assert used - used // n < 100 <= used, (used, n)
        assert e.code == "insufficient_quota" and "tokens_per_day: 100" in e.body["message"], e
        assert e.response.headers["x-should-retry"] == "false"
        assert 0 < int(e.response.headers["retry-after"]) <= 86400  # tomorrow
        is_served(s)
        s.stop()  # what was used today is known after a restart too
        s.start()
        refused(s, "alpha", 429, "insufficient_quota", "tokens_per_day", **SHORT)
        is_served(s)
        set_limits(s, "alpha", tokens_per_day=100_000)
        wait_until(lambda: s.http("/v1/chat/completions", SHORT, s.key["alpha"])[0] == 200, what="more is allowed")


def test_tokens_per_second():
    """At no moment more than a full bucket and what has come in since, and nobody fails: it takes the time that it takes."""
    with Server(tenants=("alpha", "beta"), limits={"alpha": {"tokens_per_second": 25}}) as s:
        request = dict(**{**say("Count."), "max_tokens": 60}, extra_body={"ignore_eos": True})
        prompt = s.client("beta").chat.completions.create(**request).usage.prompt_tokens
        begin, n, at_most = time.monotonic(), prompt, []
        for chunk in s.client().chat.completions.create(**request, stream=True):
            if chunk.choices[0].finish_reason is None and chunk.choices[0].delta.content is not None:
                n += chunk.choices[0].delta.content != ""
                at_most.append((n, 25 + 25 * (time.monotonic() - begin) + 2))
        assert len(at_most) > 20 and all(n <= most for n, most in at_most), at_most
        row = [u for u in s.usage() if u["tenant"] == "alpha"][0]
        assert row["completion_tokens"] == 60 and time.monotonic() - begin >= (prompt + 58 - 25) / 25
        is_served(s)


def test_generations():
    with Server(tenants=("alpha", "beta"), programs={"alpha": guest("limits")}, limits={"alpha": {"generations": 3}}) as s:
        walk(s, "generations", 3, E_CROWDED, "generations: 3")
        is_served(s)
        realm("tenant", "create", "gamma", "--set", "generations=2", state=s.state)  # over its requests together
        s.key["gamma"] = realm("key", "create", "gamma", state=s.state).strip().splitlines()[-1]
        long = {**say("Count."), "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        held = [s.client("gamma").chat.completions.create(**long, stream=True) for _ in range(2)]
        for h in held:
            next(h)
        e = refused(s, "gamma", 429, "rate_limit_exceeded", "generations: 2", **SHORT)
        assert "x-should-retry" not in e.response.headers and int(e.response.headers["retry-after"]) >= 1
        is_served(s)
        held[0].close()
        wait_until(lambda: s.http("/v1/chat/completions", SHORT, s.key["gamma"])[0] == 200, what="one place is free")
        held[1].close()


def test_kv_tokens():
    """Contexts that do not fit beside each other leave KV memory and come back as they were; generations take turns;
    what can never fit is refused."""
    with Server(tenants=("alpha", "beta"), programs={t: guest("limits") for t in ("alpha", "beta")},
                limits={"alpha": {"kv_tokens": 320}}) as s:
        stories = {name: f"{name} is a letter. " * 24 for name in "ABC"}  # some 150 tokens each
        for tenant in ("alpha", "beta"):
            for name, story in stories.items():
                assert ask(s, tenant, f"save {name}", story) == "saved"
        assert s.metric("realm_kv_pages_suspended") > 0
        for name in stories:
            where, text = ask(s, "alpha", f"open {name}").split(":", 1)
            free, plain = ask(s, "beta", f"open {name}").split(":", 1)
            assert (text, free) == (plain, "resident") and text, (text, plain)
            assert where == "suspended" or name == "C", (name, where)
        assert s.metric("realm_kv_resumes_total") >= 5 and s.metric("realm_kv_lost_total") == 0
        for tenant in ("alpha", "beta"):
            realm("tenant", "create", tenant + "-plain", "--set", f"kv_tokens={192 if tenant == 'alpha' else 0}", state=s.state)
            s.key[tenant + "-plain"] = realm("key", "create", tenant + "-plain", state=s.state).strip().splitlines()[-1]
        texts = [[c.message.content for c in s.client(t).chat.completions.create(
            model="smollm2", messages=CAPITAL, n=4, max_tokens=60, temperature=1, seed=5,
            extra_body={"ignore_eos": True}).choices] for t in ("alpha-plain", "beta-plain")]
        assert texts[0] == texts[1] and len(set(texts[0])) == 4, texts
        e = refused(s, "alpha-plain", 429, "insufficient_quota", "kv_tokens", **{**SHORT, "max_tokens": 200})
        assert e.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in e.response.headers  # it will never fit
        is_served(s, "alpha-plain")


def test_limits_of_an_instance():
    """Each of them in turn, of one tenant whose limits are changed while the server runs."""
    with Server(tenants=("alpha", "beta"), programs={"alpha": guest("limits")}) as s:
        tight = dict(handles=10, contexts=3, memory_bytes=20 * MIB, output_bytes=50, read_bytes=3 * ROW_BYTES,
                     tensor_bytes=4 * MIB + 65536, storage_bytes=10 * 1024)
        set_limits(s, "alpha", **tight)
        refusal = lambda: s.http("/v1/chat/completions", say("emit 6"), s.key["alpha"])
        wait_until(lambda: refusal()[0] == 500, what="the limits are read again")

        # REALM_E_LIMIT to the program, and what is given back can be used again
        set_limits(s, "alpha", output_bytes=1000)
        wait_until(lambda: refusal()[0] == 200, what="the limits are read again")
        walk(s, "handles", 10, E_LIMIT, "handles: 10")
        walk(s, "tensors", 4, E_LIMIT, "tensor")
        walk(s, "read", 3, E_LIMIT, "read_bytes", again=E_LIMIT)
        walk(s, "read tensor", 3 * ROW_BYTES // 4096, E_LIMIT, "read_bytes", again=E_LIMIT)
        walk(s, "store", 10, E_LIMIT, "storage_bytes")
        walk(s, "contexts", 3, E_LIMIT, "contexts: 3")
        is_served(s)
        # the tenant's own across its requests: the store and the saved contexts are still full, tensors went with theirs
        assert ask(s, "alpha", "tensors").startswith(f"4 {E_LIMIT} 0 ")
        for text in ("store", "contexts"):
            assert ask(s, "alpha", text).startswith(f"0 {E_LIMIT} "), text
        set_limits(s, "alpha", tensor_bytes=3 * ROW_BYTES + 65536)
        wait_until(lambda: ask(s, "alpha", "keep").split(" ")[:3] == ["3", str(E_LIMIT), "0"], what="three rows are kept")

        # memory.grow: -1, and what was there stays; 320 pages in all
        less = int(ask(s, "alpha", "memory").split(" ")[0])
        set_limits(s, "alpha", memory_bytes=21 * MIB)
        wait_until(lambda: int(ask(s, "alpha", "memory").split(" ")[0]) == less + 16, what="a MiB more is allowed")

        # output: all that is allowed comes, nothing of the next piece, and the client is told which limit it was
        set_limits(s, "alpha", output_bytes=50)
        wait_until(lambda: refusal()[0] == 500, what="the limits are read again")
        assert ask(s, "alpha", "emit 5") == "0123456789" * 5
        e = refused(s, "alpha", 500, "program_failed", "output_bytes: 50", **say("emit 6"))
        assert e.response.headers["x-should-retry"] == "false"
        got = ""
        try:
            for chunk in s.client().chat.completions.create(**say("emit 6"), stream=True):
                got += chunk.choices[0].delta.content or ""
        except openai.APIError as e:
            assert "output_bytes: 50" in e.message, e
        assert got == "0123456789" * 5, got
        is_served(s)


def test_time_of_an_instance():
    with Server(tenants=("alpha", "beta"), programs={"alpha": guest("limits")},
                limits={"alpha": {"cpu_ms_per_wake": 100, "wall_ms": 60_000}}) as s:
        begin = time.monotonic()
        refused(s, "alpha", 500, "program_failed", "cpu_ms_per_wake (100 ms)", **say("spin"))
        assert time.monotonic() - begin >= 0.1
        ended = []
        set_limits(s, "alpha", wall_ms=400, cpu_ms_per_wake=60_000)
        wait_until(lambda: ended.append(s.http("/v1/chat/completions", say("spin"), s.key["alpha"])[2]["error"]) or
                   "wall_ms (400 ms)" in ended[-1]["message"], what="wall_ms is read again")
        begin = time.monotonic()
        status, _, answer = s.http("/v1/chat/completions", say("sleep"), s.key["alpha"])
        assert time.monotonic() - begin >= 0.4 and "wall_ms (400 ms)" in answer["error"]["message"], (status, answer)
        wait_until(lambda: s.metric("realm_generations_running") == 0, what="its generation went with it")
        assert ask(s, "alpha", "handles 5") == "5 0 0 "
        is_served(s)


def test_log_bytes():
    with Server(tenants=("alpha",), programs={"alpha": guest("limits")}, limits={"alpha": {"log_bytes": 550}},
                args=("--log-level", "debug")) as s:
        lines = lambda: sum("program: alpha: error: xxx" in line for line in s.log)
        for n in (1, 2):  # of each instance anew: five lines of a hundred bytes
            assert ask(s, "alpha", "log 20") == "logged"
            wait_until(lambda: lines() >= 5 * n, what="lines of the program")
            assert lines() == 5 * n, s.log
    with Server(tenants=("alpha",), programs={"alpha": guest("limits")}) as s:  # nothing of tenants' text by default
        assert ask(s, "alpha", "log 20") == "logged"
        assert s.stop() == 0 and not any("xxx" in line for line in s.log), s.log


def test_read_weights():
    with Server(tenants=("alpha", "beta"), programs={t: guest("limits") for t in ("alpha", "beta")},
                limits={"beta": {"read_weights": 1}}) as s:
        for tenant, code in (("alpha", E_DENIED), ("beta", 0), ("alpha", E_DENIED)):
            codes, why = ask(s, tenant, "weights").split(" ")[:4], ask(s, tenant, "weights")
            assert codes == [str(code)] * 4 and ("read_weights" in why) == (code != 0), (tenant, why)
        set_limits(s, "alpha", read_weights=1)
        wait_until(lambda: ask(s, "alpha", "weights").startswith("0 0 0 0"), what="it is granted")
        set_limits(s, "alpha", read_weights=0)
        wait_until(lambda: ask(s, "alpha", "weights").startswith(f"{E_DENIED} "), what="and taken away")


def test_weight():
    """Two floods that fill the engine: the one of more weight gets more of it, the other not nothing; and when the
    operator turns the weights round, so does that."""
    names = ("alpha", "beta")
    with Server(tenants=names) as s:
        request = dict(**{**say("Count."), "max_tokens": 4000}, n=32, extra_body={"ignore_eos": True}, stream=True)
        streams = {t: s.client(t).chat.completions.create(**request) for t in names}
        threads = [threading.Thread(target=drain, args=(stream,)) for stream in streams.values()]
        for t in threads:
            t.start()
        wait_until(lambda: s.metric("realm_generations_running") == 64, 30, "both floods run")
        share = lambda: {u["tenant"]: u["completion_tokens"] for u in s.usage()}

        def window(tokens):
            before = share()
            wait_until(lambda: sum(share().values()) - sum(before.values()) >= tokens, 60, "some work")
            return {t: n - before[t] for t, n in share().items()}

        for heavy, light in (names, names[::-1]):
            set_limits(s, heavy, weight=2000)
            set_limits(s, light, weight=100)
            wait_until(lambda: (got := window(200))[heavy] > got[light], 30, "the weights are read again")
            got = window(800)
            assert got[light] > 0 and got[heavy] > 2 * got[light], (heavy, got)
        for stream in streams.values():
            stream.close()
        for t in threads:
            t.join()


def drain(stream):
    try:
        for _ in stream:
            pass
    except (openai.APIError, Exception):  # noqa: BLE001 - closed under it
        pass
