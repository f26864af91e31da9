"""Modules exactly as stock toolchains make them (tests/programs), as tenants' programs of a running server."""
import json
import os
import pathlib
import subprocess

import openai

from harness import BUILD, CAPITAL, Server, Skip, raises, realm, wait_until

SOURCES = pathlib.Path(__file__).parent.parent / "programs"
OUT = BUILD / "programs"
ASK = dict(model="smollm2", messages=CAPITAL, max_tokens=4)


def build(name, *command, cwd=None, env=None):
    """The module that a compiler makes where its command says OUT."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = (OUT / name).resolve()
    done = subprocess.run([str(file) if word == "OUT" else word for word in command], cwd=cwd,
                          env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return file


def tool(name):
    """What tools/find-... prints, as words; None when it finds nothing."""
    done = subprocess.run([SOURCES.parent.parent / "tools" / name], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else None


def find_go():
    go = tool("find-go")
    if not go:
        raise Skip("no Go 1.24 or newer: run tools/setup --test")
    return go[0]


def find_rust():
    """One with its whole standard library for WASI: Debian's (1.63) has it, but no linker of today takes its archives."""
    command = tool("find-rust-wasm")
    rustc = command[:command.index("--target")] if command else ["rustc"]
    target = ["--target", "wasm32-wasip1"]
    try:
        libdir = subprocess.run([*rustc, "--print", "target-libdir", *target], capture_output=True, text=True)
        if libdir.returncode == 0 and list(pathlib.Path(libdir.stdout.strip()).glob("libstd-*.rlib")):
            return [*rustc, *target]
    except OSError:
        pass
    raise Skip("no rustc with the standard library of wasm32-wasip1 (rustup target add wasm32-wasip1)")


def check_command(name, module, says):
    """The kind, arguments and environment, an answer, a failure that the client hears of."""
    assert '"kind":"command"' in realm("program", "check", str(module), "--output", "json")
    server = Server(tenants=(name,), programs={name: module})
    realm("tenant", "set", name, "--arg", "fine", "--env", "GREETING=hello", state=server.state)
    with server as s:
        ask = lambda: s.client(name).chat.completions.create(**ASK).choices[0].message.content
        assert ask() == says
        realm("tenant", "set", name, "--arg", "fail", state=s.state)

        def fails():
            try:
                return not ask()
            except openai.APIError as e:
                assert "exited with code 3" in str(e), e
                return True

        wait_until(fails, what="the new arguments are used")


def test_go_command():
    module = build("go_command.wasm", find_go(), "build", "-o", "OUT", ".", cwd=SOURCES / "go_command",
                   env={"GOOS": "wasip1", "GOARCH": "wasm"})
    check_command("go", module, 'args=["program" "fine"] env="hello" answer=42 slept=true files=false')


def test_go_reactor():
    module = build("go_reactor.wasm", find_go(), "build", "-buildmode=c-shared", "-o", "OUT", ".", cwd=SOURCES / "go_reactor",
                   env={"GOOS": "wasip1", "GOARCH": "wasm"})
    assert '"reactor":true' in realm("program", "check", str(module), "--output", "json")
    with Server(tenants=("go",), programs={"go": module}) as s:
        assert s.client("go").chat.completions.create(**ASK).choices[0].message.content == "reactor: MADE BY _INITIALIZE"


def test_rust_command():
    module = build("rust.wasm", *find_rust(), "-O", "--edition", "2021", str(SOURCES / "wasi.rs"), "-o", "OUT")
    check_command("rust", module, 'args=["program", "fine"] env="hello" answer=42 slept=true files=false')


def test_c_command():
    module = build("c.wasm", "clang-19", "--target=wasm32-wasi", "-O2", str(SOURCES / "wasi.c"), "-o", "OUT")
    check_command("c", module, "args=2,program,fine env=hello slept=1 files=0 eof=1")


def test_wasi_nn():
    module = build("nn.wasm", "clang-19", "--target=wasm32-wasi", "-O2", str(SOURCES / "nn.c"), "-o", "OUT")
    with Server(tenants=("nn",), programs={"nn": module}) as s:
        answer = s.client("nn").chat.completions.create(model="smollm2", messages=CAPITAL, max_tokens=64)
        text, numbers, same = answer.choices[0].message.content.split("\n")
        assert "Paris" in text, text
        numbers = json.loads(numbers)
        assert 10 < numbers["input_tokens"] < 60 and 3 < numbers["output_tokens"] <= 24, numbers
        assert same == "the same token by token", same
        assert answer.usage.completion_tokens >= 2 * numbers["output_tokens"] - 1
        wait_until(lambda: s.usage("--tenant", "nn")[0]["completion_tokens"] == answer.usage.completion_tokens,
                   what="the ledger has what wasi-nn made")


def test_assemblyscript():
    asc = pathlib.Path(os.environ["NODE_PATH"]) / ".bin" / "asc"
    module = build("as.wasm", str(asc), "stock.ts", "-O", "-o", "OUT", cwd=SOURCES)
    with Server(tenants=("as",), programs={"as": module}) as s:
        answer = s.client("as").chat.completions.create(**ASK)
        assert answer.choices[0].message.content == \
            "kept=19951996199719981999 answer=42 random=true year=true"
        e = raises(openai.APIError, lambda: s.client("as").chat.completions.create(**ASK, user="fail"))
        assert "asked to, at stock.ts:" in str(e), e
