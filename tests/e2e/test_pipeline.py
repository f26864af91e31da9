"""`realm pipeline`: two real models in one process, a program in one step, and what the ledger says of it."""
import json
import pathlib
import shutil
import subprocess
import tempfile

from harness import GUEST, MODEL, REALM, realm

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/pipelines/capitals.yaml"
GEMMA = str(pathlib.Path(MODEL).parent / "gemma-3-270m-q4_k_m.gguf")
MODELS = ("--model", f"base={GEMMA}", "--model", f"chat={MODEL}")


def pipeline(*args, text=None, **options):
    """`text` is written to a file, whose name stands where `FILE` does."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="realm-pipeline-"))
    try:
        if text is not None:
            (folder / "p.yaml").write_text(text)
        args = [str(folder / "p.yaml") if a == "FILE" else str(a) for a in args]
        return subprocess.run([REALM, "pipeline", *args], capture_output=True, text=True, timeout=120, **options)
    finally:
        shutil.rmtree(folder)


def test_the_example_says_what_its_readme_shows():
    shown = [line.strip() for line in (EXAMPLE.parent / "README.md").read_text().splitlines() if '{"facts"' in line]
    r = pipeline("run", EXAMPLE, *MODELS)
    assert r.returncode == 0 and r.stdout.splitlines() == shown, r
    r = pipeline("check", EXAMPLE, *MODELS, "--output", "json")
    steps = json.loads(r.stdout)["steps"]
    assert [s["after"] for s in steps] == [[], ["draft"], ["list"]], steps


def test_report_and_ledger():
    state = tempfile.mkdtemp(prefix="realm-state-")
    try:
        r = pipeline("run", EXAMPLE, *MODELS, "--output", "json", "--state", state, "--input", 'countries=["Greece"]')
        report = json.loads(r.stdout)
        assert report["output"]["facts"] == "Athens is the capital of Greece.", r
        draft, text, refine = report["steps"]
        assert draft["texts"] == [" Athens"] and draft["calls"] == 1 and draft["model"] == "base", draft
        assert text["texts"][0].strip() == report["output"]["facts"] and "calls" not in text
        usage = report["usage"]
        assert usage["completion_tokens"] == draft["completion_tokens"] + refine["completion_tokens"]
        row, = json.loads(realm("usage", "--output", "json", state=state))
        assert row["tenant"] == "local" and row["requests"] == usage["calls"] == 2, row
        assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    finally:
        shutil.rmtree(state)


def test_programs_votes_and_inputs():
    text = f"""
inputs: {{question: null}}
models: {{m: {MODEL}}}
defaults: {{model: m, temperature: 0, max_tokens: 12}}
steps:
  - {{id: plain, prompt: "{{{{ inputs.question }}}}"}}
  - {{id: loud, program: {GUEST.resolve()}/shout.wasm, prompt: "{{{{ inputs.question }}}}"}}
  - {{id: many, n: 3, prompt: "{{{{ inputs.question }}}}"}}
  - {{id: one, vote: many}}
  - {{id: short, prompt: "{{{{ inputs.question }}}}", when: "'Rome' in steps.plain.text"}}
output: {{plain: "{{{{ steps.plain.text }}}}", loud: "{{{{ steps.loud.text }}}}", votes: "{{{{ steps.one.votes }}}}", short: "{{{{ steps.short.skipped }}}}"}}
"""
    r = pipeline("run", "FILE", "--input", "question=@-", text=text,
                 input="What is the capital of France? Answer in one sentence.")
    out = json.loads(r.stdout)
    assert "Paris" in out["plain"] and "PARIS" in out["loud"] and out["votes"] == "3" and out["short"] == "True", r


def test_what_is_wrong_is_said():
    r = pipeline("check", "FILE", text="models: {m: nowhere}\nsteps:\n  - id: a\n    modell: m\n    prompt: x\n  - {id: b, "
                                       "text: '{{ steps.c.text }}'}\n")
    lines = r.stderr.splitlines()
    assert r.returncode == 1 and r.stdout == "" and len(lines) == 3, r
    assert all(line.startswith("realm: pipeline check: ") and "p.yaml: line " in line for line in lines), lines
    assert "line 4: steps[0].modell: unknown key" in lines[0] and "a model is missing" in lines[1], lines
    assert 'line 6: steps[1].text: no step is called "c"' in lines[2], lines
    r = pipeline("check", "FILE", text="models: {m: nowhere}\nsteps:\n  - {id: a, model: m, program: /none, prompt: x}\n")
    assert "line 1: model m: no model \"nowhere\"" in r.stderr and "line 3: program /none" in r.stderr, r
    text = f"steps:\n  - {{id: a, model: {MODEL}, prompt: x, max_tokens: 4}}\n"
    for args, why in ((("run", "FILE", "--input", "x=1"), 'no input is called "x"'),
                      (("run", "FILE", "--model", "b=c"), 'the pipeline has no model "b"'),
                      (("run", "/nowhere.yaml"), "/nowhere.yaml")):
        r = pipeline(*args, text=text)
        assert r.returncode == 1 and r.stderr.count("\n") == 1 and why in r.stderr and r.stdout == "", r
    r = pipeline("run", "FILE", text=f"limits: {{tokens: 3}}\n{text}")
    assert r.returncode == 1 and "a: limit tokens: 0 of 3 are used" in r.stderr, r
    for args in ((), ("run",), ("walk", "FILE"), ("check", "FILE", "--input", "a=b"), ("run", "FILE", "--input", "a")):
        assert pipeline(*args, text=text).returncode == 2
