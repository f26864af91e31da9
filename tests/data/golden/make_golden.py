#!/usr/bin/env python3
"""Writes the golden greedy tokens of a model file as the reference implementation (llama.cpp) computes them.

    make_golden.py PEER_DIR MODEL.gguf > NAME.txt

PEER_DIR holds llama-server. Each prompt is tokenised by it, then continued greedily by TOKENS tokens from the ids
(temperature 0, no prompt cache, one slot). The output is text:

    # comment
    prompt NAME N        followed by one line of N ids
    tokens N             followed by N lines "id margin id32 margin32 logprob32": the greedy token, by how much its
                         log-probability exceeds the second best one's (before any sampling); and, after the same tokens,
                         the best one, its margin and its log-probability when the file's weights are widened to float32
                         and activations and KV are float32 throughout

Prompts are chosen so that no end token is the best one within TOKENS steps; one where it is stops the program.
"""
import json, pathlib, socket, subprocess, sys, tempfile, time, urllib.request

TOKENS = 48

PROSE = """The harbour woke before the town did. Ropes creaked, gulls argued over the first scraps, and the old crane on
the eastern quay turned its long neck towards the water as if it, too, had been waiting for the light. Marta had worked
there for thirty-one years. She knew the names of the boats and the names of the people who had owned them before, she
knew which of the bollards was loose, and she knew, by the colour of the sky behind the lighthouse, whether the ferry
would be late. This morning it would be late. She told the young man from the shipping office so, and he looked at his
papers, and at his watch, and at the flat grey sea, and did not believe her. By nine the fog had come in. It came as it
always came, low and without hurry, over the breakwater and between the masts, until the crane was a shadow and the
lighthouse only a sound. The young man put his papers away. He asked her how she had known, and she said that nobody
knows such things, that one only remembers them. They drank their coffee on the steps of the customs house. Somewhere
out on the water an engine slowed, and a bell answered it, and slowly, as if it were being drawn by an invisible hand,
the bow of the ferry came out of the white. There were eleven passengers. The last of them was a woman with a cello on
her back, who asked for the road to the conservatory, and whether it was far. It was not far, Marta said, but it was
steep, and she offered to carry the bow. """

REPORT = "".join(
    f"Entry {i}: station {chr(65 + i % 7)} reported {(i * 37) % 101} units at a temperature of {(i * 13) % 29} degrees; "
    f"the pump {'was replaced' if i % 5 == 0 else 'ran normally'}. " for i in range(1, 27))

CODE = """/* A stack of integers with a fixed capacity. */
#include <stdbool.h>
#include <stddef.h>

#define STACK_CAPACITY 64

struct stack {
    int items[STACK_CAPACITY];
    size_t count;
};

bool stack_push(struct stack *s, int value) {
    if (s->count == STACK_CAPACITY) return false;
    s->items[s->count++] = value;
    return true;
}

bool stack_pop(struct stack *s, int *value) {
"""

PROMPTS = [
    ("capital", "The capital of France is"),
    ("story", "Once upon a time, in a small village between two rivers,"),
    ("list", "Seven things to pack for a walk in the mountains:\n1. Water\n2. Bread\n3."),
    ("code", CODE),
    ("python", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n"),
    ("science", "Photosynthesis is the process by which plants"),
    ("french", "Le petit chat dort sur le fauteuil pendant que"),
    ("german", "Die Eisenbahn wurde im neunzehnten Jahrhundert"),
    ("numbers", "1, 1, 2, 3, 5, 8, 13, 21,"),
    ("letter", "Dear Ms. Okafor,\n\nThank you for your letter of the third of May. I am writing to tell you that"),
    ("unicode", "Москва — столица России. 東京は日本の首都です。 The capital of Japan is"),
    ("middle", PROSE[:1100]),
    ("long prose", PROSE + PROSE + "That evening, Marta"),
    ("long report", REPORT + "Summary: the station"),
    ("longer report", "".join(
        f"{i}. On day {i} the river stood at {(i * 17) % 83} cm and the weather was {('clear', 'wet', 'cold')[i % 3]}.\n"
        for i in range(1, 61))),
    ("long code", CODE + "    if (s->count == 0) return false;\n    *value = s->items[--s->count];\n    return true;\n}\n\n" +
     CODE.replace("stack", "pile").replace("STACK", "PILE") + "    if (s->count == 0) return false;\n"
     "    *value = s->items[--s->count];\n    return true;\n}\n\n" + CODE.replace("stack", "heap").replace("STACK", "HEAP")),
]


class Server:
    """llama-server on one model file; usable once constructed."""

    def __init__(self, peer, model, *options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process = subprocess.Popen(
            [peer / "llama-server", "-m", model, "--port", str(self.port), "-c", "4096", "--parallel", "1", "--no-warmup",
             *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                self.call("/health")
                break
            except OSError:
                time.sleep(0.2)

    def call(self, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        req = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(req, timeout=600) as r:
            return json.load(r)

    def complete(self, ids, n, cache):
        r = self.call("/completion", {"prompt": ids, "n_predict": n, "temperature": 0, "cache_prompt": cache,
                                      "n_probs": 5, "ignore_eos": True})
        return r["completion_probabilities"]

    def close(self):
        self.process.terminate()
        self.process.wait()


def margin(step):
    return step["top_logprobs"][0]["logprob"] - step["top_logprobs"][1]["logprob"]


def reference(peer, model):
    """[(name, prompt ids, steps)] as the reference runs the file."""
    server, out = Server(peer, model, "-ub", "512", "-fa", "on"), []
    try:
        for name, text in PROMPTS:
            ids = server.call("/tokenize", {"content": " ".join(text.split("\n")) if name.endswith("prose") else text,
                                            "add_special": True})["tokens"]
            steps = server.complete(ids, TOKENS, False)
            if len(steps) != TOKENS:
                sys.exit(f"{name}: {len(steps)} tokens")
            for step in steps:
                if step["top_logprobs"][0]["id"] != step["id"]:
                    sys.exit(f"{name}: {step['id']} was taken where {step['top_logprobs'][0]['id']} is best")
            out.append((name, ids, steps))
    finally:
        server.close()
    return out


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    peer, model = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    runs = reference(peer, model)
    with tempfile.TemporaryDirectory() as tmp:
        wide = pathlib.Path(tmp) / "f32.gguf"
        subprocess.run([peer / "llama-quantize", "--allow-requantize", model, wide, "F32"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server = Server(peer, wide, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
        try:
            print(f"# {model.name}: greedy continuations by the reference; make_golden.py says what the lines are")
            for name, ids, steps in runs:
                print(f"prompt {name.replace(' ', '_')} {len(ids)}\n{' '.join(map(str, ids))}\ntokens {TOKENS}")
                so_far = list(ids)
                for step in steps:
                    exact = server.complete(so_far, 1, True)[0]
                    best = exact["top_logprobs"][0]
                    print(step["id"], f"{margin(step):.3f}", best["id"], f"{margin(exact):.3f} {best['logprob']:.4f}",
                          flush=True)
                    so_far.append(step["id"])
        finally:
            server.close()


main()
