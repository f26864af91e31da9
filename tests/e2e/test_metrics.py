"""/metrics, read with Prometheus' own parser: what is there, that it is documented, who sees it, and that it says what
the ledger says."""
import pathlib
import re
import threading

import prometheus_client.parser

from harness import CAPITAL, GUEST, Server, realm, wait_until

SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=12)
LONG_PROMPT = dict(model="smollm2", messages=[{"role": "user", "content": "One, two, three. " * 40}], max_tokens=2)


def scrape(s, key=None, admin=True):
    """{family: (type, {labels: value})}, labels as a sorted tuple of pairs; buckets and sums under their own names."""
    status, fields, text = s.http("/metrics", key=key, admin=admin)
    assert status == 200 and fields["content-type"].startswith("text/plain; version=0.0.4"), (status, fields)
    families = {}
    for f in prometheus_client.parser.text_string_to_metric_families(text):
        name = f.name + ("_total" if f.type == "counter" else "")
        assert name not in families and f.documentation, name
        series = {}
        for sample in f.samples:
            at = (sample.name, tuple(sorted(sample.labels.items())))
            assert at not in series, at
            assert sample.value >= 0 and (f.type == "histogram" or sample.name == name), sample
            series[at] = sample.value
        families[name] = (f.type, series)
    return families


def value(families, name, **labels):
    return families[name][1].get((name, tuple(sorted(labels.items()))), 0)


def test_metrics_say_what_happened():
    with Server(tenants=("alpha", "beta"), programs={"beta": GUEST / "shout.wasm"}, args=("--weight-budget", "46M")) as s:
        idle = scrape(s, s.admin_key)
        assert value(idle, "realm_requests_total") == 0
        for tenant in ("alpha", "beta", "beta"):
            s.client(tenant).chat.completions.create(**SHORT)
        for _ in range(2):
            s.client("alpha").chat.completions.create(**LONG_PROMPT)
        # programs and the ledger are told at the end of an answer, counters of the engine with its step
        wait_until(lambda: s.metric("realm_runs_active") == 0 and s.metric("realm_generations_running") == 0)
        m, rows = scrape(s, s.admin_key), {u["tenant"]: u for u in s.usage()}
        for name, (kind, series) in m.items():
            assert kind != "counter" or all(v >= idle[name][1].get(at, 0) for at, v in series.items()), name

        # tenants: the ledger's numbers, which add up to those of the whole
        seen = {"requests": 1, "prompt_tokens": 1, "cached_tokens": 1, "completion_tokens": 1, "program_cpu_ns": 1e9}
        for field, unit in seen.items():
            name = f"realm_tenant_{field.replace('_ns', '_seconds')}_total"
            for tenant in ("alpha", "beta"):
                assert abs(value(m, name, tenant=tenant) - rows[tenant][field] / unit) < 1e-8, (name, rows)
            total = name.replace("tenant_", "")
            labels = {} if field in ("requests", "program_cpu_ns") else {"model": "smollm2"}
            assert abs(value(m, total, **labels) - sum(rows[t][field] for t in rows) / unit) < 1e-8, total
        assert rows["alpha"]["requests"] == 3 and rows["beta"]["requests"] == 2
        assert rows["alpha"]["program_cpu_ns"] > 0 and rows["beta"]["program_cpu_ns"] > 0

        # the prefix cache, the device, weights that stream, programs
        assert value(m, "realm_prefix_hits_total", model="smollm2") >= 1
        assert value(m, "realm_prefix_lookups_total", model="smollm2") >= 5
        steps = value(m, "realm_engine_steps_total", model="smollm2")
        assert steps > 5 and value(m, "realm_device_turns_total") >= steps
        assert value(m, "realm_device_held_seconds_total") > 0
        for name in ("hits", "misses", "evictions", "read_bytes"):
            assert value(m, f"realm_stream_{name}_total", model="smollm2") > 0, name
        assert 0 < value(m, "realm_model_resident_bytes", model="smollm2") <= 46 << 20
        assert value(m, "realm_instances_started_total") == value(m, "realm_instances_ended_total") == 5
        assert value(m, "realm_instances_failed_total") == value(m, "realm_instances") == 0
        assert value(m, "realm_programs_compiled_total") + value(m, "realm_programs_from_cache_total") >= 2
        assert value(m, "realm_ledger_writes_total") > 0 and value(m, "realm_ledger_failures_total") == 0
        assert value(m, "realm_kv_suspended_bytes", model="smollm2", place="disk") == 0

        # a program that is given up, and so ended by the sandbox
        stream = s.client("beta").chat.completions.create(**{**SHORT, "max_tokens": 500}, stream=True)
        next(stream)
        stream.close()
        wait_until(lambda: s.metric("realm_instances") == 0, what="its program ends")
        wait_until(lambda: s.usage("--tenant", "beta")[0]["aborted_requests"] == 1)
        assert value(scrape(s, s.admin_key), "realm_tenant_requests_aborted_total", tenant="beta") == 1


def test_every_metric_is_documented(server):
    here = pathlib.Path(__file__).resolve().parents[2]
    section = (here / "docs/api.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    documented = dict(re.findall(r"^\| `(realm_\w+)` \| (\w+) \|", section, re.M))
    assert {name: kind for name, (kind, _) in scrape(server, server.admin_key).items()} == documented


def test_tenants_are_named_to_the_operator_alone(server):
    names = list(server.key)
    server.client("alpha").chat.completions.create(**SHORT)
    wait_until(lambda: "alpha" in server.http("/metrics", key=server.admin_key, admin=True)[2])
    assert "alpha" in server.http("/metrics", key=server.admin_key)[2]  # on the tenants' listener too
    for key in (None, server.key["alpha"], "rk_" + "0" * 64):
        status, _, answer = server.http("/metrics", key=key)
        assert status in (401, 403) and not any(n in str(answer) for n in names), (status, answer)
    assert server.http("/metrics", key=server.key["alpha"], admin=True)[0] == 403
    anonymous = server.http("/metrics", admin=True)[2]
    assert "realm_requests_total" in anonymous and not any(n in anonymous for n in names)


def test_metrics_are_read_while_tenants_come_and_go(server):
    """Every answer parses, whoever is there at that moment."""
    stop, failed = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                scrape(server, server.admin_key)
            except Exception as e:  # noqa: BLE001
                failed.append(e)
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(5):  # the name comes again, as another tenant
            realm("tenant", "create", "comes-and-goes", state=server.state)
            key = realm("key", "create", "comes-and-goes", state=server.state).strip().splitlines()[-1]
            server.client(key).completions.create(model="smollm2", prompt="One", max_tokens=1)
            realm("tenant", "delete", "comes-and-goes", state=server.state)
    finally:
        stop.set()
        reader.join()
    assert not failed, failed
