"""Makes the tiny base model, its tokenizer and its rows, from the text of the small world.

    python -m minitune.assets.tiny.make tokenizer                  the sentencepiece model
    python -m minitune.assets.tiny.make rows                       rows.jsonl, instructions to tune the model with
    python -m minitune.assets.tiny.make pretrain [--tokens 40e6]   the weights; the loss curve goes to curve.jsonl
    python -m minitune.assets.tiny.make text --out FILE            documents for minitune pretrain

Everything is seeded. The first three are written beside this file, the weights into ``--out`` where that is given.
README.md there says how what ships was made.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from minitune.chat import ALPACA, Message
from minitune.chat.script import Kind, script
from minitune.checkpoint import load_checkpoint, save_checkpoint
from minitune.config import ModelConfig
from minitune.data.batch import Batch
from minitune.data.world import documents, vocabulary, write_instructions
from minitune.data.world.words import CHINESE, LANGUAGES
from minitune.files import write_json, write_text
from minitune.models import LanguageModel, build
from minitune.ops import IGNORE, rows_plan
from minitune.optim import AdamW, learning_rate
from minitune.tokenizer import load_tokenizer
from minitune.train import Validation, evaluate, train

HERE = Path(__file__).parent
SHAPE = ModelConfig(
    vocab_size=1536,
    hidden_size=128,
    intermediate_size=352,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=512,
    tie_embeddings=True,
)
ROWS = 2400
CHUNK = 20_000
"""Documents that one process makes at a time; a chunk's seed is its number, and chunk 0 is held out."""
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
    """Train a BPE of ``SHAPE.vocab_size`` pieces on text of the world, every word of it, and the words of the template.

    No space is put before a text, so that a Chinese word is the same piece at its start and inside it; an English word
    of the lexicon is one piece both at the start of a line and after a space.
    """
    template = alpaca_lines()
    alone = [f"{space}{word}" for words in LANGUAGES for word in words.lexicon() for space in ("", " ")]
    corpus = [*vocabulary(), *documents(CHUNK, seed=1), *(template * 300), *(alone * 100)]
    pieces = [piece for text in corpus for line in text.split("\n") for piece in split_chinese(line)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(pieces),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=SHAPE.vocab_size,
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


# ---- batches


def chunk_of_ids(number: int, shares: dict[str, float] | None = None) -> list[np.ndarray]:
    """The documents of one chunk, each as ``bos ids eos``; runs in a process of its own."""
    tokenizer = load_tokenizer(HERE)
    assert tokenizer.bos_id is not None
    assert tokenizer.eos_id is not None
    ends = tokenizer.bos_id, tokenizer.eos_id
    texts = documents(CHUNK, seed=number, shares=shares)
    return [np.array([ends[0], *tokenizer.encode(text), ends[1]], np.int16) for text in texts]


def padded(rows: list[np.ndarray], device: torch.device) -> Batch:
    """Rows under each other, each token the target of the one before it."""
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    targets = np.full((len(rows), longest), IGNORE, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = targets[i, : len(row)] = row
    return Batch(
        ids=torch.from_numpy(ids[:, :-1].copy()).to(device),
        targets=torch.from_numpy(targets[:, 1:].copy()).to(device),
        plan=rows_plan(len(rows), longest - 1, device),
        tokens=sum(len(row) - 1 for row in rows),
    )


def batches(rows: list[np.ndarray], tokens: int, rng: random.Random) -> list[list[np.ndarray]]:
    """Rows of about the same length together, ``tokens`` of them and their padding, in any order."""
    rng.shuffle(rows)
    rows.sort(key=len)
    out: list[list[np.ndarray]] = [[]]
    for row in rows:
        if len(out[-1]) * len(row) > tokens:
            out.append([])
        out[-1].append(row)
    rng.shuffle(out)
    return out


def stream(args: argparse.Namespace, device: torch.device) -> Iterator[list[Batch]]:
    """Endless batches: chunk after chunk, made ahead by other processes."""
    rng = random.Random("minitune tiny")
    tokens, first, ahead_of = args.batch_tokens, args.chunk, 2 * args.processes
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead = [pool.submit(chunk_of_ids, number, args.shares) for number in range(first, first + ahead_of)]
        for number in itertools.count(first + ahead_of):
            rows = ahead.pop(0).result()
            ahead.append(pool.submit(chunk_of_ids, number, args.shares))
            for batch in batches(rows, tokens, rng):
                yield [padded(batch, device)]


# ---- the weights


def pretrain(args: argparse.Namespace) -> None:
    """Train the base model and put it beside the tokenizer; the loss curve goes to ``curve.jsonl``.

    Both are written at each look at the held-out text, so that what was stopped has not been for nothing.
    """
    device = torch.device(args.device)
    out: Path = args.out
    held_out = [padded(b, device) for b in batches(chunk_of_ids(0)[:1000], 16_384, random.Random(0))]
    if args.start:
        model = load_checkpoint(args.start, device=device, dtype=torch.float32).model
    else:
        model = build(SHAPE).to(device)
        model.initialize(seed=0, std=0.05)
    optimizer = AdamW(dict(model.named_parameters()), betas=(0.9, 0.95), weight_decay=0.1)
    steps = math.ceil(args.tokens / args.batch_tokens / 0.95)  # a batch holds a little padding
    start, seen, curve = time.perf_counter(), 0, []

    def validate(done: int) -> Validation | None:
        return evaluate(model, held_out) if done % args.every == 0 or done == steps else None

    def rate(step: int) -> float:
        return learning_rate(step, steps, peak=args.lr, warmup=args.warmup, schedule="cosine")

    work = itertools.islice(stream(args, device), steps)
    for report in train(model, optimizer, work, lr=rate, validate=validate):
        seen += report.tokens
        if report.validation is None:
            continue
        line = {
            "step": report.step,
            "tokens": seen,
            "loss": round(report.loss, 4),
            "held_out_loss": round(report.validation.loss, 4),
            "seconds": round(time.perf_counter() - start, 1),
        }
        curve.append(line)
        print(json.dumps(line), flush=True)
        write_text(out / "curve.jsonl", "".join(json.dumps(line) + "\n" for line in curve))
        write_folder(model, out)


def write_folder(model: LanguageModel, out: Path) -> None:
    """Put the weights and both configurations into ``out``, beside whatever is there."""
    built = out / "built"
    save_checkpoint(model, built)
    for file in built.iterdir():
        file.replace(out / file.name)
    built.rmdir()
    write_json(out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def write_documents(args: argparse.Namespace) -> None:
    """Documents as JSON Lines of ``text``, for ``minitune pretrain``."""
    made = documents(args.documents, seed=args.chunk, shares=args.shares)
    write_text(args.out, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in made))


def main() -> None:
    """Make one of the parts."""
    parser = argparse.ArgumentParser(prog="python -m minitune.assets.tiny.make", description=__doc__)
    parser.add_argument("part", choices=("tokenizer", "rows", "pretrain", "text"))
    parser.add_argument("--tokens", type=float, default=40e6, help="how many tokens to train on")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens of an optimizer step, padding counted")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--every", type=int, default=250, help="steps from one look at the held-out text to the next")
    parser.add_argument("--warmup", type=int, default=200, help="steps on which the learning rate rises")
    parser.add_argument("--start", type=Path, help="folder of weights to go on from; by itself from random ones")
    parser.add_argument("--shares", type=json.loads, help='which documents, how often: {"reversed": 70, "drill": 30}')
    parser.add_argument("--chunk", type=int, default=1, help="the first chunk of text, from 1; the seed of a text")
    parser.add_argument("--documents", type=int, default=CHUNK, help="how many documents a text has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="processes that write text")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the weights and the loss curve")
    args = parser.parse_args()
    if args.part == "tokenizer":
        make_tokenizer()
    elif args.part == "text":
        write_documents(args)
    elif args.part == "rows":
        write_instructions(HERE / "rows.jsonl", ROWS, seed=0)
    else:
        pretrain(args)


if __name__ == "__main__":
    main()
