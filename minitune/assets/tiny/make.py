"""Makes what the tiny model is made of: its tokenizer, its text and its rows; its weights are ``minitune pretrain``'s.

    python -m minitune.assets.tiny.make tokenizer                   the sentencepiece model
    python -m minitune.assets.tiny.make rows                        rows.jsonl, instructions to tune the model with
    python -m minitune.assets.tiny.make text --out FILE             documents for minitune pretrain
    python -m minitune.assets.tiny.make measure [--model MODEL]     the loss on text that is never trained on

Everything is seeded. The first two are written beside this file. README.md there says how what ships was made.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from minitune.chat import ALPACA, Message
from minitune.chat.script import Kind, script
from minitune.data.batch import Batch, pad_rows
from minitune.data.world import documents, vocabulary, write_instructions
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


def write_documents(args: argparse.Namespace) -> None:
    """Documents as JSON Lines of ``text``, for ``minitune pretrain``."""
    made = documents(args.documents, seed=args.seed, shares=args.shares)
    write_text(args.out, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in made))


def main() -> None:
    """Make one of the parts."""
    parser = argparse.ArgumentParser(
        prog="python -m minitune.assets.tiny.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("tokenizer", "rows", "text", "measure"))
    parser.add_argument("--out", type=Path, help="the file of a text")
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
        parser.error("a text needs --out FILE and a --seed from 1")
    else:
        write_documents(args)


if __name__ == "__main__":
    main()
