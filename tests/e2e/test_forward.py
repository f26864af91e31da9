"""A program that computes the model's forward pass itself, with tensor operations alone, says what the engine says."""
import re

from harness import GUEST, MODEL, realm

PROMPTS = [
    "What is the capital of France? Answer in one sentence.",
    "Write a short story about a robot who learns to cook.",
]


def answer(prompt, *args):
    return realm("run", "--model", MODEL, "--temperature", "0", "--max-tokens", "48", *args, prompt)


def program(name):
    return ["--program", str(GUEST / f"{name}.wasm")]


def test_same_answer_as_the_engine():
    for prompt in PROMPTS:
        engine = answer(prompt)
        assert answer(prompt, *program("forward")) == engine
        assert answer(prompt, *program("forward64")) == engine


def test_models_larger_than_their_budget():
    """Half of the weights' memory: the layers stream, for the engine and for a program with 64-bit memory."""
    weights = int(re.search(r'"weights_bytes":(\d+)', realm("info", "--output", "json", MODEL)).group(1))
    budget = ["--weight-budget", str(weights // 2)]
    engine = answer(PROMPTS[0])
    assert "Paris" in engine
    assert answer(PROMPTS[0], *budget) == engine
    assert answer(PROMPTS[0], *budget, *program("forward64")) == engine
