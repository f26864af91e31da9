"""What a running server takes of its configuration when it is read again: tenants, limits, prefixes, models that come
and models that go."""
import pathlib
import signal
import tempfile

import openai

from harness import CAPITAL, MODEL, Server, raises, wait_until

LONG = dict(model="smollm2", messages=[{"role": "user", "content": "Count from one to a thousand."}], temperature=0,
            max_tokens=4000, extra_body={"ignore_eos": True})
SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=12)


def configuration(models, tenants, extra=""):
    return ("state: state\nlisten: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nthreads: 2\n" + extra +
            "models:\n" + "".join(f"  - id: {id}\n    file: {MODEL}\n" + more for id, more in models) +
            "tenants:\n" + "".join(f"  - name: {n}\n    key_file: {n}.key\n    limits: {{requests_per_minute: {r}}}\n"
                                   for n, r in tenants))


class Configured:
    """A server with a configuration file, which `again` writes anew and has read."""

    def __init__(self, models, tenants):
        self.dir = tempfile.TemporaryDirectory()
        dir = pathlib.Path(self.dir.name)
        for n in ("alpha", "beta"):
            (dir / f"{n}.key").write_text(f"rk-{n}-chosen-by-the-operator")
        self.config = dir / "realm.yaml"
        self.config.write_text(configuration(models, tenants))
        self.server = Server(tenants=(), state=dir / "state", args=["--config", str(self.config)], model=None)

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *why):
        self.server.__exit__(*why)
        self.dir.cleanup()

    def client(self, tenant="alpha"):
        return self.server.client(f"rk-{tenant}-chosen-by-the-operator")

    def says(self, text):
        wait_until(lambda: any(text in line for line in self.server.log), 60, f"a line with: {text}")

    def again(self, text):
        self.server.log.clear()
        self.config.write_text(text)
        self.server.process.send_signal(signal.SIGHUP)

    def ledger_agrees(self):
        s = self.server
        assert sum(u["completion_tokens"] for u in s.usage()) == s.usage("--engine")["completion_tokens"]


def resident_bytes(server):
    with open(f"/proc/{server.process.pid}/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmRSS:"))


def ids(client):
    return [m.id for m in client.models.list()]


def test_sighup_takes_what_a_running_server_can():
    with Configured([("smollm2", "")], [("alpha", 600)]) as on:
        s, c = on.server, on.client()
        refused = raises(openai.NotFoundError, lambda: c.completions.create(model="second", prompt="One", max_tokens=1))
        assert refused.code == "model_not_found"
        stream = c.chat.completions.create(**{**LONG, "max_tokens": 120}, stream=True)
        next(stream)
        # a model more, another limit, a tenant more; an answer under way does not notice
        on.again(configuration([("smollm2", ""), ("second", "")], [("alpha", 500), ("beta", 600)],
                               "workers: 3\nhttp: {idle_ms: 60000}\n"))
        on.says("configuration read again: 2 tenants; the next start takes: workers, http.idle_ms")
        r = c.chat.completions.with_raw_response.create(**SHORT)
        assert r.headers["x-ratelimit-limit-requests"] == "500"
        on.says("loaded second: llama")
        assert sum(1 for _ in stream) > 100, "the stream went on to its end"
        for client in (c, on.client("beta")):
            assert ids(client) == ["smollm2", "second"]
            answer = client.chat.completions.create(**{**SHORT, "model": "second"})
            assert answer.choices[0].message.content == r.parse().choices[0].message.content
        assert s.metric("realm_completion_tokens_total") == s.usage("--engine")["completion_tokens"]
        on.ledger_agrees()
        # what a running server keeps, and says so; what can be added is
        on.again(configuration([("smollm2", ""), ("second", "    weight_budget: 60M\n    prefixes: ['" + "One, two. " * 40 + "']\n")],
                               [("alpha", 500)]))
        on.says("model second: the next start takes its weight_budget")
        on.says("model second: 1 prefixes published")
        assert c.completions.create(model="second", prompt="One, two. " * 45,
                                    max_tokens=1).usage.prompt_tokens_details.cached_tokens >= 32
        c.chat.completions.create(**SHORT)
        # a file that is no model
        (on.config.parent / "bad.gguf").write_text("nothing")
        on.again(configuration([("smollm2", ""), ("second", "")], [("alpha", 500)]).replace(
            "tenants:", "  - id: bad\n    file: bad.gguf\ntenants:"))
        on.says("not taken: model bad: ")
        c.chat.completions.create(**SHORT)
        # asked to stop while a model is loaded
        on.again(configuration([("smollm2", ""), ("second", ""), ("third", "")], [("alpha", 500)]))
        on.says("loading third")
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(20) == 0


def test_a_model_that_leaves_the_file_is_retired():
    both, one = [("smollm2", ""), ("second", "")], [("smollm2", "")]
    tenants = [("alpha", 600)]
    with Configured(both, tenants) as on:
        s, c = on.server, on.client()
        weights = lambda id: s.metric(f'realm_model_weight_bytes{{model="{id}"}}')  # noqa: E731
        assert ids(c) == ["smollm2", "second"] and weights("second") > 0
        text = c.chat.completions.create(**{**SHORT, "model": "second"}).choices[0].message.content
        before = resident_bytes(s)
        stream = c.chat.completions.create(**{**LONG, "model": "second", "max_tokens": 300}, stream=True)
        next(stream)
        on.again(configuration(one, tenants))
        on.says("model second is not in the configuration any more: it takes no new requests")
        # nobody new finds it, as if it had never been
        refused = raises(openai.NotFoundError, lambda: c.chat.completions.create(**{**SHORT, "model": "second"}))
        never = raises(openai.NotFoundError, lambda: c.chat.completions.create(**{**SHORT, "model": "never"}))
        assert refused.code == never.code == "model_not_found"
        assert refused.body["message"] == never.body["message"].replace("never", "second")
        raises(openai.NotFoundError, lambda: c.models.retrieve("second"))
        assert ids(c) == ["smollm2"] and weights("second") == 0
        assert not any("not in memory any more" in line for line in s.log)
        # who has begun is answered to the end
        assert sum(1 for _ in stream) > 250
        on.says("second was retired and is not in memory any more")
        wait_until(lambda: resident_bytes(s) < before - (50 << 20), what="its memory is given back")
        c.chat.completions.create(**SHORT)
        on.ledger_agrees()
        # and it can come back
        on.again(configuration(both, tenants))
        on.says("loaded second: llama")
        assert ids(c) == ["smollm2", "second"]
        assert c.chat.completions.create(**{**SHORT, "model": "second"}).choices[0].message.content == text
        on.ledger_agrees()
        # none is left: the server says so where it is asked
        on.again(configuration([], tenants).replace("models:\n", ""))
        on.says("second was retired and is not in memory any more")
        assert ids(c) == [] and s.http("/ready")[0] == 503
        on.ledger_agrees()
