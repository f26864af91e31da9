"""Every command of the command line: 0 with its result on stdout, 1 with one line on stderr, 2 for wrong usage with what is
wrong and the usage; --help and JSON where there is data. Wrong usage changes nothing."""
import json
import pathlib
import resource
import subprocess
import tempfile

from harness import GUEST, MODEL, REALM, guest

COMMANDS = ("serve", "run", "chat", "info", "models", "pipeline", "tenant", "key", "usage", "program", "bench")
NO_FILE = "/nonexistent/a\nb"  # an error is one line whatever a name is


def call(*args, stdin=""):
    return subprocess.run([REALM, *args], input=stdin, capture_output=True, text=True, timeout=60)


def does(*args):
    """Its stdout; of --output json what it says."""
    done = call(*args)
    assert done.returncode == 0, (args, done)
    return json.loads(done.stdout) if "json" in args else done.stdout


def fails(*args):
    done = call(*args)
    assert done.returncode == 1 and done.stdout == "", (args, done)
    assert done.stderr.startswith(f"realm: {args[0]}") and done.stderr.count("\n") == 1, (args, done.stderr)
    assert done.stderr.endswith("\n") and done.stderr[:-1].isprintable(), (args, done.stderr)
    return done.stderr


def is_wrong_usage(*args):
    done = call(*args)
    assert done.returncode == 2 and done.stdout == "", (args, done)
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"realm: {args[0]}: ") and first.isprintable(), (args, done.stderr)
    assert rest and rest[0].startswith(f"usage: realm {args[0]}"), (args, done.stderr)
    return first


def test_help_and_usage():
    done = call()
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("usage: realm COMMAND"), done
    for word in ("help", "--help", "-h"):
        assert all(f"\n  {c} " in does(word) for c in COMMANDS), word
    assert does("--version").startswith("realm ")
    done = call("no\nsuch")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith('realm: no command "no\\x0Asuch"\nusage: '), done
    for command in COMMANDS:
        done = call(command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith(f"usage: realm {command}") and "\n  --help " in done.stdout, done
        assert "--no-such" in is_wrong_usage(command, "--no-such")
        assert "--help" in is_wrong_usage(command, "--help=1")
    for command in ("models", "pipeline", "tenant", "key", "program"):
        is_wrong_usage(command)
        is_wrong_usage(command, "nosuch")
    with open("/dev/full", "w") as full:
        for args in (["--help"], ["--version"], ["serve", "--help"], ["models", "list"]):
            done = subprocess.run([REALM, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
            assert done.returncode == 1 and done.stderr.count("\n") == 1 and "standard output" in done.stderr, (args, done)


def test_tenants_keys_and_usage():
    with tempfile.TemporaryDirectory() as folder:
        at = ["--state", folder + "/state"]
        tenant = lambda *args: ("tenant", *args, *at)  # noqa: E731
        key = lambda *args: ("key", *args, *at)  # noqa: E731
        does(*tenant("create", "alpha", "--set", "weight=7", "--env", "A=1", "--arg", "x"))
        before = does(*tenant("list", "--output", "json"))
        assert [t["name"] for t in before] == ["alpha"] and before[0]["limits"]["weight"] == 7, before
        assert (before[0]["args"], before[0]["env"]) == (["x"], ["A=1"]), before
        assert json.loads(does(*tenant("show", "alpha", "--output=json"))) == before[0]
        for action in ("create", "set"):
            for setting in ("weight", "=1", "nosuch=1", "weight=", "weight=0", "weight=x", "weight=-1", "weight=1e3",
                            "weight=99999999999999999999", "we\night=1"):
                is_wrong_usage(*tenant(action, "beta" if action == "create" else "alpha", "--set", setting))
            is_wrong_usage(*tenant(action, "alpha", "--env", "=x"))
            is_wrong_usage(*tenant(action))
        is_wrong_usage(*tenant("create", "beta", "--env", "A"))
        is_wrong_usage(*tenant("create", "beta", "--no-args"))
        is_wrong_usage(*tenant("set", "alpha", "--no-args", "--arg", "x"))
        is_wrong_usage(*tenant("set", "alpha", "--program", "x", "--default-program"))
        is_wrong_usage(*tenant("delete", "alpha", "--set", "weight=1"))
        is_wrong_usage(*tenant("list", "--program", "x"))
        is_wrong_usage(*tenant("list", "alpha"))
        is_wrong_usage(*tenant("list", "--output", "xml"))
        fails(*tenant("create", "alpha"))
        fails(*tenant("create", "a b"))
        fails(*tenant("create", "beta", "--program", NO_FILE))
        fails(*tenant("create", "beta", "--program", MODEL))
        for action in ("show", "set", "delete"):
            assert '"no\\x0Asuch"' in fails(*tenant(action, "no\nsuch"))
        assert does(*tenant("list", "--output", "json")) == before  # nothing of all this has changed anything

        secret = does(*key("create", "alpha")).splitlines()[-1]
        made = does(*key("create", "alpha", "--expires", "1d", "--output", "json"))
        admin = does(*key("create", "--admin", "--output", "json"))
        assert made["tenant"] == "alpha" and made["expires"] and made["key"] and admin["admin"], (made, admin)
        assert len(does(*key("list", "--output", "json"))) == 3
        for args in (("create",), ("create", "--admin", "alpha"), ("create", "alpha", "--expires", "soon"), ("revoke",),
                     *(("create", "alpha", "--expires", day) for day in ("2020-01-01", "2027-02-30", "2027-13-01", "0d")),
                     ("list", "--admin"), ("list", "--expires", "1d"), ("revoke", "x", "--admin"), ("list", "x")):
            is_wrong_usage(*key(*args))
        with open("/dev/full", "w") as full:  # a key that nobody was shown is none
            assert subprocess.run([REALM, *key("create", "alpha")], stdout=full, capture_output=False, timeout=60,
                                  stderr=subprocess.DEVNULL).returncode == 1
        assert [k["revoked"] for k in does(*key("list", "--output", "json"))].count(True) == 1
        fails(*key("create", "nosuch"))
        fails(*key("revoke", "nosuch"))
        does(*key("revoke", secret))
        assert [k["revoked"] for k in does(*key("list", "--output", "json"))].count(True) == 2

        fields = {"tenant", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "aborted_requests"}
        assert fields <= set(does("usage", "--output", "json", *at)[0])
        assert {"prompt_tokens", "completion_tokens"} <= set(does("usage", "--engine", "--output", "json", *at))
        assert "alpha" in does("usage", "--tenant", "alpha", "--since", "2026-01-01", *at)
        for args in (["--since", "yesterday"], ["--since", "2026-02-30"], ["--since", "9" * 20], ["--engine", "--tenant", "alpha"], ["x"]):
            is_wrong_usage("usage", *args, *at)
        fails("usage", "--tenant", "nosuch", *at)
        does(*tenant("delete", "alpha"))
        assert does(*tenant("list", "--output", "json")) == []
        assert fails("tenant", "list", "--state", "/dev/null").count("/dev/null") == 1
        assert "empty" in fails("tenant", "list", "--state", "")
        # a file that may not grow: said with its reason, not a signal
        done = subprocess.run([REALM, "tenant", "create", "x", *at], capture_output=True, text=True, timeout=60,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done


def test_files_and_models():
    info = does("info", "--output", "json", MODEL)
    assert info["architecture"] == "llama", info
    assert "llama" in does("info", MODEL)
    is_wrong_usage("info")
    is_wrong_usage("info", MODEL, MODEL)
    wasm = str(GUEST / "shout.wasm")
    assert does("program", "check", wasm, "--output", "json")["imports"]
    is_wrong_usage("program", "check")
    for path in (NO_FILE, "/tmp", "/dev/null", __file__):
        fails("info", path)
        fails("program", "check", path)
    with tempfile.TemporaryDirectory() as folder:
        at = ["--models-dir", folder]
        does("models", "pull", "tiny", "--from", MODEL, *at)
        listed = {m["name"]: m for m in does("models", "list", "--output", "json", *at)}
        assert listed["tiny"]["state"] == "installed", listed
        assert does("models", "remove", "tiny", "--output", "json", *at)["name"] == "tiny"
        for args in (("pull",), ("remove",), ("list", "x"), ("list", "--from", MODEL), ("pull", "x", "--sha256", "0" * 64),
                     ("pull", "x", "--from", "https://host.invalid/x", "--sha256", "abc")):
            is_wrong_usage("models", *args, *at)
        for args in (("pull", "nosuch"), ("pull", "../x"), ("pull", "x", "--from", NO_FILE), ("remove", "nosuch"),
                     ("pull", "x", "--from", __file__)):
            fails("models", *args, *at)


def test_running():
    assert does("run", "--model", MODEL, "--max-tokens", "4", "--raw", "One two three").strip()
    done = call("run", "--model", MODEL, "--max-tokens", "4", stdin="Hello")
    assert done.returncode == 0 and done.stdout.strip(), done
    for command in ("run", "chat"):
        for args in (["--temperature", "x"], ["--temperature", "-1"], ["--temperature", "nan"], ["--max-tokens", "0"],
                     ["--seed", "-1"], ["--threads", "0"], ["--weight-budget", "lots"], ["--model"], ["one", "two"]):
            is_wrong_usage(command, *args)
        prompt = ["Hi"] if command == "run" else []  # a conversation reads what is said from its input
        assert "/nonexistent/" in fails(command, "--model", NO_FILE, *prompt)
        assert '"nosuch"' in fails(command, "--model", "nosuch", "--models-dir", "/nonexistent", *prompt)
        for program in (NO_FILE, __file__):
            assert program.splitlines()[0] in fails(command, "--model", MODEL, "--program", program, *prompt)
        for arg in ("a", "a=", "=1", "a=x", "a=1 2", "a=1,\"b\":2", "bos_token=1", "messages=[]"):
            assert arg in is_wrong_usage(command, "--template-arg", arg, "Hi")
        is_wrong_usage(command, "--template-arg", "a=1", "--template-arg", "b=1", "--template-arg", "a=2", "Hi")
        is_wrong_usage(command, *(word for i in range(33) for word in ("--template-arg", f"a{i}=0")))
    is_wrong_usage("chat", "--raw")
    is_wrong_usage("run", "--raw", "--template-arg", "a=1", "Hi")
    fails("run", "--model", MODEL, "")
    for args in ([], ["--model", MODEL, "--batch", "2"], ["--model", MODEL, "--depth", "2"], ["--model", MODEL, "--gen", "0"]):
        is_wrong_usage("bench", *args)
    fails("bench", "--model", NO_FILE)
    rows = does("bench", "--model", MODEL, "--prompt", "4", "--gen", "2", "--repeat", "1", "--output", "json")
    assert [set(r) >= {"test", "n_prompt", "n_gen", "depth", "batch", "tokens_per_second", "samples"} for r in rows] == [True] * 2
    for args in (["check"], ["run"], ["check", "x", "--input", "a=b"], ["run", "x", "--input", "a"],
                 ["run", "x", "--model", "a"], ["run", "x", "--threads", "0"]):
        is_wrong_usage("pipeline", *args)
    fails("pipeline", "check", NO_FILE)
    fails("pipeline", "run", NO_FILE)
    fails("pipeline", "run", __file__)


def test_template_arguments():
    """A model whose template has two variables, and a program that answers with the prompt that was made of it."""
    was = b"named SmolLM, trained by Hugging Face"
    now = b"' ~ (who or 1) ~ (kind or {}).a".ljust(len(was) - 4) + b" ~ '"
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "asks.gguf"
        data = pathlib.Path(MODEL).read_bytes()
        assert data.count(was) == 1
        model.write_bytes(data.replace(was, now))
        ask = ["--model", str(model), "--program", str(guest("given_prompt"))]
        shown = lambda *args: does("run", *ask, *args, "Hi").split("<|im_end|>")[0].split("assistant ")[1]  # noqa: E731
        assert shown() == "1"
        assert shown("--template-arg", "who=0") == "1"
        assert shown("--template-arg", 'who="a=\\u00e9"', "--template-arg=kind={\"a\": [true]}") == "a=\u00e9[True]"
        done = call("chat", *ask, "--template-arg", "who=7", stdin="Hi\nHi\n")
        assert done.returncode == 0 and done.stdout.count("assistant 7<|im_end|>") >= 2, done


def test_serving():
    with tempfile.TemporaryDirectory() as folder:
        state = pathlib.Path(folder) / "state"
        at = ["--state", str(state)]
        for option in ("--listen", "--admin-listen"):
            for address in ("nowhere", "", ":", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:99999", "127.0.0.1:x", "::1:80",
                            "[]:80", "a\nb", "x" * 200 + ":80"):
                assert option in is_wrong_usage("serve", option, address, *at), address
        for args in (["--listen"], ["--threads", "0"], ["--threads", "many"], ["extra"], ["--log-level", "loud"],
                     ["--kv-bytes", "lots"], ["--model", ""], ["--model", "=x"], ["--model", "x="], ["--model", "x" * 129 + "=y"]):
            is_wrong_usage("serve", *args, *at)
        assert not state.exists()  # nothing was begun
        fails("serve", "--config", NO_FILE, *at)
        fails("serve", "--model", "nosuch", "--models-dir", "/nonexistent", *at)
        done = call("serve", "--listen", "192.0.2.1:1", "--admin-listen", "off", *at)  # not this machine's
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and last.startswith("realm: serve: 192.0.2.1:1: "), done
        few = subprocess.run(["prlimit", "--nofile=600", REALM, "serve", "--listen", "192.0.2.1:1", "--admin-listen", "off", *at],
                             capture_output=True, text=True, timeout=60)
        assert "\nrealm: at most 344 connections: 600 files may be open\n" in few.stderr, few
