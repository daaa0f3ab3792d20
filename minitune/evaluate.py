"""Answers against the wanted ones: exact match, labels, BLEU, ROUGE; each number with how it was counted.

Numbers are compared with those of others, so each says what it is: a signature with the tokens it counts and the
version of what counted it (BLEU by sacrebleu, Post, arXiv 1804.08771; ROUGE by rouge-score, Lin 2004).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minitune.errors import ConfigError

METRICS = ("exact", "labels", "bleu", "rouge")
MOST_LABELS = 20
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_WORDS = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric: its headline in [0, 1] or BLEU's [0, 100], its parts, and how it was counted."""

    name: str
    value: float
    signature: str
    parts: dict[str, Any] = field(default_factory=dict)


def score(answers: Sequence[str], wanted: Sequence[str], metrics: Sequence[str]) -> list[Score]:
    """The metrics of ``answers`` against ``wanted``, one each; ConfigError for an unknown one or no rows."""
    if len(answers) != len(wanted) or not wanted:
        raise ConfigError(f"there are {len(answers)} answers to {len(wanted)} rows; as many of both are needed")
    known = {"exact": exact_match, "labels": label_scores, "bleu": bleu, "rouge": rouge}
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise ConfigError(f"--metrics names {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name](answers, wanted) for name in metrics]


def metrics_for(wanted: Sequence[str]) -> list[str]:
    """What fits these answers: labels where a few short ones stand for many rows, else BLEU and ROUGE."""
    kinds = {text.strip() for text in wanted}
    are_labels = 2 * len(kinds) <= len(wanted) and len(kinds) <= MOST_LABELS and all(len(k.split()) <= 4 for k in kinds)
    return ["exact", "labels"] if are_labels else ["exact", "bleu", "rouge"]


def exact_match(answers: Sequence[str], wanted: Sequence[str]) -> Score:
    """Share of answers that are the wanted one, white space at both ends aside."""
    right = sum(a.strip() == w.strip() for a, w in zip(answers, wanted, strict=True))
    return Score(
        name="exact",
        value=right / len(wanted),
        signature="equal text, white space at both ends removed",
        parts={"right": right, "rows": len(wanted)},
    )


def label_scores(answers: Sequence[str], wanted: Sequence[str]) -> Score:
    """Accuracy, and precision, recall and F1 of every wanted label, micro and macro.

        precision = right / answered so          recall = right / wanted so          F1 = 2 p r / (p + r)

    An answer that is no wanted label is wrong, and lowers the recall of its row's label. Micro counts rows over all
    labels together, macro is the plain mean over labels; 0 / 0 is 0.
    """
    found, truth = [a.strip() for a in answers], [w.strip() for w in wanted]
    labels = sorted(set(truth))
    right = Counter(f for f, t in zip(found, truth, strict=True) if f == t)
    answered, asked = Counter(found), Counter(truth)
    per_label = {
        label: _precision_recall(right[label], answered[label], asked[label]) | {"rows": asked[label]}
        for label in labels
    }
    in_set = sum(answered[label] for label in labels)
    accuracy = right.total() / len(truth)
    macro = {key: sum(one[key] for one in per_label.values()) / len(labels) for key in ("precision", "recall", "f1")}
    return Score(
        name="labels",
        value=accuracy,
        signature=f"accuracy over {len(labels)} labels, white space at both ends removed; 0/0 = 0",
        parts={
            "accuracy": accuracy,
            "micro": _precision_recall(right.total(), in_set, len(truth)),
            "macro": macro,
            "no_label": len(found) - in_set,
            "labels": per_label,
        },
    )


def bleu(answers: Sequence[str], wanted: Sequence[str]) -> Score:
    """Corpus BLEU by sacrebleu, with its Chinese tokenizer where the wanted answers are mostly Chinese."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise ConfigError(
            "BLEU needs sacrebleu: pip install 'minitune[eval]', or leave bleu out of --metrics"
        ) from None
    metric = BLEU(tokenize="zh" if mostly_chinese(wanted) else "13a")
    found = metric.corpus_score(list(answers), [list(wanted)])
    parts = {"precisions": list(found.precisions), "brevity_penalty": found.bp}
    return Score(name="bleu", value=found.score, signature=str(metric.get_signature()), parts=parts)


def rouge(answers: Sequence[str], wanted: Sequence[str]) -> Score:
    """ROUGE-1, -2 and -L (F1, mean over rows) by rouge-score; a Chinese character is a word of its own."""
    try:
        import importlib.metadata

        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ConfigError(
            "ROUGE needs rouge-score: pip install 'minitune[eval]', or leave rouge out of --metrics"
        ) from None
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), tokenizer=_Words())
    rows = [scorer.score(w, a) for a, w in zip(answers, wanted, strict=True)]
    means = {kind: sum(row[kind].fmeasure for row in rows) / len(rows) for kind in kinds}
    version = importlib.metadata.version("rouge-score")
    signature = f"F1, mean of rows | lower-cased words, each CJK character | no stemming | rouge-score {version}"
    return Score(name="rouge", value=means["rougeL"], signature=signature, parts=means)


class _Words:
    """Lower-cased words; rouge-score asks its tokenizer for this one method."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def words(text: str) -> list[str]:
    """Lower-cased words of letters and digits; a CJK character is one."""
    return _WORDS.findall(text.lower())


def mostly_chinese(texts: Sequence[str]) -> bool:
    """Whether more of the words of these texts are CJK characters than not."""
    found = [word for text in texts for word in words(text)]
    return 2 * sum(bool(_CJK_CHARACTER.match(word)) for word in found) > len(found)


def _precision_recall(right: int, answered: int, asked: int) -> dict[str, float]:
    precision = right / answered if answered else 0.0
    recall = right / asked if asked else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
