"""Makes the tiny model: tokenizer, rows, text, and by ``minitune pretrain``, stage after stage, its weights.

    python -m minitune.assets.tiny.make tokenizer                   the sentencepiece model
    python -m minitune.assets.tiny.make rows                        rows.jsonl, instructions to tune the model with
    python -m minitune.assets.tiny.make model --start DIR --out DIR the weights, from those of stage 0, in half an hour
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
    many and of which seed, and the peak learning rate."""

    documents: int
    seed: int
    lr: float
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))


STAGES = (
    # To look up is learned from documents that ask for nothing else, then from all kinds, then from what is weak.
    Stage(20_000, 601, 2.5e-3, {"copying": 35, "pairs": 45, "asked": 20}),
    Stage(40_000, 602, 2.2e-3),
    Stage(
        17_000, 603, 1.5e-3,
        {"asked": 10, "drill": 14, "comparing": 5, "holding": 18, "owning": 6, "moving": 4, "listing": 8,
         "odd_one": 10, "ranging": 16, "facts": 6, "story": 3},
    ),
    Stage(
        16_000, 604, 2e-3,
        {"asked": 28, "drill": 30, "comparing": 12, "holding": 10, "owning": 6, "listing": 4, "odd_one": 4,
         "ranging": 4, "facts": 2},
    ),
    Stage(
        18_000, 605, 1.5e-3,
        {"asked": 10, "drill": 16, "comparing": 12, "owning": 20, "holding": 8, "moving": 3, "listing": 3,
         "odd_one": 12, "ranging": 14, "facts": 4},
    ),
    Stage(
        14_000, 606, 1.5e-3,
        {"asked": 10, "drill": 15, "comparing": 8, "owning": 4, "holding": 6, "listing": 4, "odd_one": 13,
         "ranging": 36, "facts": 4},
    ),
)  # fmt: skip
"""What made the weights that ship out of those of stage 0 (README.md)."""
SETTINGS = (
    "--batch-size", "4", "--max-length", "512", "--warmup", "30", "--val", "200", "--eval-every", "100",
    "--dtype", "float32",
)  # fmt: skip
"""What all stages have in common; four rows of 512 tokens a step."""


def commands(start: Path, out: Path) -> Iterator[tuple[Stage, Path, list[str]]]:
    """Every stage, the file of its text, and the words behind ``minitune`` that train it, from the stage before."""
    for number, stage in enumerate(STAGES, 1):
        text, run = out / f"stage-{number}.jsonl", out / f"stage-{number}"
        before = out / f"stage-{number - 1}" if number > 1 else start
        words = ["pretrain", "--model", str(before), "--data", str(text), "--lr", str(stage.lr), *SETTINGS]
        words += ["--out", str(run)]
        yield stage, text, words


def make_model(start: Path, out: Path) -> int:
    """Run all stages behind the model in ``start``, those that are done left out; the last one's folder is the model.

    Every validation goes to ``curve.jsonl``. Another processor or number of threads gives other bits.
    """
    for stage, text, words in commands(start, out):
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
    parser.add_argument("--start", type=Path, help="the model folder of stage 0, which the other stages go on from")
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
    elif args.out is None or args.seed < 1 or (args.part == "model" and args.start is None):
        parser.error(f"{args.part} needs --out, a model --start too; a text has a --seed from 1")
    elif args.part == "model":
        sys.exit(make_model(args.start, args.out))
    else:
        write_documents(args.out, args.documents, args.seed, args.shares)


if __name__ == "__main__":
    main()
