"""Two tenants, two programs in two sandboxes, one model, one question, at the same time, through the official client.

usage: demo.py REALM MODEL.gguf SHOUT.wasm REDACT.wasm
"""
import os
import re
import subprocess
import sys
import tempfile
import threading

import openai

QUESTION = "What is the capital of France? Answer in one sentence."


def main():
    realm, model, shout, redact = sys.argv[1:]
    with tempfile.TemporaryDirectory() as state:
        def run(*args):
            return subprocess.run([realm, *args, "--state", state], check=True, capture_output=True, text=True).stdout

        keys = {}
        for name, program in (("alpha", shout), ("beta", redact)):
            run("tenant", "create", name, "--program", program)
            keys[name] = run("key", "create", name).splitlines()[-1]
        server = subprocess.Popen(
            [realm, "serve", "--state", state, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
             "--model", f"smollm2={model}"], stderr=subprocess.PIPE, text=True)
        try:
            for line in server.stderr:
                if found := re.search(r"listening on (http://\S+)", line):
                    break
            else:
                sys.exit("the server did not start")
            threading.Thread(target=server.stderr.read, daemon=True).start()
            answers = {}

            def ask(name):
                client = openai.OpenAI(base_url=found[1] + "/v1", api_key=keys[name])
                stream = client.chat.completions.create(
                    model="smollm2", temperature=0, max_tokens=32, stream=True,
                    messages=[{"role": "user", "content": QUESTION}])
                answers[name] = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)

            threads = [threading.Thread(target=ask, args=(name,)) for name in keys]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            print(f"{QUESTION}")
            for name, program in (("alpha", shout), ("beta", redact)):
                print(f"  {name} ({os.path.basename(program)}): {answers.get(name)}")
            print(run("usage"), end="")
            if "PARIS" not in answers.get("alpha", ""):
                sys.exit("alpha's program should have answered PARIS")
        finally:
            server.terminate()
            server.wait(timeout=20)


main()
