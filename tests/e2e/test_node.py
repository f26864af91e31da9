"""The official Node client: node/client.cjs does the asking, one line per check."""
import os
import pathlib
import subprocess


def test_node_client(server):
    script = pathlib.Path(__file__).parent / "node" / "client.cjs"
    env = dict(os.environ, BASE_URL=server.url + "/v1", ALPHA=server.key["alpha"], BETA=server.key["beta"])
    done = subprocess.run(["node", str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") >= 9, done.stdout
