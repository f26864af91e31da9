"""The prefix cache as clients see it: `cached_tokens` in the usage and in the ledger."""
import pathlib
import tempfile

from harness import MODEL, Server, realm

PAGE = 32  # tokens of a KV page
PUBLISHED = "You are the clerk of a lending library. You know its opening hours, its shelves and its rules by heart, and " \
    "you answer politely, in short sentences, without ever inventing a book that the library does not have. "
PRIVATE = "The reader in front of you is called Ophelia; she owes the library four pounds and has lost her card twice, " \
    "which is a secret between her and the tenant who wrote this text, and nobody else's business at all. She reads about " \
    "ships, about the moons of Jupiter and about the history of bread, in that order, on Tuesdays and on Fridays. "


def chat(system, user):
    return dict(model="smollm2", temperature=0, max_tokens=8, messages=[{"role": "system", "content": system},
                                                                       {"role": "user", "content": user}])


def asked(s, tenant, request, **options):
    """(prompt tokens, of them cached, text)"""
    r = s.client(tenant).chat.completions.create(**request, **options)
    return r.usage.prompt_tokens, r.usage.prompt_tokens_details.cached_tokens, r.choices[0].message.content


def cached_in_ledger(s, tenant):
    return s.usage("--tenant", tenant)[0]["cached_tokens"]


def test_a_tenant_finds_its_own_prefix_and_nobody_elses():
    with Server(tenants=("alpha", "beta")) as s:
        request = chat(PRIVATE, "Hello.")
        prompt, cached, text = asked(s, "alpha", request)
        assert cached == 0 and prompt > 2 * PAGE
        assert asked(s, "beta", request) == (prompt, 0, text)  # what alpha computed is not there for beta
        whole_pages = (prompt - 1) // PAGE * PAGE
        assert asked(s, "alpha", request) == (prompt, whole_pages, text)
        assert asked(s, "beta", request) == (prompt, whole_pages, text)  # by now its own
        # another question after the same beginning; another beginning
        _, cached, _ = asked(s, "alpha", chat(PRIVATE, "Where are the maps, and who drew them?"))
        assert PAGE <= cached <= whole_pages and cached % PAGE == 0, cached
        assert asked(s, "alpha", chat("X" + PRIVATE, "Hello."))[1] == 0
        # the sum in the ledger; a stream says the same
        chunks = list(s.client().chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole_pages
        assert cached_in_ledger(s, "alpha") == 2 * whole_pages + cached
        assert cached_in_ledger(s, "beta") == whole_pages
        assert s.metric("realm_cached_tokens_total") == 3 * whole_pages + cached
        # and a new tenant of the name of a deleted one is another
        realm("tenant", "delete", "beta", state=s.state)
        realm("tenant", "create", "beta", state=s.state)
        s.key["beta"] = realm("key", "create", "beta", state=s.state).strip().splitlines()[-1]
        assert asked(s, "beta", request) == (prompt, 0, text)


def test_published_prefixes():
    """What the operator publishes is found by everybody from the first request on; what tenants write behind it is their
    own."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "realm.yaml"
        text = "<|im_start|>system\n" + PUBLISHED
        config.write_text(f"models:\n  - id: smollm2\n    file: {MODEL}\n    prefixes: [{quoted(text)}]\n")
        with Server(tenants=("alpha", "beta"), args=["--config", str(config)], model=None) as s, \
                Server(tenants=("alpha",)) as plain:
            n = len(s.http("/tokenize", {"content": text, "parse_special": True}, s.key["alpha"])[2]["tokens"])
            published = n // PAGE * PAGE
            assert published >= PAGE
            request = chat(PUBLISHED + PRIVATE, "Hello.")
            prompt, cached, answer = asked(plain, "alpha", request)
            assert cached == 0
            whole_pages = (prompt - 1) // PAGE * PAGE
            for tenant in ("alpha", "beta"):
                assert asked(s, tenant, request) == (prompt, published, answer), tenant  # the first time
                assert asked(s, tenant, request) == (prompt, whole_pages, answer), tenant
            # a text that begins in another way has nothing of it
            assert asked(s, "alpha", chat("No. " + PUBLISHED, "Hello."))[1] == 0
            assert cached_in_ledger(s, "alpha") == cached_in_ledger(s, "beta") == published + whole_pages
            # computed by nobody: neither the ledger nor the engine's counters have the publishing itself
            engine = s.usage("--engine")
            engine = engine[0] if isinstance(engine, list) else engine
            assert engine["prompt_tokens"] == sum(u["prompt_tokens"] for u in s.usage())
        short = f"models:\n  - id: m\n    file: {MODEL}\n    prefixes: [too short]\n"
        config.write_text(short)
        done = realm("serve", "--config", str(config), "--listen", "127.0.0.1:0", "--admin-listen", "off", state=folder + "/s",
                     check=False)
        assert done.returncode == 1 and "prefix 1" in done.stderr and "no full page" in done.stderr, done.stderr


def test_prefixes_under_pressure():
    """A pool that is too small for everybody: a tenant's cached pages give way, answers stay the same, published pages
    stay."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "realm.yaml"
        text = "<|im_start|>system\n" + PUBLISHED
        config.write_text(f"models:\n  - id: smollm2\n    file: {MODEL}\n    prefixes: [{quoted(text)}]\n"
                          "engine: {kv_bytes: 24M}\n")
        with Server(tenants=("alpha", "beta"), args=["--config", str(config)], model=None) as s:
            pages = int(s.metric("realm_kv_pages"))
            assert pages * PAGE < 3000, pages
            request = chat(PUBLISHED + PRIVATE, "Hello.")
            prompt, published, answer = asked(s, "alpha", request)
            assert published >= PAGE and asked(s, "alpha", request)[1] > published
            for i in range(pages * PAGE // 600 + 1):
                s.client("beta").completions.create(model="smollm2", prompt=[200 + i] * 640, max_tokens=1)
            assert asked(s, "alpha", request) == (prompt, published, answer)
            assert s.metric("realm_kv_lost_total") == 0  # nothing that anybody held


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
