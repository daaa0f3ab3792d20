"""Makes the tiny model: tokenizer, rows, text, and by ``minitune pretrain``, stage after stage, its weights.

    python -m minitune.assets.tiny.make tokenizer                   the sentencepiece model
    python -m minitune.assets.tiny.make rows                        rows.jsonl, instructions to tune the model with
    python -m minitune.assets.tiny.make model --out DIR             the weights, from random ones, stage after stage
    python -m minitune.assets.tiny.make text --out FILE             documents for minitune pretrain
    python -m minitune.assets.tiny.make measure [--model MODEL]     the loss on text that is never trained on

Everything is seeded. The first two are written beside this file. README.md there says how what ships was made.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

from minitune.chat import ALPACA, Message
from minitune.chat.script import Kind, script
from minitune.cli import main as cli
from minitune.data.batch import Batch, pad_rows
from minitune.data.world import documents, vocabulary, write_instructions
from minitune.data.world.text import SHARES
from minitune.data.world.words import CHINESE, LANGUAGES
from minitune.files import write_text
from minitune.jobs.load import load
from minitune.tokenizer import load_tokenizer
from minitune.train import evaluate

HERE = Path(__file__).parent
VOCABULARY, ROWS, HELD_OUT = 1536, 2400, 1000
COMMON = (
    "什么", "颜色", "现在", "哪里", "地方", "列表", "第一", "第二", "最后", "英语", "反义词", "然后", "之后", "后来",
    "一样", "东西", "后面", "前面", "动物", "数字", "知道", "高兴", "问题", "回答", "答案", "短文", "内容", "请求",
    "声音", "叫声", "相反", "今天", "明天", "说出", "一天", "之后",
)  # fmt: skip
"""Chinese words of the phrases that may be one piece, beside the words of the world."""


# ---- the tokenizer

CHINESE_WORDS = {*COMMON, *CHINESE.lexicon()}


def split_chinese(text: str) -> Iterator[str]:
    """Pieces of a text for the tokenizer to learn from, between which nothing can merge.

    Runs of Chinese are cut into the words of the world, the longest first, so that no piece joins two words.
    """
    run, i = "", 0
    while i < len(text):
        if ord(text[i]) < 0x2E80:
            run += text[i]
            i += 1
            continue
        if run.strip():
            yield run
        run = ""
        length = next((n for n in (3, 2) if text[i : i + n] in CHINESE_WORDS), 1)
        yield text[i : i + length]
        i += length
    if run.strip():
        yield run


def alpaca_lines() -> list[str]:
    """The lines that the template itself brings, with an input and without."""
    pieces = [p for context in ("", "x") for p in script(ALPACA, [Message("user", "", context)], header=True)]
    lines = [line for piece in pieces if piece.kind is Kind.LITERAL for line in piece.text.split("\n")]
    return [line for line in lines if line]


def make_tokenizer() -> None:
    """Train a BPE of ``VOCABULARY`` pieces on text of the world, every word of it, and the words of the template.

    No space is put before a text, so that a Chinese word is the same piece at its start and inside it; an English word
    of the lexicon is one piece both at the start of a line and after a space.
    """
    template = alpaca_lines()
    alone = [f"{space}{word}" for words in LANGUAGES for word in words.lexicon() for space in ("", " ")]
    corpus = [*vocabulary(), *documents(20_000, seed=1), *(template * 300), *(alone * 100)]
    pieces = [piece for text in corpus for line in text.split("\n") for piece in split_chinese(line)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(pieces),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (HERE / "tokenizer.vocab").unlink()


# ---- text, and the loss on it


def held_out_batches() -> list[Batch]:
    """A thousand documents that are never trained on, those of seed 0; rows of about the same length together."""
    tokenizer = load_tokenizer(HERE)
    assert tokenizer.bos_id is not None
    assert tokenizer.eos_id is not None
    ends = tokenizer.bos_id, tokenizer.eos_id
    texts = documents(HELD_OUT, seed=0)
    rows = sorted(([ends[0], *tokenizer.encode(text), ends[1]] for text in texts), key=len)
    return [pad_rows([Text(ids) for ids in rows[i : i + 50]]) for i in range(0, len(rows), 50)]


class Text:
    """Ids that are all trained but the first."""

    def __init__(self, ids: list[int]):
        self.ids = ids
        self.trained = [False, *[True] * (len(ids) - 1)]
        self.weights = [0.0, *[1.0] * (len(ids) - 1)]


def measure(args: argparse.Namespace) -> None:
    """Print the loss on text that is never trained on, in nats a token."""
    model, _ = load(args.model, device="cpu", dtype="float32")
    loss = evaluate(model, held_out_batches()).loss
    print(json.dumps({"held_out_loss": round(loss, 4)}))


def write_documents(path: Path, count: int, seed: int, shares: Mapping[str, float] | None = None) -> None:
    """Documents as JSON Lines of ``text``, for ``minitune pretrain``."""
    made = documents(count, seed=seed, shares=shares)
    write_text(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in made))


# ---- the weights


@dataclass(frozen=True)
class Stage:
    """One run of ``minitune pretrain``: which documents (all kinds as in the world's text where none are named), how
    many and of which seed, the peak learning rate, and rows of 512 tokens a step."""

    documents: int
    seed: int
    lr: float
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    rows: int = 1

    @property
    def settings(self) -> list[str]:
        """Small steps stay at their rate, to learn to look up; larger ones fall to zero, to settle."""
        schedule = "constant" if self.rows == 1 else "cosine"
        return ["--lr", str(self.lr), "--batch-size", str(self.rows), "--schedule", schedule]


# To look up is learned from documents that ask for nothing else, from a word and the next one to whole sentences; then
# all kinds of documents, and what is weak. Each stage needs what the one before has learned (docs/decisions.md).
STAGES = (
    Stage(34_000, 701, 2e-3, {"cycling": 40, "neighbours": 60}),
    Stage(26_000, 702, 2e-3, {"gaps": 80, "neighbours": 20}),
    Stage(
        30_000, 703, 2e-3,
        {"asked": 30, "pairs": 12, "gaps": 8, "drill": 18, "holding": 12, "owning": 12, "comparing": 4, "moving": 4},
    ),
    Stage(16_000, 704, 2e-3, {"phrases": 60, "gaps": 8, "asked": 20, "pairs": 12}),
    Stage(
        50_000, 705, 2e-3,
        {"phrases": 4, "asked": 18, "pairs": 4, "drill": 20, "holding": 10, "owning": 12, "comparing": 8, "ordering": 2,
         "moving": 5, "listing": 9, "odd_one": 7, "ranging": 10, "facts": 7, "story": 3},
        rows=4,
    ),
    Stage(
        21_000, 706, 1.5e-3,
        {"listing": 21, "odd_one": 17, "ranging": 18, "facts": 16, "drill": 9, "asked": 6, "owning": 5, "comparing": 5,
         "holding": 3},
        rows=4,
    ),
    Stage(
        12_000, 707, 1.5e-3,
        {"ranging": 36, "odd_one": 12, "listing": 14, "drill": 14, "facts": 6, "asked": 7, "owning": 6, "comparing": 5},
        rows=4,
    ),
)  # fmt: skip
"""What made the weights that ship (README.md)."""
NEW = ("--shape", str(HERE / "config.json"), "--tokenizer", str(HERE), "--init", "mimetic", "--init-std", "0.05")
"""The model that the first stage starts from."""
SETTINGS = (
    "--max-length", "512", "--warmup", "100", "--val", "200", "--eval-every", "250", "--dtype", "float32",
)  # fmt: skip
"""What all stages have in common."""


def commands(out: Path) -> Iterator[tuple[Stage, Path, list[str]]]:
    """Every stage, the file of its text, and the words behind ``minitune`` that train it, from the stage before."""
    for number, stage in enumerate(STAGES, 1):
        text, run = out / f"stage-{number}.jsonl", out / f"stage-{number}"
        start = ["--model", str(out / f"stage-{number - 1}")] if number > 1 else NEW
        yield stage, text, ["pretrain", *start, "--data", str(text), *stage.settings, *SETTINGS, "--out", str(run)]


def make_model(out: Path) -> int:
    """Run all stages, those that are done left out; the last one's folder is the model.

    Every validation goes to ``curve.jsonl``. Another processor or number of threads gives other bits.
    """
    out.mkdir(parents=True, exist_ok=True)
    for stage, text, words in commands(out):
        run = Path(words[-1])
        if (run / "result.json").is_file():
            continue
        write_documents(text, stage.documents, stage.seed, stage.shares)
        print(f"minitune {' '.join(words)}", file=sys.stderr)
        if code := cli(["pretrain", "--resume", str(run)] if run.is_dir() else words):
            return code
    write_text(out / "curve.jsonl", "".join(json.dumps(line) + "\n" for line in curve(out)))
    return 0


def curve(out: Path) -> Iterator[dict[str, float]]:
    """Every validation of every stage, with the tokens trained on until then in that stage."""
    for number in range(1, len(STAGES) + 1):
        tokens = 0
        for text in (out / f"stage-{number}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            tokens += line.get("trained_tokens", 0)  # step 0 is a validation only
            if "val_loss" in line:
                found = {key: round(line[key], 4) for key in ("loss", "val_loss") if key in line}
                yield {"stage": number, "step": line["step"], "tokens": tokens, **found}


def main() -> None:
    """Make one of the parts."""
    parser = argparse.ArgumentParser(
        prog="python -m minitune.assets.tiny.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("tokenizer", "rows", "model", "text", "measure"))
    parser.add_argument("--out", type=Path, help="the file of a text, the folder of a model's stages")
    parser.add_argument("--documents", type=int, default=20_000, help="how many documents a text has")
    parser.add_argument("--seed", type=int, default=1, help="the seed of a text, from 1; 0 is held out")
    parser.add_argument("--shares", type=json.loads, help='which documents, how often: {"pairs": 70, "drill": 30}')
    parser.add_argument("--model", default="tiny", help="whose loss is measured")
    args = parser.parse_args()
    if args.part == "tokenizer":
        make_tokenizer()
    elif args.part == "rows":
        write_instructions(HERE / "rows.jsonl", ROWS, seed=0)
    elif args.part == "measure":
        measure(args)
    elif args.out is None or args.seed < 1:
        parser.error(f"{args.part} needs --out; a text has a --seed from 1")
    elif args.part == "model":
        sys.exit(make_model(args.out))
    else:
        write_documents(args.out, args.documents, args.seed, args.shares)


if __name__ == "__main__":
    main()
