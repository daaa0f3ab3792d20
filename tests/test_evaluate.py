"""Metrics against numbers worked out by hand, and ``minitune eval`` against the model itself."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import minitune
from minitune.cli import main
from minitune.errors import ConfigError
from minitune.eval_config import EvalConfig
from minitune.evaluate import bleu, exact_match, label_scores, metrics_for, mostly_chinese, rouge, score, words
from minitune.jobs.evaluate import evaluate_model

ROWS = [
    {"instruction": "What does Tom have?", "input": "Tom has a red kite.", "output": "Tom has a red kite."},
    {"instruction": "Where is Mia?", "input": "", "output": "Mia is in the garden."},
    {
        "instruction": "\u5c0f\u660e\u5728\u54ea\u91cc\uff1f",
        "input": "",
        "output": "\u5c0f\u660e\u5728\u82b1\u56ed\u91cc\u3002",
    },
    {"instruction": "Count from one to three.", "input": "", "output": "one, two, three"},
    {"instruction": "Say it.", "input": "", "output": "It."},
]


def test_exact_match_by_hand() -> None:
    found = exact_match([" a ", "b", "c\n"], ["a", "B", "c"])
    assert found.value == 2 / 3
    assert found.parts == {"right": 2, "rows": 3}


def test_labels_by_hand() -> None:
    """Guards every number of a confusion that was counted by hand: one answer is no label, one label is never given."""
    wanted = ["cat", "cat", "cat", "dog", "dog", "cow"]
    found = label_scores(["cat", "dog", "cat ", "dog", "bird", "cat"], wanted).parts
    third = {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "rows": 3}
    assert found["labels"]["cat"] == pytest.approx(third)
    assert found["labels"]["dog"] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "rows": 2})
    assert found["labels"]["cow"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 1}
    assert found["accuracy"] == 1 / 2
    assert found["micro"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 6, "f1": 2 * 0.6 * 0.5 / 1.1})
    assert found["macro"]["f1"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert found["no_label"] == 1


def test_rouge_by_hand() -> None:
    """Guards the tokens and the formula: 4 of 5 words meet, 2 of 4 pairs, the longest common row is 4 words."""
    found = rouge(["The red kite is mine"], ["the blue kite is mine."]).parts
    assert found["rouge1"] == pytest.approx(4 / 5)
    assert found["rouge2"] == pytest.approx(2 / 4)
    assert found["rougeL"] == pytest.approx(4 / 5)
    chinese = rouge(["\u7ea2\u8272\u7684\u7403"], ["\u84dd\u8272\u7684\u7403"]).parts
    assert chinese["rouge1"] == pytest.approx(3 / 4)
    assert chinese["rougeL"] == pytest.approx(3 / 4)


def test_bleu_by_hand() -> None:
    """Guards the metric as it is published: n-gram precisions 4/5, 2/4, 1/3 and 1/2 smoothed, no brevity penalty."""
    found = bleu(["The red kite is mine"], ["The blue kite is mine"])
    precisions = [100 * 4 / 5, 100 * 2 / 4, 100 * 1 / 3, 100 / (2 * 2)]
    assert found.parts["precisions"] == pytest.approx(precisions)
    assert found.value == pytest.approx(math.prod(precisions) ** 0.25)
    assert "tok:13a" in found.signature
    assert "tok:zh" in bleu(["\u7ea2\u8272\u7684\u7403"], ["\u84dd\u8272\u7684\u7403"]).signature


def test_words_and_languages() -> None:
    assert words("It's 3 \u7ea2\u7403, OK_2") == ["it", "s", "3", "\u7ea2", "\u7403", "ok_2"]
    assert mostly_chinese(["\u7ea2\u8272", "a"])
    assert not mostly_chinese(["red", "blue \u7ea2"])


def test_metrics_are_chosen_by_the_answers() -> None:
    assert metrics_for(["yes", "no"] * 5) == ["exact", "labels"]
    assert metrics_for([f"answer {n}" for n in range(9)]) == ["exact", "bleu", "rouge"]
    with pytest.raises(ConfigError, match="there are: exact, labels, bleu, rouge"):
        score(["a"], ["a"], ["accuracy"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_the_loss_is_that_of_the_model(data: Path) -> None:
    """Guards loss and perplexity against a loop that takes each row's log-probabilities one by one."""
    from minitune.chat import ALPACA, Message, render

    found = evaluate_model(EvalConfig(model="tiny", data=str(data), metrics="none", device="cpu", dtype="float32"))
    model, tokenizer = minitune.load("tiny", device="cpu", dtype="float32")
    nll, count = 0.0, 0
    for row in ROWS:
        turns = [Message("user", row["instruction"], row["input"]), Message("assistant", row["output"])]
        example = render(turns, ALPACA, tokenizer, 2)
        logp = model.logits(model(torch.tensor([example.ids[:-1]])))[0].double().log_softmax(-1)
        for place, trained in enumerate(example.trained[1:]):
            if trained:
                nll -= float(logp[place, example.ids[place + 1]])
                count += 1
    assert found.tokens == count
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.loss == pytest.approx(nll / count, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll / count), rel=1e-5)


def test_nothing_depends_on_the_batch(data: Path, tmp_path: Path) -> None:
    """Guards B21: loss, answers and metrics are the same at batch 1, 3 and 8."""
    found: list[Any] = []
    for size in (1, 3, 8):
        out = tmp_path / f"{size}.jsonl"
        config = EvalConfig(
            model="tiny",
            data=str(data),
            batch_size=size,
            max_tokens=16,
            predictions=str(out),
            device="cpu",
            dtype="float32",
        )
        found.append((evaluate_model(config), out.read_text(encoding="utf-8")))
    for one, answers in found[1:]:
        assert one.nll == pytest.approx(found[0][0].nll, rel=1e-5)
        assert one.tokens == found[0][0].tokens
        assert answers == found[0][1]
        assert [s.value for s in one.scores] == [s.value for s in found[0][0].scores]
    lines = [json.loads(line) for line in found[0][1].splitlines()]
    assert [line["expected"] for line in lines] == [row["output"] for row in ROWS]
    assert lines[0]["context"] == "Tom has a red kite."


def test_the_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "--data", str(data), "--max-tokens", "8", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for part in ("nats a token, perplexity", "rouge-score", "generation  max_tokens 8, temperature 0.0, seed 0"):
        assert part in said
    assert main(["eval", "tiny", "--data", str(data), "--metrics", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == len(ROWS)
    assert main(["eval", "tiny", "--data", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert main(["eval", "tiny", "--data", str(data), "--metrics", "exactly"]) == 2
    assert "there are: exact" in capsys.readouterr().err
