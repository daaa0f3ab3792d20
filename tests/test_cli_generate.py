"""``minitune generate``: one prompt, samples, beams, a file of prompts; what is wrong is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

import minitune
from minitune.cli import main
from minitune.sample import beam_search, generate_batch


def generate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert main(["generate", "tiny", *words, "--device", "cpu", "--dtype", "float32"]) == 0
    return capsys.readouterr()


def last_json(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["generate", "tiny", *words, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minitune: ")
    assert err.count("\n") == 1
    return err


DRAWN = ("--max-tokens", "12", "--temperature", "0.9", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01")
SETTINGS = {"max_tokens": 12, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01}


def test_flags_reach_the_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards every flag: the text is what the same settings give in Python."""
    model, tokenizer = minitune.load("tiny", device="cpu", dtype="float32")
    words = (*DRAWN, "--repetition-penalty", "1.2", "--seed", "3")
    (expected,) = generate_batch(model, tokenizer, ["Once"], seed=3, repetition_penalty=1.2, **SETTINGS)
    out, err = generate(capsys, "Once", *words)
    assert out == "Once" + expected.text + "\n"
    assert err == ""
    out, err = generate(capsys, "Once", *words, "--json")
    assert last_json(out) == {"text": expected.text, "ids": list(expected.ids), "finish": expected.finish, "seed": 3}
    assert out.count("\n") == 1
    assert err == "Once" + expected.text + "\n"
    stop = expected.text[3:5]
    out, _ = generate(capsys, "Once", *words, "--stop", "never there", "--stop", stop)
    assert out == "Once" + expected.text[: expected.text.index(stop)] + "\n"


def test_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards -n: sample j is what its seed gives alone."""
    model, tokenizer = minitune.load("tiny", device="cpu", dtype="float32")
    out, err = generate(capsys, "Once", *DRAWN, "-n", "3", "--seed", "7", "--json", "--batch-size", "2")
    found = last_json(out)["completions"]
    expected = generate_batch(model, tokenizer, ["Once"], n=3, seed=7, **SETTINGS)
    assert [(c["seed"], c["text"]) for c in found] == [(c.seed, c.text) for c in expected]
    assert "--- 2 of 3 (seed 8)\nOnce" in err


def test_logprobs(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = generate(capsys, "Once", "--max-tokens", "4", "--logprobs", "2", "--json")
    found = last_json(out)
    assert len(found["logprobs"]) == len(found["ids"]) == 4
    for token, step in zip(found["ids"], found["logprobs"], strict=True):
        assert step["top"][0] == {"id": token, "token": step["token"], "logprob": step["logprob"]}  # it is greedy
        assert step["top"][1]["logprob"] <= step["logprob"] <= 0
    assert err.count("\n") == 1 + 2 + 4


def test_beams(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = minitune.load("tiny", device="cpu", dtype="float32")
    assert tokenizer.bos_id is not None
    prompt = [tokenizer.bos_id, *tokenizer.encode("Once")]
    best = beam_search(model, prompt, beams=3, max_tokens=6)
    out, _ = generate(capsys, "Once", "--beams", "3", "--max-tokens", "6", "--json")
    assert last_json(out)["ids"] == list(best[0].ids)
    out, err = generate(capsys, "Once", "--beams", "3", "-n", "2", "--max-tokens", "6", "--json")
    assert [c["ids"] for c in last_json(out)["completions"]] == [list(beam.ids) for beam in best[:2]]
    assert f"--- 2 of 2 (score {best[1].score:.4f})" in err


ROWS: list[dict[str, Any]] = [
    {"prompt": "Once upon"},
    {"instruction": "Name a colour.", "input": "red, green", "output": "not read"},
    {"instruction": "Name a colour.", "input": ""},
    {"messages": [{"role": "user", "content": "Name a colour."}]},
]


def as_file(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join(lines) + "\n\n" if kind == "jsonl" else json.dumps(ROWS), "utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_file_of_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    """Guards --prompts: results in order, each what it is alone, on standard output and in the file."""
    path, results = as_file(tmp_path, kind), tmp_path / "results.jsonl"
    words = ("--prompts", str(path), "--max-tokens", "8", "--temperature", "1")
    out, err = generate(capsys, *words, "--json", "--out", str(results))
    *lines, summary = [json.loads(line) for line in out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    assert lines == [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert (summary["prompts"], summary["completions"], summary["out"]) == (4, 4, str(results))
    assert "4 prompts" in err
    out, _ = generate(capsys, "Once upon", *words[2:], "--json")
    assert last_json(out)["ids"] == lines[0]["ids"]
    out, _ = generate(capsys, "Name a colour.", "--chat", *words[2:], "--json")
    assert last_json(out)["ids"] == lines[2]["ids"] == lines[3]["ids"]
    assert lines[1]["ids"] != lines[2]["ids"]
    out, _ = generate(capsys, *words, "-n", "2", "--batch-size", "3")
    assert out.count("--- 1: Once upon\n") == 2
    assert lines[2]["text"] in out


def test_a_text_file_of_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b'\xef\xbb\xbfOnce upon\r\n\n{"not": json\n')
    out, _ = generate(capsys, "--prompts", str(path), "--max-tokens", "3", "--json")
    assert [json.loads(line)["prompt"] for line in out.splitlines()[:-1]] == ["Once upon", '{"not": json']


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": 3}', "rows.jsonl line 1: prompt is 3; it must be text"),
        ('{"prompt": "a"}\n{"text": "b"}', "line 2: has text; expected 'prompt', 'messages', or 'instruction'"),
        ('{"prompt": "a"}\n\n{"prompt"', "line 3: not valid JSON"),
        ("[1]", "row 1: expected an object, got int"),
        ('{"messages": []}', "messages must be a list"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "message 1 has the role 'robot'"),
        ('{"messages": [{"role": "user"}]}', "content of message 1 is None; it must be text"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "there is nothing to answer"),
        ("\n", "there is no prompt in it"),
        ('{"prompt": "%s"}' % ("long " * 900), "line 1: the prompt has "),
    ],
)
def test_a_row_that_is_wrong_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, "utf-8")
    assert said in refused(capsys, "--prompts", str(path))


def test_what_does_not_go_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "give either a PROMPT or --prompts FILE" in refused(capsys)
    assert "give either a PROMPT or --prompts FILE" in refused(capsys, "x", "--prompts", "y")
    assert "there.txt: cannot be read (No such file" in refused(capsys, "--prompts", str(tmp_path / "there.txt"))
    assert "--out is for the results of --prompts" in refused(capsys, "x", "--out", "y")
    path = tmp_path / "a.txt"
    path.write_text("x")
    assert "its folder does not exist" in refused(capsys, "--prompts", str(path), "--out", str(tmp_path / "no" / "y"))
    assert "--system is for conversations; add --chat" in refused(capsys, "x", "--system", "y")
    assert "--beams does not go with --temperature, --stop" in refused(
        capsys, "x", "--beams", "2", "--temperature", "1", "--stop", "a"
    )
    assert "-n 3 is more than the 2 beams" in refused(capsys, "x", "--beams", "2", "-n", "3")
    assert "--top-p is 1.5" in refused(capsys, "x", "--top-p", "1.5")
    assert "--batch-size is 0" in refused(capsys, "x", "--batch-size", "0")
    assert "there are: alpaca" in refused(capsys, "x", "--chat", "--template", "none")
    assert "tokens; this model takes 1 to" in refused(capsys, "x" * 3000)
