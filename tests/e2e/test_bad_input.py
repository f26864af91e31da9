"""Requests made to hurt, as literal bytes of JSON: each is refused with the field or the place in the schema, counts
nothing, and leaves the server as it was; what is not refused keeps to its constraint."""
import json
import pathlib
import re
import socket
import tempfile
import threading
import time

import openai

from harness import CAPITAL, Server, wait_until

CHAT = {"model": "smollm2", "messages": CAPITAL, "temperature": 0, "max_tokens": 16}
TEXT = {"model": "smollm2", "prompt": "One two three", "temperature": 0, "max_tokens": 8}


def post(s, path, body, tenant="alpha"):
    """(status, answer)"""
    body = body.encode()
    answer = s.raw(b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
                   b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (
                       path.encode(), s.key[tenant].encode(), len(body), body), wait=60)
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text)


def used(s, tenant="alpha"):
    """Requests and tokens, in the ledger."""
    row = s.http("/v1/usage", key=s.key[tenant])[2]
    return [row[k] for k in ("requests", "aborted_requests", "prompt_tokens", "completion_tokens")]


def with_field(base, field, value):
    """The value as it stands, which need not be JSON."""
    return json.dumps({k: v for k, v in base.items() if k != field})[:-1] + f', "{field}": {value}}}'


def test_parameters(server):
    before = used(server)
    far = "9" * 400
    for base, field, value in (
            (CHAT, "max_tokens", "-1"), (CHAT, "max_tokens", "-9223372036854775808"), (CHAT, "max_tokens", far),
            (CHAT, "max_tokens", "1e3"), (CHAT, "max_completion_tokens", "-1"), (CHAT, "n", "-1"), (CHAT, "n", "1000000000"),
            (CHAT, "n", "129"), (TEXT, "n", "4294967297"), (TEXT, "best_of", "100000"), (TEXT, "logprobs", "-1"),
            (CHAT, "top_k", "-1"), (CHAT, "top_p", "-0.5"), (CHAT, "top_p", "1e999"), (CHAT, "min_p", "-1e999"),
            (CHAT, "temperature", "NaN"), (CHAT, "temperature", "Infinity"), (CHAT, "temperature", "-Infinity"),
            (CHAT, "temperature", "1e999"), (CHAT, "temperature", "-1e-9"), (CHAT, "repeat_penalty", "0"),
            (CHAT, "repeat_penalty", "NaN"), (CHAT, "frequency_penalty", "1e999"), (CHAT, "presence_penalty", "-3"),
            (CHAT, "repeat_last_n", "-2"), (CHAT, "seed", far), (CHAT, "seed", "0.5"),
            (CHAT, "logit_bias", '{"49152": 1}'), (CHAT, "logit_bias", '{"-1": 1}'), (CHAT, "logit_bias", '{"1": NaN}'),
            (CHAT, "logit_bias", '{"1": 1e999}'), (CHAT, "logit_bias", '{"18446744073709551617": 1}'),
            (CHAT, "stop", json.dumps(["x"] * 5)), (CHAT, "stop", '[""]'), (TEXT, "prompt", '""'), (TEXT, "prompt", "[]"),
            (TEXT, "prompt", "[-1]"), (TEXT, "prompt", "[49152]"), (TEXT, "prompt", "[1e999]"),
            (TEXT, "prompt", json.dumps(["x"] * 129)), (CHAT, "messages", "[]"), (CHAT, "messages", '[{"role": "user"}]'),
            (CHAT, "model", '""'), (CHAT, "model", '"../../etc/passwd"'), (CHAT, "top_logprobs", "20"),
            (CHAT, "messages", "[" * 100 + "]" * 100)):
        status, answer = post(server, "/v1/chat/completions" if base is CHAT else "/v1/completions",
                              with_field(base, field, value))
        error = answer["error"]
        assert status in (400, 404) and error["type"] == "invalid_request_error", (field, value, status, answer)
        # bytes that are no JSON at all have no field; that a prompt is empty the tenant's program finds out
        assert (error["param"] or "").startswith(field) or error["code"] == "invalid_json" or \
            error["message"] == "the prompt is empty", (field, value, error)
    assert used(server) == before, (used(server), before)
    # one of several prompts is found to be empty when the others may have begun
    assert post(server, "/v1/completions", with_field(TEXT, "prompt", '["a", ""]'))[0] == 400
    # penalties of every kind together, at their bounds, with the least and the most of everything
    for extreme in (dict(frequency_penalty=2, presence_penalty=2, repeat_penalty=2, repeat_last_n=0),
                    dict(frequency_penalty=-2, presence_penalty=-2, temperature=2, top_p=0, top_k=1, min_p=1, seed=-1),
                    dict(temperature=2, top_p=1e-300, logit_bias={"0": -100, "49151": 100}, n=2)):
        status, answer = post(server, "/v1/chat/completions", json.dumps({**CHAT, **extreme}))
        assert status == 200 and answer["usage"]["completion_tokens"] > 0, (extreme, answer)


def asks_for(schema, **more):
    return json.dumps({**CHAT, **more})[:-1] + ', "response_format": {"type": "json_schema", "json_schema": {"name": "x", ' \
        f'"schema": {schema}}}}}}}'


def nested(n):
    return '{"type": "object", "properties": {"a": ' * n + '{"type": "integer"}' + "}}" * n


def test_schemas_that_cannot_be_kept_to(server):
    before = used(server)
    for schema, place in (
            ('{"$ref": "#"}', "#/$ref"),
            ('{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "#/$defs/a/$ref"),
            ('{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, '
             '"$ref": "#/$defs/a"}', "#/$defs/b/anyOf/0/$ref"),
            ('{"$ref": "http://evil.example/schema.json"}', "#/$ref"), ('{"$ref": "file:///etc/passwd"}', "#/$ref"),
            ('{"$ref": "#/$defs/none"}', "#/$ref"),
            ('{"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}', "#/properties/a/pattern"),
            ('{"type": "string", "pattern": "^(?=a)b$"}', "#/pattern"),
            ('{"type": "string", "pattern": "^(a)\\\\1$"}', "#/pattern"),
            ('{"type": "object", "patternProperties": {"(": {}}}', "#/patternProperties/("),
            ('{"type": "string", "format": "nosuch"}', "#/format"), ('{"type": ["integer", "strin"]}', "#/type/0"),
            ('{"type": "string", "minLength": -1}', "#/minLength"),
            ('{"type": "integer", "minimum": 5, "maximum": 1}', "#"),
            ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "#/oneOf"), ('{"not": {}}', "#/not"),
            (json.dumps({"enum": [str(i) for i in range(20001)]}), "20000"),
            (json.dumps({"enum": ["x" * 300_000]}), "262144"), (nested(5000), "deeper"), ("[]", "object"),
            ("false", "object"), ('{"type": "number", "minimum": Infinity}', "JSON")):
        for tenant in ("alpha",):
            status, answer = post(server, "/v1/chat/completions", asks_for(schema), tenant)
            error = answer["error"]
            assert status == 400 and place in error["message"], (schema[:100], status, answer)
            assert (error["param"] or "").startswith("response_format.json_schema.schema") or error["code"] == "invalid_json", error
    assert used(server) == before, (used(server), before)


def test_schemas_that_are_hard_to_keep_to(server):
    """Recursion that consumes, counts beyond reason, expressions that explode elsewhere: an answer that begins as the
    schema says and ends at max_tokens, or a refusal; never something else."""
    number, word = re.compile(r"\s*\[[\s\d,-]*\]?\s*"), re.compile(r'"[^"]*"?')
    for schema, shape in (
            ('{"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"], '
             '"additionalProperties": false}}, "$ref": "#/$defs/n"}', re.compile(r'[\s{}"c:]*')),
            ('{"type": "array", "items": {"type": "integer"}, "minItems": 1000000000}', number),
            ('{"type": "string", "minLength": 1000000000}', word), ('{"type": "string", "maxLength": 1000000000}', word),
            ('{"type": "string", "pattern": "^(a+)+$"}', re.compile('"a*"?')),
            ('{"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}', re.compile('"a*"?')),
            ('{"type": "string", "pattern": "^a{1,1000000}$"}', re.compile('"a*"?')),
            (nested(20), re.compile(r'[\s{}"a:]*\d*[\s}]*'))):
        status, answer = post(server, "/v1/chat/completions", asks_for(schema, max_tokens=20, temperature=1, seed=1))
        if status == 200:
            text = answer["choices"][0]["message"]["content"]
            assert shape.fullmatch(text), (schema, text)
        else:
            assert status == 400 and answer["error"]["param"].startswith("response_format.json_schema.schema"), answer


def test_schemas_that_fail_while_they_are_kept_to(server):
    """What is found out of a schema only while it answers is the client's error as well: in the status, and in a stream
    that has begun as its last event."""
    many = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(800)}}
    later = {"type": "object", "properties": {"a": {"const": "x"}, "b": many}, "required": ["a", "b"],
             "additionalProperties": False}
    place = "response_format.json_schema.schema"
    for tenant in ("alpha", "gamma"):  # by the default program, and by one that looks at every token
        for schema in (many, later):
            status, answer = post(server, "/v1/chat/completions", asks_for(json.dumps(schema), max_tokens=200), tenant)
            error = answer["error"]
            assert (status, error["type"], error["param"], error["code"]) == (
                400, "invalid_request_error", place, "unusable_schema"), (tenant, status, answer)
            assert error["message"].startswith(place + ": "), error
    stream = server.client().chat.completions.create(**json.loads(asks_for(json.dumps(later), max_tokens=200, stream=True)))
    text = ""
    error = None
    try:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    except openai.APIError as e:
        error = e
    assert error and (error.code, error.param) == ("unusable_schema", place), error
    assert json.loads(text + '{}}')["a"] == "x", text
    assert "Paris" in server.client().chat.completions.create(**CHAT).choices[0].message.content


def test_hard_schemas_hold_up_nobody(server):
    """Eight of a tenant's schemas of thousands of properties are prepared while another tenant is answered."""
    hard = asks_for(json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}))
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(post(server, "/v1/chat/completions", hard)[0]))
               for _ in range(8)]
    for t in threads:
        t.start()
    begin, worst = time.monotonic(), 0
    while any(t.is_alive() for t in threads):
        asked = time.monotonic()
        answer = server.client("beta").chat.completions.create(**CHAT)
        assert "PARIS" in answer.choices[0].message.content
        worst = max(worst, time.monotonic() - asked)
    for t in threads:
        t.join()
    # refused for their time or their number, or ended for what a token of them takes
    assert len(statuses) == 8 and set(statuses) <= {200, 400, 503}, statuses
    assert worst < max(2, (time.monotonic() - begin) / 2), (worst, time.monotonic() - begin)
    assert server.http("/health")[0] == 200


def begin(s, key, length, body=b""):
    """A connection with a request of which the rest of the body is still to come."""
    c = socket.create_connection(("127.0.0.1", s.port), timeout=20)
    c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
              b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (key.encode(), length))
    try:
        c.sendall(body)
    except ConnectionError:
        pass  # refused meanwhile: the answer is there
    return c


def configured(folder, http):
    config = pathlib.Path(folder) / "realm.yaml"
    config.write_text(f"http: {{{http}}}\n")
    return ["--config", str(config)]


def is_told_to_wait(connection):
    head, _, text = connection.recv(4000).partition(b"\r\n\r\n")
    error = json.loads(text)["error"]
    assert head.startswith(b"HTTP/1.1 429 ") and b"\r\nretry-after: 1\r\n" in head, head
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded"), error


def is_served(s, *tenants):
    for tenant in tenants:
        assert "Paris" in s.client(tenant).chat.completions.create(**CHAT).choices[0].message.content


def test_large_bodies_hold_up_nobody():
    """One tenant fills its half of the room that there is for bodies and goes on slowly: its ordinary requests are read all
    the same, and others' large ones too."""
    with tempfile.TemporaryDirectory() as folder:
        with Server(tenants=("alpha", "beta"), args=configured(folder, "bodies_bytes: 4194304")) as s:
            large = json.dumps({**CHAT, "metadata": {}}) + " " * 1_000_000
            with begin(s, s.key["alpha"], 1_500_001, b" " * 1_500_000):
                wait_until(lambda: s.metric("realm_http_buffered_body_bytes") >= 1_500_000, what="most of a body is there")
                with begin(s, s.key["alpha"], 1_500_001, b" " * 1_500_000) as more:
                    is_told_to_wait(more)
                is_served(s, "beta", "alpha")
                assert post(s, "/v1/chat/completions", large, "beta")[0] == 200
            wait_until(lambda: s.metric("realm_http_buffered_body_bytes") == 0, what="the room is free again")
            assert post(s, "/v1/chat/completions", large)[0] == 200


def test_crowds_of_connections_hold_up_nobody():
    """Connections of nobody, idle or with half of a head, make room for who comes; requests of one tenant that do not end
    leave half of them to others, and its own are told to come again."""
    with tempfile.TemporaryDirectory() as folder:
        with Server(tenants=("alpha", "beta"), args=configured(folder, "connections: 40")) as s:
            for crowd in (b"", b"POST /v1/chat/comp", b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1",
                          b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"
                          b"Content-Length: 9000\r\n\r\n1"):
                nobody = [socket.create_connection(("127.0.0.1", s.port), timeout=20) for _ in range(60)]
                for c in nobody:
                    try:
                        c.sendall(crowd)
                    except ConnectionError:
                        pass  # it had to make room
                is_served(s, "alpha", "beta")
                for c in nobody:
                    c.close()
            held = [begin(s, s.key["alpha"], 100, b"{") for _ in range(20)]
            wait_until(lambda: s.metric("realm_http_exchanges") >= 20, what="twenty requests are being read")
            with begin(s, s.key["alpha"], 100) as more:
                is_told_to_wait(more)
            is_served(s, "beta")
            held.pop().close()
            wait_until(lambda: s.metric("realm_http_exchanges") < 21, what="one of them is gone")
            is_served(s, "alpha")
            assert s.metric("realm_http_connections_displaced_total") > 0
            for c in held:
                c.close()
