"""Every tokenizer against its reference library: are the ids equal, how many megabytes a second, how long to load.

    python -m bench.tokenizer [--quick] [--mb 10] [--only WORD]

Three tables: *ours = reference* on published vectors, on seeded random strings and on every document of the corpus;
megabytes a second on the corpus, English and Chinese in turns, one thread, beside the reference's fastest call; seconds
to load: the first time, in a fresh process with all that it imports, and again. Rows go to
``bench/results/tokenizer.jsonl``, the table to ``tokenizer.md`` beside it (not with ``--quick`` or ``--only``). Real
files come from the folder that MINITUNE_MATERIAL names; where it is absent a vocabulary is trained here on text from a
seeded generator.

The reference is ``tokenizers`` (``transformers`` where a vocabulary is two files), asked to leave typed control tokens
as text, as is the rule here. It is built from the pieces and scores of a sentencepiece file, and given normalised text
when ids are compared, as its normaliser is known to differ. Where words share a score no list of merges says what
sentencepiece does, so there the reference is the ``sentencepiece`` library, which also runs here, word by word.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
import tokenizers
import torch

from bench.measure import CHECKOUT, RESULTS, append, environment
from minitune.files import write_text
from minitune.tokenizer import Tokenizer, load_tokenizer
from minitune.tokenizer.sentencepiece_proto import NORMAL, UNIGRAM, read_model

Encoder = Callable[[Sequence[str]], list[list[int]]]
SPACE = "\u2581"
# Published files, below tokenizers/ unless they start with weights/; after "|" a folder's files that are taken alone.
PUBLISHED = {
    "GPT-2": "gpt2/tokenizer.json",
    "GPT-2, two files": "gpt2|vocab.json merges.txt",
    "Pythia (GPT-NeoX)": "gpt-neox/20B_tokenizer.json",
    "SmolLM2": "smollm2/tokenizer_clean.json",
    "SmolLM2, with [PAD]": "smollm2/tokenizer.json",
    "SmolLM2, two files": "smollm2|vocab.json merges.txt",
    "Qwen2": "qwen2/tokenizer.json",
    "Qwen2, two files": "qwen2|vocab.json merges.txt tokenizer_config.json added_tokens.json",
    "MiniMind": "minimind/tokenizer.json",
    "Llama 3": "llama3/tokenizer.json",
    "Llama 3, rank file": "llama3/tokenizer.model",
    "TinyStories-656K": "weights/TinyStories-656K/tokenizer.json",
    "stories260K": "weights/stories260K/hf/tokenizer.model",
    "Llama 2": "llama2/tokenizer.model",
    "Llama 2 Chinese": "llama2-zh/tokenizer.model",
    "meng (llama2.c Chinese)": "llama2-zh/meng.model",
    "T5": "t5/spiece.model",
}
VECTORS = {"GPT-2": "gpt2", "Qwen2": "qwen2", "Llama 3": "llama3", "Llama 2": "llama2", "T5": "t5"}
VECTORS |= {"GPT-2, two files": "gpt2", "Qwen2, two files": "qwen2", "Llama 3, rank file": "llama3"}
STRETCHES = [
    "the cat", "Once upon a time", "\u4f60\u597d\uff0c\u4e16\u754c", "\u9f98", "\u3053\u3093\u306b\u3061\u306f",
    "\uc548\ub155", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\uff11\uff12\uff13", "e\u0301", "n\u0303o", "\ufb01n", "\u00bd", "\u00b2", "\u2163",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f44d\U0001f3fd",
    "\r\n", "\n", "\n\n\n", "\t", "\x1c", "\xa0", "\xa0\xa0", "\u3000", " ", "  ", "     ", "\u200b", "\x00", "\x7f",
    SPACE, "\ufffd", "\ufeff", "123", "4.5e-6", "def f(x):\n\treturn x", "don't", "I'll", "http://a.b/?c=d&e",
    "<0x0A>", "<|", "|>", "[/", "</", "aaaaaaaa", "========", "\U0010fffd",
]  # fmt: skip


def random_texts(seed: int, count: int, words: Sequence[str] = (), *, assigned: bool = False) -> list[str]:
    """Return seeded texts: stretches of many scripts, words of a vocabulary, and characters from anywhere.

    ``assigned``: only characters that Python's table of Unicode knows. The engines carry tables of different ages, and
    what one of them does not know yet it puts in another class.
    """
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 8)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(STRETCHES))
            elif kind < 0.85 and words:
                parts.append(rng.choice(words).replace(SPACE, " "))
            else:
                top = rng.choice([0x7F, 0x24F, 0x9FFF, 0x10FFFF])
                codes = (rng.randint(1, top) for _ in range(rng.randint(1, 3)))
                parts.append("".join("?" if 0xD800 <= code < 0xE000 else chr(code) for code in codes))
        texts.append(rng.choice(["", " "]).join(parts))
    if assigned:
        texts = ["".join(c for c in text if unicodedata.category(c) != "Cn") for text in texts]
    return texts


def material() -> Path | None:
    """The folder of real files, where there is one."""
    folder = Path(os.environ.get("MINITUNE_MATERIAL") or CHECKOUT.parent / "shared" / "material")
    return folder if folder.is_dir() else None


def corpus(size: int, folder: Path | None) -> list[str]:
    """Documents of ``size`` bytes in all, English and Chinese in turns: instructions, stories, plays, poems."""
    if folder is None:
        sources = [_made(1, "en"), _made(2, "zh")]
    else:
        data = folder / "data"
        english = [_strings(data / "en" / "alpaca.json"), _strings(data / "text" / "tinystories_1000.json")]
        english += [
            _cut((data / "text" / f"{name}.txt").read_text("utf-8")) for name in ("sherlock", "tinyshakespeare")
        ]
        chinese = [_strings(data / "zh" / "alpaca_zh.json"), _strings(data / "text" / "tang_poems_0.json")]
        sources = [chain.from_iterable(_turns(english)), chain.from_iterable(_turns(chinese))]
    documents, total = [], 0
    for text in chain.from_iterable(zip(*sources, strict=False)):
        documents.append(text)
        total += len(text.encode("utf-8"))
        if total >= size:
            return documents
    return documents * (size // total + 1) if total else documents


def _turns(sources: list[Iterator[str]]) -> Iterator[tuple[str, ...]]:
    """Four documents of the first source to one of each other, as long as the first lasts."""
    while first := tuple(islice(sources[0], 4)):
        yield first + tuple(chain(*(islice(source, 1) for source in sources[1:])))


def _strings(path: Path) -> Iterator[str]:
    """The text of each row of a JSON file: its strings, a line each."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row in rows if isinstance(rows, list) else rows.values():
        yield (
            row
            if isinstance(row, str)
            else "\n".join(
                value if isinstance(value, str) else "\n".join(map(str, value)) for value in row.values() if value
            )
        )


def _cut(text: str, size: int = 3000) -> Iterator[str]:
    yield from (text[i : i + size] for i in range(0, len(text), size))


def _made(seed: int, language: str) -> Iterator[str]:
    """Documents of made-up words, frequent ones often, as in a language."""
    rng = random.Random(seed)
    alphabet = "etaoinshrdlucmfwypvbgk" if language == "en" else [chr(c) for c in range(0x4E00, 0x5A00)]
    longest, between = (9, " ") if language == "en" else (3, "")
    words = ["".join(rng.choices(alphabet, k=rng.randint(1, longest))) for _ in range(8000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    while True:
        text = between.join(rng.choices(words, weights, k=rng.randint(30, 300)))
        yield text + rng.choice([".\n", "!", "\u3002", f" {rng.randint(0, 9999)}\n"])


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference library's tokenizer. ``exact`` gets the text as the file normalises it, where that is apart.

    ``score``: of a cut, where the best of all cuts is wanted: two of the same score are a tie, and both are right.
    The same means to single precision, in which sentencepiece adds where ``tokenizers`` adds in double.
    """

    name: str
    encode: Encoder
    exact: Encoder
    load: Callable[[], object]
    score: Callable[[Sequence[int]], float] | None = None


def reference_of(path: Path) -> Reference:
    """The reference for a tokenizer file or folder."""
    if path.is_dir():
        import transformers

        kind = transformers.Qwen2Tokenizer if (path / "tokenizer_config.json").exists() else transformers.GPT2Tokenizer
        load = lambda: kind.from_pretrained(path)  # noqa: E731
        encode = _encoder(load().backend_tokenizer)
        return Reference(name="transformers", encode=encode, exact=encode, load=load)
    if path.suffix == ".json" or path.parent.name == "llama3":
        path = path.with_suffix(".json")
        encode = _encoder(without_special_merges(path))
        return Reference(
            name="tokenizers", encode=encode, exact=encode, load=lambda: tokenizers.Tokenizer.from_file(str(path))
        )
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    load = lambda: sentencepiece.SentencePieceProcessor(model_file=str(path))  # noqa: E731
    built = of_model(path)
    if built is None:
        encode = lambda texts: [library.encode(text) for text in texts]  # noqa: E731
        return Reference(name="sentencepiece", encode=encode, exact=encode, load=load)
    plain = _encoder(tokenizers.Tokenizer.from_str(built.to_str()))
    exact = lambda texts: plain([library.normalize(text) for text in texts])  # noqa: E731
    built.normalizer = normalizer_of(path)
    encode = _encoder(built)
    unigram = isinstance(built.model, tokenizers.models.Unigram)
    score = (lambda ids: sum(map(library.get_score, ids))) if unigram else None
    return Reference(name="tokenizers, built", encode=encode, exact=exact, load=load, score=score)


def _encoder(made: tokenizers.Tokenizer) -> Encoder:
    made.encode_special_tokens = True
    made.no_padding()
    made.no_truncation()
    return lambda texts: [e.ids for e in made.encode_batch_fast(list(texts), add_special_tokens=False)]


def without_special_merges(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a ``tokenizer.json`` by the library, without merges that make a special token, as is ours."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    special = {entry["content"] for entry in spec["added_tokens"] if entry["special"]}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"]["merges"]]
    spec["model"]["merges"] = [pair for pair in pairs if "".join(pair) not in special]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def of_model(path: Path) -> tokenizers.Tokenizer | None:
    """A sentencepiece file in the ``tokenizers`` library, for normalised text; None where words share a score."""
    info = read_model(path.read_bytes())
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    scores = [library.get_score(i) for i in range(len(info.pieces))]
    if info.model_type == UNIGRAM:
        pieces = [(piece, score) for (piece, _), score in zip(info.pieces, scores, strict=True)]
        return tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, library.unk_id(), info.byte_fallback))
    usable = {piece: i for i, (piece, kind) in enumerate(info.pieces) if kind == NORMAL}
    merges, tied = [], dict[float, set[str]]()
    for piece, i in usable.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in usable and right in usable:
                merges.append((-scores[i], usable[left], usable[right], (left, right)))
                tied.setdefault(scores[i], set()).add("".join(sorted(set(piece))))
    if any(len(characters) > 1 for characters in tied.values()):  # runs of spaces do share one, and may
        return None
    model = tokenizers.models.BPE(
        {piece: i for i, (piece, _) in enumerate(info.pieces)},
        [pair for *_, pair in sorted(merges)],
        unk_token=info.pieces[library.unk_id()][0],
        fuse_unk=True,
        byte_fallback=info.byte_fallback,
    )
    return tokenizers.Tokenizer(model)


def normalizer_of(path: Path) -> tokenizers.normalizers.Normalizer:
    """What a sentencepiece file does to a text first, in the ``tokenizers`` library."""
    from tokenizers import normalizers

    info = read_model(path.read_bytes())
    steps: list[Any] = [normalizers.Precompiled(info.charsmap)] if info.charsmap else []
    if info.removes_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if info.dummy_prefix else []
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def found(folder: Path | None, scratch: Path, documents: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Name and path of every tokenizer to look at."""
    if folder is None:
        path = scratch / "tokenizer.json"
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(documents[:3000], trainer)
        made.save(str(path))
        yield "byte-level, trained here", path
        return
    for name, place in PUBLISHED.items():
        where, _, files = place.partition("|")
        path = folder / where if where.startswith("weights/") else folder / "tokenizers" / where
        if files:  # a folder of its own, in which only these files lie
            alone = scratch / name.replace(" ", "_")
            alone.mkdir()
            for file in files.split():
                (alone / file).write_bytes((path / file).read_bytes())
            path = alone
        yield name, path


def vectors_equal(ours: Tokenizer, name: str, folder: Path | None) -> tuple[int, int]:
    """How many published vectors are equal, control tokens asked for, and how many there are."""
    if folder is None or name not in VECTORS:
        return 0, 0
    cases = json.loads((folder / "vectors" / "tokenization.json").read_text(encoding="utf-8"))[VECTORS[name]]["cases"]
    equal = 0
    for case in cases.values():
        ids = case["ids"][1:] if name == "Llama 2" else case["ids"][:-1] if name == "T5" else case["ids"]
        equal += ours.encode(case["text"], control=True) == ids
    return equal, len(cases)


def compare(
    name: str, ours: Tokenizer, theirs: Reference, folder: Path | None, documents: Sequence[str], texts: int
) -> dict[str, Any]:
    """Are the ids equal? The figures for one tokenizer, with the first text that is not."""
    words = [ours.token_bytes(i).decode("utf-8", "ignore") for i in range(0, ours.vocab_size, 7)]
    strings = random_texts(71, texts, [word for word in words if word], assigned=True)
    row: dict[str, Any] = {"name": name, "reference": theirs.name, "vocab": ours.vocab_size}
    row["vectors"] = vectors_equal(ours, name, folder)
    for key, group in (("random", strings), ("corpus", documents)):
        pairs = list(zip(map(ours.encode, group), theirs.exact(group), strict=True))
        differ = [(text, a, b) for text, (a, b) in zip(group, pairs, strict=True) if a != b]
        real = [text for text, a, b in differ if theirs.score is None or abs(theirs.score(a) - theirs.score(b)) > 1e-3]
        row[key] = (len(pairs) - len(differ), len(pairs))
        row[f"{key}_ties"] = len(differ) - len(real)
        row[f"{key}_first_difference"] = real[0][:200] if real else None
    return row


def all_equal(row: dict[str, Any]) -> bool:
    """Whether every text has the reference's ids, or another cut of the same score."""
    return all(
        equal + row.get(f"{key}_ties", 0) == n for key in ("vectors", "random", "corpus") for equal, n in [row[key]]
    )


def timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def speed(path: Path, ours: Tokenizer, theirs: Reference, documents: Sequence[str], rounds: int) -> dict[str, Any]:
    """Megabytes a second and seconds to load, ours and the reference's in turns: the best round of each.

    Other work on the machine can only make a round slower, so the best one says most about the code. Rates go by the
    seconds of processor time, all threads of the process together; loading goes by the clock on the wall.
    """
    size = sum(len(text.encode("utf-8")) for text in documents) / 1e6
    seconds: dict[str, list[float]] = {"ours": [], "reference": [], "load": [], "reference_load": []}
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: [ours.encode(text) for text in documents],
        "reference": lambda: theirs.encode(documents),
        "load": lambda: load_tokenizer(path),
        "reference_load": theirs.load,
    }
    for i in range(rounds):  # who is first changes from round to round
        for key, call in list(calls.items())[:: -1 if i % 2 else 1]:
            seconds[key].append(timed(call, time.perf_counter if "load" in key else time.process_time))
    best = {key: min(values) for key, values in seconds.items()}
    return {
        "mb": round(size, 2),
        "mb_per_s": round(size / best["ours"], 2),
        "reference_mb_per_s": round(size / best["reference"], 2),
        "first_load_s": round(min(first_load(path) for _ in range(rounds)), 3),
        "load_s": round(best["load"], 3),
        "reference_load_s": round(best["reference_load"], 3),
        "rounds": rounds,
    }


def first_load(path: Path) -> float:
    """Seconds to load in a process of its own, where nothing is kept from before, what it imports included."""
    code = "import sys, time; start = time.perf_counter(); from minitune.tokenizer import load_tokenizer; "
    code += "load_tokenizer(sys.argv[1]); print(time.perf_counter() - start)"
    place = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=place)
    return float(run.stdout)


def line(row: dict[str, Any]) -> str:
    def share(key: str) -> str:
        equal, n = row[key]
        return f"{equal} of {n}" if n else "-"

    ratio = row["mb_per_s"] / row["reference_mb_per_s"]
    return (
        f"{row['name']:25}{row['reference']:19}{share('vectors'):>9}{share('random'):>16}{share('corpus'):>16}"
        f"{row['mb_per_s']:8.2f}{row['reference_mb_per_s']:8.2f}{ratio:7.2f}"
        f"{row['first_load_s']:8.3f}{row['load_s']:8.3f}{row['reference_load_s']:8.3f}"
    )


HEAD = (
    f"{'':25}{'':19}{'ours = reference':>41}{'MB/s':>16}{'':7}{'seconds to load':>24}\n"
    f"{'tokenizer':25}{'reference':19}{'vectors':>9}{'random':>16}{'corpus':>16}"
    f"{'ours':>8}{'ref.':>8}{'ratio':>7}{'first':>8}{'ours':>8}{'ref.':>8}"
)


def ties(row: dict[str, Any]) -> int:
    return row["random_ties"] + row["corpus_ties"]


def tie_line(row: dict[str, Any]) -> str:
    return f"{row['name']}: {ties(row)} of the texts have two best cuts of one score, and each library takes one"


def as_page(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """What was printed, as a page that says where it was measured."""
    versions = ", ".join(f"{name} {about[name]}" for name in ("tokenizers", "tiktoken", "sentencepiece", "python"))
    where = f"`python -m bench.tokenizer`, {rows[0]['mb']:.0f} MB, one thread of {about['device']}, {about['date']}"
    table = "\n".join([HEAD, *map(line, rows), *map(tie_line, filter(ties, rows))])
    return f"{where}, best of {rows[0]['rounds']} rounds in turns; {versions}\n\n```\n{table}\n```\n"


def main() -> None:
    """Print the table; write the rows of a full run; exit 1 where ids differ."""
    parser = argparse.ArgumentParser(prog="python -m bench.tokenizer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 random strings, 0.5 MB, one round, nothing written")
    parser.add_argument("--mb", type=float, default=10.0, help="size of the corpus in megabytes")
    parser.add_argument("--only", default="", help="only names that hold this word; nothing is written")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    texts, rounds, size = (200, 1, 0.5) if args.quick else (10_000, 3, args.mb)
    folder = material()
    documents = corpus(int(size * 1e6), folder)
    about = environment(torch.device("cpu")) | {
        "tokenizers": tokenizers.__version__,
        "tiktoken": tiktoken.__version__,
        "sentencepiece": sentencepiece.__version__,
        "unicode": unicodedata.unidata_version,
    }
    print(HEAD, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in found(folder, Path(scratch), documents):
            if args.only in name:
                ours, theirs = load_tokenizer(path), reference_of(path)
                row = compare(name, ours, theirs, folder, documents, texts)
                rows.append(row | speed(path, ours, theirs, documents, rounds))
                print(line(rows[-1]), flush=True)
    if not args.quick and not args.only:
        append(RESULTS / "tokenizer.jsonl", [row | about for row in rows])
        write_text(RESULTS / "tokenizer.md", as_page(rows, about))
    print(*map(tie_line, filter(ties, rows)), sep="\n")
    different = [row for row in rows if not all_equal(row)]
    sys.exit(f"ids differ: {', '.join(row['name'] for row in different)}" if different else 0)


if __name__ == "__main__":
    main()
