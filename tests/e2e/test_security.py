"""Keys, tenancy and the browser next door: what a tenant or a stranger tries from outside."""
import json
import threading
import time

from harness import CAPITAL, GUEST, Server, realm

SHORT = dict(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=16)
ADMIN_PATHS = ("/admin/v1/usage", "/admin/v1/models")


def head(answer):
    return answer.split(b"\r\n\r\n")[0].lower()


def test_sql_through_the_key():
    with Server(tenants=("alpha", "beta")) as s:
        before = realm("tenant", "list", "--output", "json", state=s.state)
        for key in ("' OR '1'='1", "' OR 1=1 --", "'; DROP TABLE api_key; --", "\" OR \"\"=\"", "alpha' UNION SELECT 1--",
                    "x' OR admin=1 --", "%", "*", "rk_" + "%" * 64, "rk_" + "0" * 64, "rk_" + "A" * 5000):
            for body in (None, SHORT):
                status, fields, answer = s.http("/v1/models" if body is None else "/v1/chat/completions", body, key)
                assert status == 401 and answer["error"]["code"] == "invalid_api_key", (key, status, answer)
            for path in ADMIN_PATHS:
                assert s.http(path, key=key, admin=True)[0] == 401, key
        assert realm("tenant", "list", "--output", "json", state=s.state) == before
        for t in ("alpha", "beta"):
            assert s.http("/v1/models", key=s.key[t])[0] == 200
        assert all(u["requests"] == 0 for u in s.usage())


def test_a_key_grants_no_more_than_it_is():
    with Server(tenants=("alpha", "beta"), limits={"alpha": {"requests_per_minute": 1000}}) as s:
        s.http("/v1/chat/completions", SHORT, s.key["beta"])
        # admin endpoints are not on the tenants' listener, and no tenant's key opens them where they are
        for path in ADMIN_PATHS:
            assert s.http(path, key=s.key["alpha"])[0] == 404
            assert s.http(path, key=s.admin_key)[0] == 404
            assert s.http(path, key=s.key["alpha"], admin=True)[0] == 403
            assert s.http(path, admin=True)[0] == 401
            assert s.http(path, key=s.admin_key, admin=True)[0] == 200
        assert s.http("/metrics", key=s.key["alpha"])[0] == 403
        # an admin key is nobody's: it computes nothing
        assert s.http("/v1/chat/completions", SHORT, s.admin_key)[0] in (401, 403)
        # what a body or a header claims about tenant, key or limits counts for nothing
        more = dict(tenant="beta", admin=True, user="beta", weight=10000, requests_per_minute=10**9, api_key=s.key["beta"],
                    limits={"requests_per_minute": 10**9, "read_weights": 1})
        status, fields, answer = s.http("/v1/chat/completions", {**SHORT, **more}, s.key["alpha"])
        assert status in (200, 400)
        names = ("x-tenant", "x-realm-tenant", "x-forwarded-user", "openai-organization", "x-api-key", "cookie")
        claims = "".join(f"{n}: {s.key['beta'] if 'key' in n else 'beta'}\r\n" for n in names)
        answer = s.raw(f"GET /v1/usage HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {s.key['alpha']}\r\n"
                       f"{claims}Connection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200") and b"beta" not in answer
        # and a tenant reads its own usage alone, whatever it asks for
        for query in ("?tenant=beta", "?tenant=*", "?since=0&tenant=beta"):
            status, _, answer = s.http("/v1/usage" + query, key=s.key["alpha"])
            assert status in (200, 400) and "beta" not in json.dumps(answer), answer
        # two Authorization headers are no way around either
        answer = s.raw(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer nonsense-nonsense\r\n"
                       f"Authorization: Bearer {s.key['alpha']}\r\nConnection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"400", b"401"), answer


def test_foreign_hosts():
    """DNS rebinding: a web page that points its own name at this machine reaches nothing, on either listener."""
    with Server() as s:
        public = s.port
        for port, path in ((s.port, "/health"), (s.port, "/v1/models"), (s.admin, "/metrics"), (s.admin, "/health")):
            s.port = port
            for host, status in ((f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), ("LOCALHOST", 200),
                                 (f"[::1]:{port}", 200), ("evil.example", 403), (f"evil.example:{port}", 403),
                                 ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
                                 ("evil-localhost", 403), ("localhost@evil.example", 400), ("", 403)):
                key = f"Authorization: Bearer {s.key['alpha']}\r\n" if path.startswith("/v1") else ""
                answer = s.raw(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}Connection: close\r\n\r\n".encode())
                got = int(answer.split()[1])
                assert got == status or (status == 403 and got == 400), (path, host, answer)
                if status != 200:
                    assert b"realm_" not in answer and b"smollm2" not in answer
        s.port = public


def test_web_pages_have_no_more_than_a_key():
    """Pages of any origin may ask on the public listener, with a key like anybody: no answer lets a browser add what it
    keeps for this server, none names an origin, and without the key there is nothing. The admin listener is for no page."""
    with Server() as s:
        public = s.port
        for origin in ("https://evil.example", "null", "http://localhost:1234"):
            for port in (public, s.admin):
                s.port = port
                for method, path in (("OPTIONS", "/health"), ("OPTIONS", "/v1/models"), ("OPTIONS", "/v1/chat/completions"),
                                     ("OPTIONS", "/admin/v1/usage"), ("GET", "/health"), ("GET", "/v1/models"),
                                     ("GET", "/metrics"), ("GET", "/admin/v1/usage")):
                    answer = s.raw(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n"
                                   "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n"
                                   "Connection: close\r\n\r\n".encode())
                    fields, status = head(answer), int(answer.split()[1])
                    assert b"access-control-allow-credentials" not in fields and origin.encode() not in fields, answer
                    if port == public:
                        assert fields.count(b"access-control-allow-origin") == fields.count(b"allow-origin: *") <= 1, answer
                        assert b"smollm2" not in answer and b"alpha" not in answer and b"realm_" not in answer
                        assert status == 401 or path in ("/health", "/admin/v1/usage") or method == "OPTIONS", answer
                    else:
                        assert b"access-control-" not in fields, answer
                        assert method == "GET" or status >= 400, answer
            s.port = public
        # what a form can send without asking: a body that claims to be plain text, no key
        body = json.dumps(SHORT).encode()
        answer = s.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
                       b"Content-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert answer.startswith(b"HTTP/1.1 401"), answer


def test_programs_are_swapped_under_load():
    """A load of plain and streamed requests while the tenant's program is changed again and again: none fails, and every
    answer is wholly one program's."""
    plain, loud = GUEST / "redact.wasm", GUEST / "shout.wasm"
    with Server(programs={"alpha": plain}) as s:
        want = {s.client().chat.completions.create(**SHORT).choices[0].message.content}
        realm("tenant", "set", "alpha", "--program", str(loud), state=s.state)
        end = time.monotonic() + 20
        while len(want) < 2:  # it takes effect by itself
            assert time.monotonic() < end, "the new program is not used"
            want.add(s.client().chat.completions.create(**SHORT).choices[0].message.content)
        assert any("SHOUTED BY REALM" in w for w in want)
        answers, failures, stop = [], [], threading.Event()

        def load(stream):
            c = s.client()
            while not stop.is_set():
                try:
                    if stream:
                        pieces = c.chat.completions.create(**SHORT, stream=True)
                        answers.append("".join(p.choices[0].delta.content or "" for p in pieces if p.choices))
                    else:
                        answers.append(c.chat.completions.create(**SHORT).choices[0].message.content)
                except Exception as e:  # noqa: BLE001 - whatever it is, it is a failure of this test
                    failures.append(e)
                    return

        threads = [threading.Thread(target=load, args=(i % 2 == 0,)) for i in range(6)]
        for t in threads:
            t.start()
        for i in range(6):
            realm("tenant", "set", "alpha", "--program", str(plain if i % 2 == 0 else loud), state=s.state)
            seen = len(answers)
            end = time.monotonic() + 20
            while len(answers) < seen + 9 and not failures and time.monotonic() < end:
                time.sleep(0.02)
        stop.set()
        for t in threads:
            t.join()
        assert not failures, failures
        assert set(answers) == want, (set(answers), want)
        assert len(answers) >= 40
        u = s.usage()[0]
        assert u["aborted_requests"] == 0 and u["requests"] >= len(answers)


def test_texts_and_keys_stay_out_of_logs_and_files():
    """Neither what a client says, nor what it is answered, nor its key is in the log, the metrics or the state folder, the
    log at its most talkative; a refused request's bytes are not either."""
    with Server(tenants=("alpha",), args=("--log-level", "debug")) as s:
        secrets = ["xylophone-of-aunt-Mathilda", "zeppelin", s.key["alpha"], s.admin_key, "rk_not_a_key_but_a_secret"]
        say = dict(SHORT, messages=[{"role": "user", "content": f"Repeat: {secrets[0]}. {secrets[1]}"}], user=secrets[0])
        answer = s.http("/v1/chat/completions", say, s.key["alpha"])[2]["choices"][0]["message"]["content"]
        assert len(answer) > 12
        for stream in s.client().chat.completions.create(**{**say, "stream": True}):
            pass
        s.http("/v1/chat/completions", {**say, secrets[1]: secrets[0], "temperature": 9}, s.key["alpha"])
        s.http("/v1/chat/completions", {**say, "model": secrets[0]}, s.key["alpha"])
        s.http("/v1/chat/completions", say, secrets[-1])
        s.raw(b"GET /" + secrets[0].encode() + b"?" + secrets[1].encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        metrics = s.http("/metrics", admin=True)[2]
        assert s.stop() == 0
        log = "\n".join(s.log)
        for secret in (*secrets, answer):
            assert secret not in log and secret not in metrics, secret
            for file in s.state.rglob("*"):
                if file.is_file():
                    assert secret.encode() not in file.read_bytes(), (file, secret)
