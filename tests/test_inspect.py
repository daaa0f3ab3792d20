"""``minitune inspect``: what it shows is what would be trained, and its exit code is what ``sft`` would do."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitune import mask_report
from minitune.chat import TEMPLATES, Message, render
from minitune.cli import main
from minitune.config import SFTConfig
from minitune.jobs import encode
from minitune.jobs.inspect import inspect, stop_warnings
from minitune.jobs.load import TINY
from minitune.mask_report import RULES, Verdict
from minitune.tokenizer import load_tokenizer

EVIL = '<script>alert("x")</script>\'"&amp; <img src=http://x.test/a.png> \x1b[31m</style>'


def write(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def good(n: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {i}.", "output": f"the number {i}"} for i in range(n)]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["inspect", *words])
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    _, out, _ = run(capsys, *words, "--json")
    return json.loads(out.splitlines()[-1])


# ---- what is shown


def test_every_token_is_shown_with_its_rule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", good(3))
    code, out, err = run(capsys, "tiny", data, "--row", "2", "--show", "2")
    assert (code, err) == (0, "")
    assert "\x1b" not in out  # no terminal, no colour
    tokenizer = load_tokenizer(TINY)
    for number in (1, 2):
        turns = [Message("user", f"Say {number}."), Message("assistant", f"the number {number}")]
        want = render(turns, TEMPLATES["alpaca"], tokenizer, 2)
        part = out.split(f"line {number + 1} (row {number + 1})\n")[1].split("\n\n")[0].splitlines()[1:]
        words = [line.split() for line in part]
        assert [(int(word[0]), int(word[1])) for word in words] == list(enumerate(want.ids))
        assert ["yes" in word for word in words] == want.trained
        assert part[-1].endswith("answer of an assistant turn")
        assert "terminator" in part[-1]
    assert "(row 1)" not in out
    assert "sft would start on these rows" in out
    for text in RULES.values():
        assert f"holds      {text} (3 examples)" in out


def test_colour_is_for_terminals_that_want_it(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    data = write(tmp_path / "a.jsonl", good(1))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in run(capsys, "tiny", data)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in run(capsys, "tiny", data)[1]


def test_json_holds_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    long = {"instruction": "x", "output": "y " * 600}
    found = as_json(capsys, "tiny", write(tmp_path / "a.jsonl", [*good(4), long, "{broken", "[1]"]))
    assert (found["ok"], found["rows"], found["bad_rows"], found["long_rows"]) == (False, 4, 2, 1)
    assert [row[0].rpartition("/")[2] for row in found["bad"]] == ["a.jsonl line 6 (row 6)", "a.jsonl line 7 (row 7)"]
    assert len(found["refused"]) == 2
    assert found["terminator"] == [2, "</s>"]
    assert found["stop_ids"] == [2]
    assert found["trained_by_role"].keys() == {"assistant"}
    (tokens,) = found["shown"][0]["examples"]
    assert sum(token["trained"] for token in tokens) * 4 == found["trained_tokens"]
    assert tokens[-1] | {"position": 0} == {
        "position": 0, "id": 2, "text": "</s>", "turn": 1, "role": "assistant", "part": "terminator", "trained": True,
        "weight": 1.0, "rule": "answer of an assistant turn",
    }  # fmt: skip


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Guards the reader of a page: what a row says stays text, and nothing is fetched."""
    rows = [{"instruction": EVIL, "input": EVIL, "output": EVIL}, {"messages": [{"role": EVIL, "content": "x"}]}]
    data = write(tmp_path / "<b>a.jsonl", rows)
    target = tmp_path / "mask.html"
    code, _, _ = run(capsys, "tiny", data, "--html", str(target))
    assert code == 1  # the second row is bad
    text = target.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    known = {"html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td", "ul", "li", "span", "div",
             "br", "details", "summary", "code"}  # fmt: skip
    assert {tag for tag, _ in page.tags} <= known
    assert not [attrs for _, attrs in page.tags if {"src", "href", "onclick", "onerror", "style"} & attrs.keys()]
    assert "url(" not in text
    assert "\x1b" not in text
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    # The report stands above the tokens; each token says on hover what decided; trained ones are marked.
    assert text.index("Refused: ") < text.index("class=row")
    spans = [attrs for tag, attrs in page.tags if tag == "span" and "title" in attrs]
    (tokens,) = as_json(capsys, "tiny", data)["shown"][0]["examples"]
    assert [attrs["class"] == "t on" for attrs in spans] == [token["trained"] for token in tokens]
    for attrs, token in zip(spans, tokens, strict=True):
        title = attrs["title"] or ""
        assert title.startswith(f"position {token['position']}, id {token['id']}\n")
        assert title.endswith(token["rule"])
    # It is written over by the next, and by nothing else.
    assert run(capsys, "tiny", data, "--html", str(target))[0] == 1
    assert not list(tmp_path.glob(".*.part"))


# ---- what is refused


def refused_by_both(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path | str, data: str,
                    *words: str) -> str:  # fmt: skip
    """Exit code 1 here, 2 and the same reason from sft, which writes nothing."""
    code, out, _ = run(capsys, str(model), data, *words)
    assert code == 1
    reason = next(line for line in out.splitlines() if line.startswith("refused")).removeprefix("refused").strip()
    run_folder = tmp_path / "run"
    assert (
        main(["sft", "--model", str(model), "--data", data, "--out", str(run_folder), "--device", "cpu", *words]) == 2
    )
    assert capsys.readouterr().err == f"minitune: {reason}\n"
    assert not run_folder.exists()
    return reason


def test_what_sft_refuses_is_refused_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    long = {"instruction": "x", "output": "y " * 600}
    data = write(tmp_path / "a.jsonl", [*good(4), "{broken"])
    assert "line 5" in refused_by_both(capsys, tmp_path, "tiny", data)
    assert run(capsys, "tiny", data, "--on-bad", "drop")[0] == 0
    data = write(tmp_path / "a.jsonl", [*good(4), long])
    assert "over --max-length 512" in refused_by_both(capsys, tmp_path, "tiny", data)
    for policy in ("drop", "truncate-history"):
        assert run(capsys, "tiny", data, "--on-long", policy)[0] == 0
    data = write(tmp_path / "a.jsonl", [long])
    assert "no row is left" in refused_by_both(capsys, tmp_path, "tiny", data, "--on-long", "drop")
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    data = write(tmp_path / "a.jsonl", [*good(4), {"messages": turns}])
    assert "must be from 'assistant'" in refused_by_both(capsys, tmp_path, "tiny", data)


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_that_is_wrong_stops_both(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Guards the start of a run: whichever assertion fails, on one row of many, nothing is trained."""
    real = mask_report.check_example

    def one_wrong(example: Any, answers: Any, *args: Any, **named: Any) -> Verdict:
        return Verdict(rule, "as found") if answers == ["the number 2"] else real(example, answers, *args, **named)

    monkeypatch.setattr(mask_report, "check_example", one_wrong)
    monkeypatch.setenv("MINITUNE_CACHE", str(tmp_path / "cache"))
    reason = refused_by_both(capsys, tmp_path, "tiny", write(tmp_path / "a.jsonl", good(5)))
    assert "line 3 (row 3): the loss mask is wrong (1 of 5 rows): as found" in reason
    _, out, _ = run(capsys, "tiny", str(tmp_path / "a.jsonl"))
    assert f"FAILED     {RULES[rule]} (1 of 5 rows fail)" in out


def test_a_run_keeps_the_report_it_was_started_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "a.jsonl", good(12))
    words = ["--val", "2", "--max-steps", "1", "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main(["sft", "--model", "tiny", "--data", data, *words]) == 0
    assert "packed    10 examples in " in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "inspect.json").read_text())
    found = as_json(capsys, "tiny", data)
    for name in ("rows", "tokens", "trained_tokens", "trained_by_role", "failures", "rules", "terminator", "stop_ids"):
        assert kept[name] == found[name]


def test_several_files_stand_behind_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a b.jsonl", good(12)), write(tmp_path / "c.jsonl", good(4))
    assert as_json(capsys, "tiny", a, f"{b}=2")["rows"] == 16
    words = ["--val", "0", "--max-steps", "1", "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main(["sft", "--model", "tiny", "--data", a, f"{b}=2", *words]) == 0
    assert "packed    20 examples in " in capsys.readouterr().out
    assert set(json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]) == {a, b}


# ---- warnings


def test_rows_of_the_vocabulary_that_look_untrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards B12: a control token that was never trained is named, with where its row stands among the others."""
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    data = write(tmp_path / "a.jsonl", good(3))
    assert not as_json(capsys, str(model), data)["warnings"]
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][2] *= 1e-3
    save_file(tensors, model / "model.safetensors")
    (warning,) = as_json(capsys, str(model), data)["warnings"]
    assert "'</s>' (id 2) looks untrained in model.embed_tokens.weight" in warning
    assert torch.isfinite(tensors["model.embed_tokens.weight"]).all()


def test_a_terminator_that_the_folder_does_not_name(tmp_path: Path) -> None:
    """Guards B2: an end of turn that other tools would not stop on is told, and is in our own stop set."""
    tokenizer = load_tokenizer(TINY)
    assert stop_warnings(2, (2, 7), tokenizer) == []
    (warning,) = stop_warnings(2, (7, 7), tokenizer)
    assert (
        "answers end with '</s>' (id 2), which the model's folder does not list among the ids to stop on [7]" in warning
    )
    data = write(tmp_path / "a.jsonl", good(3))
    found = inspect(SFTConfig(model="tiny", data=data, out="-", val="0"), row=1, show=0)
    assert found.terminator[0] in found.stop_ids


def test_answers_that_join_otherwise_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Guards B7: prompt and answer encoded as one text may have other ids; the user is told how often."""
    rows = [{"prompt": "The kit", "completion": "e is red."}, {"prompt": "Tom has", "completion": " a red kite."}]
    found = as_json(capsys, "tiny", write(tmp_path / "a.jsonl", rows), "--show", "2")
    assert (found["sampled"], found["otherwise"]) == (2, 1)
    assert any("other ids" in note for note in found["shown"][0]["notes"])
    assert not found["shown"][1]["notes"]


# ---- wrong input: one line, exit code 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny"], "DATA"),
        ([], "MODEL"),
        (["tiny", "{data}", "--row", "0"], "at least 1"),
        (["tiny", "{data}", "--row", "4"], "the files have 3 rows"),
        (["tiny", "{data}", "--show", "-1"], "at least 1 and 0"),
        (["tiny", "{data}", "--template", "chatlm"], "did you mean 'chatml'"),
        (["tiny", "{data}", "--template", "chatml"], "no token '<|im_end|>'"),
        (["tiny", "{data}", "--max-length", "9999"], "positions"),
        (["tiny", "{data}", "--columns", "instruct=x"], "did you mean 'instruction'"),
        (["tiny", "{data}", "--train-on", "some"], "train-on"),
        (["tiny", "{data}", "--colums", "a=b"], "did you mean --columns?"),
        (["tiny", "{data}=0"], "no weight"),
        (["tiny", "{data}", "{data}"], "is named twice"),
        (["tiny", "none.jsonl"], "no such file"),
        (["none", "{data}"], "there is no such model folder"),
        (["tiny", "{data}", "--html", "{data}"], "is no page of this command"),
        (["tiny", "{data}", "--html", "nowhere/x.html"], "there is no folder nowhere"),
    ],
)
def test_wrong_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str) -> None:
    data = write(tmp_path / "a.jsonl", good(3))
    code, out, err = run(capsys, *(word.format(data=data) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("minitune: ")
    assert err.count("\n") == 1
    assert said in err
    assert len(Path(data).read_text().splitlines()) == 3


def test_a_file_that_ends_in_the_middle_is_wrong_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": "c"')
    code, _, err = run(capsys, "tiny", str(tmp_path / "a.json"), "--on-bad", "drop")
    assert code == 2
    assert "the rest of the file was not read; mend the file" in err


# ---- the real files


GSM8K = ("--columns", "instruction=question,output=answer")
FILES = {
    "en/alpaca.json": (), "en/gsm8k_test.jsonl": GSM8K, "en/gsm8k_train.jsonl": GSM8K, "en/instructions_1100.json": (),
    "en/numina_cot_sharegpt_1k.jsonl": (),
    "en/self_instruct_seed_tasks.jsonl": (), "zh/alpaca_zh.json": (), "zh/belle_seed_tasks.jsonl": (),
    "zh/sharegpt_zh_1k.jsonl": (), "text/sherlock.txt": (), "text/tinyshakespeare.txt": (),
    "text/tinystories_1000.json": (), "text/tang_poems_0.json": (),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_real_files_are_reported(
    capsys: pytest.CaptureFixture[str], material: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the formats that people have: each file gives a report, in which no assertion fails."""
    monkeypatch.setattr(encode, "ALONE_S", 1e9)
    model = str(material / "weights/TinyStories-656K")
    flags = ["--on-bad", "drop", "--on-long", "drop", "--rows", "300", "--quiet", "--json", *FILES[name]]
    code, out, err = run(capsys, model, str(material / "data" / name), *flags)
    if name == "text/tang_poems_0.json":  # authors and paragraphs: no layout, which is said in one line
        assert (code, err.count("\n")) == (2, 1)
        assert "all 300 rows are bad" in err or "all 1,000 rows are bad" in err
        return
    alone = name in ("text/sherlock.txt", "text/tinyshakespeare.txt")  # one row, longer than the model reads
    assert code == (1 if alone else 0)
    found = json.loads(out.splitlines()[-1])
    assert not found["failures"], found["problems"]
    assert found["rows"] + found["long_rows"] + found["bad_rows"] > 0
    assert found["trained_by_role"].keys() <= {"assistant"}
