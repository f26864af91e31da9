"""`make serve`, from where everything is built: what it prints is what a newcomer runs."""
import json
import pathlib
import re
import signal
import socket
import subprocess
import tempfile

from harness import BUILD, wait_until

ROOT = pathlib.Path(__file__).parents[2]


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def begin(state, address):
    return subprocess.Popen(["tools/serve", str(BUILD), str(state), address, "off"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def announced(process):
    """The line to try and two more keys, when they stand there."""
    text = ""
    while not text.endswith("Ctrl-C stops it.\n"):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        text += line
    return re.search(r"^  (curl .*)$", text, re.M)[1], re.findall(r"^  \w+ .*(rk_\w+)$", text, re.M)


def answer(line):
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return json.loads(done.stdout)["choices"][0]["message"]["content"]


def is_refused(state, address):
    second = begin(state, address)
    out, err = second.communicate(timeout=20)  # which is when its last process has ended
    assert second.returncode == 1 and out == "" and address in err.splitlines()[-1], (out, err)


def test_the_printed_line_answers():
    with tempfile.TemporaryDirectory() as folder:
        state, address = pathlib.Path(folder) / "state", free_address()
        before = None
        for _ in range(2):  # keys stay from one start to the next
            first = begin(state, address)
            try:
                line, others = announced(first)
                assert address in line and before in (None, line), (before, line)
                before = line
                assert "Paris" in answer(line)
                mine = re.search(r"rk_\w+", line)[0]
                shouted, redacted = (answer(line.replace(mine, key)) for key in others)
                assert "PARIS" in shouted and "*****" in redacted, (shouted, redacted)
                is_refused(state, address)  # by who runs; nothing is promised that another server would have to keep
                is_refused(pathlib.Path(folder) / "other", address)
                assert "Paris" in answer(line)
            finally:
                first.send_signal(signal.SIGINT)
                out, err = first.communicate(timeout=40)
            assert first.returncode == 0 and out == "", (first.returncode, out, err)
        # an address that somebody else has, who does not speak HTTP
        with socket.create_server(("127.0.0.1", 0)) as other:
            mute = "127.0.0.1:%d" % other.getsockname()[1]
            is_refused(state, mute)
        wait_until(lambda: not subprocess.run(["pgrep", "-f", str(state)], capture_output=True).stdout, what="nobody is left")
