"""Does what a document says and compares what happens with what it says happens.

usage: console.py [--write] BUILD ID=MODEL.gguf[,ID=MODEL.gguf...] FILE.md...

In a ```console block a line that starts with "$ " is a command (lines that start with "> " continue it), and the lines
behind it are its output, stdout and stderr together, byte for byte; a line "..." stands for any number of lines, and
<words> inside a line for anything. A block such as ```c hello.c is a file of that name. Each document gets an empty
folder and one shell, in which `realm` is the one of BUILD, the models are in the models folder, REALM is the checkout, and the
guest programs of BUILD lie at hand; ports 8080 and 8081 are free ones. --write puts what happened into the document, in blocks without "..." and <words>.
"""
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

MARK = "\x01console\x01"
BLOCK = re.compile(r"^(?P<fence>`{3,})(?P<kind>\S+)(?: (?P<name>\S+))?\n(?P<body>.*?)^(?P=fence)$", re.M | re.S)


def commands_of(block):
    """[command, expected output] in order."""
    out = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            out.append([line[2:], ""])
        elif line.startswith("> ") and out and not out[-1][1]:
            out[-1][0] += line[2:]
        elif out:
            out[-1][1] += line
        else:
            raise ValueError(f"output in front of the first command: {line!r}")
    return out


def matches(expected, got):
    if got and not got.endswith("\n"):
        got += "\n"
    pattern = ""
    for line in expected.splitlines(keepends=True):
        if line == "...\n":
            pattern += r"(?:.*\n)*"
        else:
            pattern += "".join(r".+?" if re.fullmatch(r"<[a-z ]+>", p) else re.escape(p)
                               for p in re.split(r"(<[a-z ]+>)", line))
    return re.fullmatch(pattern, got) is not None


def environment(build, given, home):
    """What all documents share: a models folder with models (which may not be links to elsewhere)."""
    models = home / "realm" / "models"
    models.mkdir(parents=True)
    for id, path in (one.split("=") for one in given.split(",")):
        try:
            os.link(path, models / f"{id}.gguf")
        except OSError:
            shutil.copyfile(path, models / f"{id}.gguf")
    return {**os.environ, "PATH": f"{build}:{os.environ['PATH']}", "REALM": str(pathlib.Path.cwd()),
            "XDG_DATA_HOME": str(home)}


class Shell:
    """One bash for a whole document, so that `cd`, variables and what runs in the background last."""

    def __init__(self, env, cwd):
        self.process = subprocess.Popen(["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=env, cwd=cwd)
        self.run("set -o pipefail")

    def run(self, command):
        self.process.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '{MARK}%d\\n' $?\n".encode())
        self.process.stdin.flush()
        got = b""
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(f"the shell ended:\n{got.decode(errors='replace')}")
            at = line.find(MARK.encode())
            if at >= 0:
                return (got + line[:at]).decode(), int(line[at + len(MARK):])
            got += line

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def free_ports(command, ports):
    """`realm serve` and those who ask it, on ports that nobody else has."""
    command = re.sub(r"(realm serve )", rf"\1--listen 127.0.0.1:{ports[0]} --admin-listen 127.0.0.1:{ports[1]} ", command)
    return command.replace("127.0.0.1:8080", f"127.0.0.1:{ports[0]}").replace("127.0.0.1:8081", f"127.0.0.1:{ports[1]}")


def two_ports():
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


def check(path, build, env, write):
    text = path.read_text()
    failed = ran = 0
    ports = two_ports()
    with tempfile.TemporaryDirectory(prefix="realm-console-") as name:
        work = pathlib.Path(name)
        for wasm in (build / "guest").glob("*.wasm"):
            (work / wasm.name).symlink_to(wasm)
        shell = Shell({**env, "XDG_STATE_HOME": str(work / "state")}, work)
        out, done = "", 0
        for m in BLOCK.finditer(text):
            kind, filename, body = m["kind"], m["name"], m["body"]
            out += text[done:m.start("body")]
            done = m.start("body")
            if filename:
                (work / filename).unlink(missing_ok=True)
                (work / filename).write_text(body)
            if kind != "console":
                continue
            for command, expected in commands_of(body):
                ran += 1
                got, status = shell.run(free_ports(command, ports))
                fixed = "..." in expected.splitlines() or re.search(r"<[a-z ]+>", expected)
                out += "$ " + command.replace("\n", "\n> ")[:-2] if command.count("\n") > 1 else "$ " + command
                out += expected if fixed or not write else got + ("\n" if got and not got.endswith("\n") else "")
                if not matches(expected, got) and (fixed or not write):
                    failed += 1
                    line = text.count("\n", 0, m.start()) + 1
                    print(f"{path}:{line}: $ {command}said:\n{got}(status {status})\nnot:\n{expected}", flush=True)
            done = m.end("body")
        shell.close()
        out += text[done:]
    if write and out != text:
        path.write_text(out)
    return ran, failed


def main(args):
    write = args[0] == "--write"
    build, given, *files = args[write:]
    build = pathlib.Path(build).resolve()
    ran = failed = 0
    with tempfile.TemporaryDirectory(prefix="realm-console-") as home:
        env = environment(build, given, pathlib.Path(home))
        for name in files:
            n, bad = check(pathlib.Path(name), build, env, write)
            if not n:
                print(f"{name}: no commands in it")
                bad = 1
            ran += n
            failed += bad
    print(f"{ran - failed} passed, {failed} failed")
    return 1 if failed or not ran else 0


signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # folders go, also when time is up
sys.exit(main(sys.argv[1:]))
