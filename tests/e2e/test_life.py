"""A server's life: who leaves, limits, keys, signals, crashes. Each test has its own process."""
import contextlib
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import openai

from harness import CAPITAL, MODEL, REALM, Server, raises, realm, wait_until

LONG = dict(model="smollm2", messages=[{"role": "user", "content": "Count from one to a thousand."}], temperature=0,
            max_tokens=4000, extra_body={"ignore_eos": True})
SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=12)


def test_a_client_that_leaves_frees_its_generation():
    with Server() as s:
        stream = s.client().chat.completions.create(**LONG, stream=True)
        for _ in range(5):
            next(stream)
        assert s.metric("realm_generations_running") == 1
        stream.close()
        wait_until(lambda: s.metric("realm_generations_running") == 0, what="the generation of a closed stream ends")
        # and without a stream, where nothing is written until the end
        raises(openai.APITimeoutError, lambda: s.client().with_options(timeout=0.5).chat.completions.create(**LONG))
        wait_until(lambda: s.metric("realm_generations_running") == 0, what="the generation of a client that hung up ends")
        # in the middle of a long prompt
        raises(openai.APITimeoutError, lambda: s.client().with_options(timeout=0.2).chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "word " * 7000}]))
        wait_until(lambda: s.metric("realm_requests_active") == 0, what="a prefill ends")
        wait_until(lambda: s.metric("realm_kv_pages_used") == 0, what="KV pages come back")
        wait_until(lambda: s.usage()[0]["aborted_requests"] == 3, what="they stand in the ledger")
        assert s.usage()[0]["requests"] == 3
        assert "Paris" in s.client().chat.completions.create(**SHORT).choices[0].message.content


def test_rate_limits():
    with Server(limits={"alpha": {"requests_per_minute": 2}}) as s:
        c = s.client()
        r = c.chat.completions.with_raw_response.create(**SHORT)
        assert r.headers["x-ratelimit-limit-requests"] == "2" and r.headers["x-ratelimit-remaining-requests"] == "1"
        c.chat.completions.create(**SHORT)
        e = raises(openai.RateLimitError, lambda: c.chat.completions.create(**SHORT))
        assert e.status_code == 429 and e.code == "rate_limit_exceeded" and int(e.response.headers["retry-after"]) > 0
        assert "requests_per_minute" in e.body["message"]
        c.models.list()  # looking is free
    with Server(limits={"alpha": {"tokens_per_day": 60}}) as s:
        c = s.client()
        c.chat.completions.create(**SHORT)
        c.chat.completions.create(**SHORT)
        e = raises(openai.RateLimitError, lambda: c.chat.completions.create(**SHORT))
        assert e.response.headers["x-should-retry"] == "false" and e.code == "insufficient_quota"


def test_weights_that_stream_give_the_same_answer():
    answers = []
    for args in ((), ("--weight-budget", "46M")):
        with Server(args=args) as s:
            answers.append(s.client().chat.completions.create(**SHORT).choices[0].message.content)
    assert answers[0] == answers[1] and "Paris" in answers[0]
    with tempfile.TemporaryDirectory() as state:
        refused = realm("serve", "--model", f"m={MODEL}", "--weight-budget", "4M", "--listen", "127.0.0.1:0",
                        "--admin-listen", "off", state=state, check=False)
    assert refused.returncode == 1 and "needs at least" in refused.stderr, refused.stderr
    refused = realm("bench", "--model", str(MODEL), "--weight-budget", "lots", check=False)
    assert refused.returncode == 2 and "takes a size like 200M" in refused.stderr, refused.stderr


def test_more_choices_than_generations_allowed():
    with Server(limits={"alpha": {"generations": 2}}) as s:
        r = s.client().chat.completions.create(**{**SHORT, "max_tokens": 2}, n=7)
        assert len(r.choices) == 7 and r.usage.completion_tokens == 14
        assert s.usage()[0]["completion_tokens"] == 14 and s.usage()[0]["requests"] == 1


def test_keys_come_and_go_while_it_runs():
    with Server() as s:
        fresh = realm("key", "create", "alpha", state=s.state).strip().splitlines()[-1]
        s.client(fresh).models.list()
        realm("key", "revoke", fresh, state=s.state)

        def refused():
            try:
                s.client(fresh).models.list()
            except openai.AuthenticationError:
                return True

        wait_until(refused, 2, "a revoked key is refused")
        realm("tenant", "create", "late", state=s.state)
        late = realm("key", "create", "late", state=s.state).strip().splitlines()[-1]
        assert "Paris" in s.client(late).chat.completions.create(**SHORT).choices[0].message.content


def test_sigterm_lets_answers_end():
    with Server() as s:
        stream = s.client().chat.completions.create(**{**LONG, "max_tokens": 60}, stream=True)
        chunks = [next(stream)]
        s.process.send_signal(signal.SIGTERM)
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert s.process.wait(20) == 0
        assert s.usage()[0]["completion_tokens"] == 60


def drain(s):
    """Has the server stop while it answers; that answer."""
    stream = s.client().chat.completions.create(**LONG, stream=True)
    next(stream)
    s.process.send_signal(signal.SIGTERM)
    wait_until(lambda: any(line.startswith("realm: stopping") for line in s.log), what="draining")
    return stream


def test_who_comes_while_answers_end_is_told():
    with Server() as s:
        stream = drain(s)
        for admin in (False, True):
            status, fields, body = s.http("/ready", admin=admin)
            assert status == 503 and body["error"]["code"] == "shutting_down" and fields["connection"] == "close"
            assert s.http("/health", admin=admin)[0] == 200
        assert s.metric("realm_requests_active") == 1
        refused = raises(openai.InternalServerError, lambda: s.client().chat.completions.create(**SHORT))
        assert refused.status_code == 503 and refused.code == "shutting_down"
        assert refused.response.headers["retry-after"] and refused.response.headers["x-request-id"]
        assert len([next(stream) for _ in range(20)]) == 20  # nobody was disturbed
        with socket.create_connection(("127.0.0.1", s.port)):  # nor is anybody waited for who came late
            stream.close()
            assert s.process.wait(20) == 0
        assert s.usage()[0]["requests"] == 1


def test_a_second_sigterm_does_not_wait():
    with Server() as s:
        stream = drain(s)
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(20) == 0
        usage = s.usage()[0]
        assert usage["aborted_requests"] == 1 and usage["completion_tokens"] >= 1


def test_cpu_time_of_answers_that_ended_survives_kill_9():
    with Server() as s:
        c, before = s.client(), 0
        for _ in range(3):
            c.chat.completions.create(**SHORT)
            told = round(s.metric("realm_program_cpu_seconds_total") * 1e9)  # since this process started
            s.stop(signal.SIGKILL)
            after = s.usage()[0]["program_cpu_ns"]
            assert told > 0 and abs(after - before - told) <= 1
            before = after
            s.start()
            c = s.client()


@contextlib.contextmanager
def endless(*tenants, cpu_ms_per_wake):
    """A server where the program of the tenant "evil" never ends."""
    with tempfile.TemporaryDirectory() as dir:
        wat, wasm = pathlib.Path(dir) / "spin.wat", pathlib.Path(dir) / "spin.wasm"
        wat.write_text('(module (memory (export "memory") 1) (func (export "realm_main") (result i32)'
                       " (loop $l (br $l)) (i32.const 0)))")
        subprocess.run(["wat2wasm", str(wat), "-o", str(wasm)], check=True)
        with Server(tenants=(*tenants, "evil"), programs={"evil": wasm},
                    limits={"evil": {"cpu_ms_per_wake": cpu_ms_per_wake}}) as s:
            yield s


def test_cpu_time_is_charged_while_a_program_runs():
    with endless(cpu_ms_per_wake=600000) as s:
        def spin():
            with contextlib.suppress(openai.OpenAIError):
                s.client("evil").chat.completions.create(**SHORT)

        thread = threading.Thread(target=spin)
        thread.start()
        for seconds in (0.05, 0.2):
            wait_until(lambda: s.usage()[0]["program_cpu_ns"] >= seconds * 1e9,
                       seconds=60, what="the ledger follows a program")
            assert s.metric("realm_program_cpu_seconds_total") >= seconds and thread.is_alive()
        told = s.usage()[0]["program_cpu_ns"]
        s.stop(signal.SIGKILL)
        thread.join()
        assert s.usage()[0]["program_cpu_ns"] >= told, "it never ended, and is charged what it used"


def test_a_program_that_never_ends_harms_only_its_tenant():
    with endless("alpha", cpu_ms_per_wake=3000) as s:
        failures = []

        def spin():
            try:
                s.client("evil").chat.completions.create(**SHORT)
            except openai.APIStatusError as e:
                failures.append(e)

        threads = [threading.Thread(target=spin) for _ in range(4)]
        for t in threads:
            t.start()
        wait_until(lambda: s.metric("realm_instances") == 4, what="all four run")
        for _ in range(3):
            assert "Paris" in s.client("alpha").chat.completions.create(**SHORT).choices[0].message.content
        assert any(t.is_alive() for t in threads)  # none of them waited for the spinning programs to be ended
        for t in threads:
            t.join()
        assert len(failures) == 4 and all(e.status_code == 500 for e in failures), failures
        assert failures[0].code == "program_failed" and failures[0].response.headers["x-should-retry"] == "false"


def test_health_answers_under_load():
    with Server() as s:
        stop = threading.Event()

        def load():
            with s.client() as c:
                while not stop.is_set():
                    for _ in c.chat.completions.create(**{**LONG, "max_tokens": 100}, stream=True):
                        if stop.is_set():
                            return

        threads = [threading.Thread(target=load) for _ in range(12)]
        for t in threads:
            t.start()
        wait_until(lambda: s.metric("realm_generations_running") >= 12, 20, "12 generations")
        times = []
        for _ in range(100):
            begin = time.monotonic()
            assert s.http("/health")[0] == 200
            times.append(time.monotonic() - begin)
        stop.set()
        for t in threads:
            t.join()
        assert statistics.median(times) < 0.05, times  # the bench measures; this only sees starvation


def test_configuration_file():
    dir = pathlib.Path(tempfile.mkdtemp(prefix="realm-e2e-"))
    try:
        (dir / "alpha.key").write_text("rk-alpha-chosen-by-the-operator\n")
        (dir / "chat.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
        config = dir / "realm.yaml"
        text = ("state: state\nlisten: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nthreads: 2\nhost_names: [realm.test]\n"
                f"models:\n  - id: smollm2\n    file: {MODEL}\n"
                "  - {id: other, file: alpha.key, chat_template: chat.jinja}\n"
                "http: {body_bytes: 4096}\nengine: {max_generations: 8}\n"
                "tenants:\n  - name: alpha\n    key_file: alpha.key\n    limits: {requests_per_minute: 600}\n")
        config.write_text(text)
        # options go before the file: of a model it describes, the command line names another file
        s = Server(tenants=(), state=dir / "state", args=["--config", str(config), "--model", f"other={MODEL}"], model=None)
        with s:
            c = s.client("rk-alpha-chosen-by-the-operator")
            assert [m.id for m in c.models.list()] == ["smollm2", "other"]
            prompts = [s.http("/apply-template", {"model": m, "messages": CAPITAL[:1]}, "rk-alpha-chosen-by-the-operator")[2]
                       for m in ("smollm2", "other")]
            assert prompts[0]["prompt"].startswith("<|im_start|>") and prompts[1]["prompt"] == f"[{CAPITAL[0]['content']}]"
            r = c.chat.completions.with_raw_response.create(**SHORT)
            assert r.headers["x-ratelimit-limit-requests"] == "600"
            assert s.raw(b"GET /health HTTP/1.1\r\nHost: realm.test\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
            e = raises(openai.APIStatusError, lambda: c.completions.create(model="smollm2", prompt="x" * 5000))
            assert e.status_code == 413
            (dir / "beta.key").write_text("rk-beta-chosen-by-the-operator")
            config.write_text(text + "  - name: beta\n    key_file: beta.key\n")
            s.process.send_signal(signal.SIGHUP)
            wait_until(lambda: any("read again" in line for line in s.log), what="SIGHUP is obeyed")
            s.client("rk-beta-chosen-by-the-operator").models.list()
            config.write_text(text.replace(", chat_template: chat.jinja", ""))
            s.process.send_signal(signal.SIGHUP)
            wait_until(lambda: any("model other: the next start takes its chat_template" in line for line in s.log),
                       what="what waits is said")
            config.write_text(text + "nonsense: 1\n")
            s.process.send_signal(signal.SIGHUP)
            wait_until(lambda: any("not taken" in line and "nonsense" in line for line in s.log), what="a bad file is refused")
            s.client("rk-beta-chosen-by-the-operator").models.list()
    finally:
        shutil.rmtree(dir, ignore_errors=True)


def test_wrong_configurations_name_the_line():
    with tempfile.TemporaryDirectory() as dir:
        config = pathlib.Path(dir) / "realm.yaml"
        for text, says in (("listen: 1\n", "line 1: listen: must be a string"),
                           ("threads: 2\nlistn: x\n", "line 2: listn: unknown key"),
                           ("models:\n  - id: a\n    fiel: b\n", "line 3: models[0].fiel: unknown key"),
                           ("models:\n  - id: a\n", "line 2: models[0].file: no model \"a\""),
                           (f"models:\n  - {{id: a, file: {MODEL}}}\n  - {{id: a, file: {MODEL}}}\n",
                            "line 3: models[1].id: a model of this id stands above"),
                           (f"models:\n  - id: a\n    file: {MODEL}\n    chat_template: none.jinja\n",
                            "line 4: models[0].chat_template: "),
                           ("tenants:\n  - name: a\n    limits: {weight: 0}\n", "line 3: tenants[0].limits.weight"),
                           ("http: {head_bytes: 1}\n", "http.head_bytes: must be from 1024"),
                           ("threads: 2\nthreads: 3\n", "line 2"),
                           ("models:\n" + "".join(f"  - {{id: m{i}, file: {MODEL}}}\n" for i in range(17)),
                            "line 18: models[16]: at most 16 models"),
                           ("listen: [\n", "line 2")):
            config.write_text(text)
            done = realm("serve", "--config", str(config), "--state", dir + "/state", check=False)
            assert done.returncode == 1 and done.stderr.count("\n") == 1 and says in done.stderr, (text, done)
        done = realm("serve", "--model", f"a={MODEL}", "--model", f"a={MODEL}", "--state", dir + "/state", check=False)
        assert done.returncode == 1 and done.stderr == 'realm: serve: --model names "a" twice\n', done
        config.write_text("listen: nowhere\n")
        done = realm("serve", "--config", str(config), "--state", dir + "/state", check=False)
        assert done.returncode == 1 and "nowhere" in done.stderr


def test_a_second_server_on_the_same_port_is_refused():
    with Server() as s, tempfile.TemporaryDirectory() as dir:
        done = subprocess.run([REALM, "serve", "--listen", f"127.0.0.1:{s.port}", "--admin-listen", "off", "--state", dir],
                              capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and "in use" in done.stderr, done


def test_sigterm_while_loading():
    with tempfile.TemporaryDirectory() as dir:
        p = subprocess.Popen([REALM, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--state", dir, "--model",
                              f"m={MODEL}"], stderr=subprocess.PIPE, text=True)
        for line in p.stderr:
            if "listening" in line:
                break
        p.send_signal(signal.SIGTERM)
        assert p.wait(20) == 0
        p.stderr.close()
