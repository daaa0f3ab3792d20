"""Makes what lies beside it: a tokenizer trained on the rows of the tiny world, the rows, and untrained weights.

    python minitune/assets/tiny/make.py
"""

from pathlib import Path

import sentencepiece

from minitune.chat import TEMPLATES, Field, Text
from minitune.checkpoint import save_checkpoint
from minitune.config import ModelConfig
from minitune.data.world import instructions, write_instructions
from minitune.files import write_json
from minitune.models import LanguageModel, build

HERE = Path(__file__).parent
SHAPE = ModelConfig(
    vocab_size=448,
    hidden_size=64,
    intermediate_size=176,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=512,
    tie_embeddings=True,
)


def text_of(row: dict[str, str]) -> str:
    """A row as the Alpaca template writes it, for the tokenizer to be trained on."""
    template = TEMPLATES["alpaca"]
    values = {"content": row["instruction"], "context": row["input"]}
    segments = template.user_with_context if row["input"] else template.user
    prompt = "".join(s.text if isinstance(s, Text) else values[s.name] for s in segments if isinstance(s, Text | Field))
    return prompt + row["output"]


def main() -> None:
    """Write the tokenizer, the rows and the weights."""
    write_instructions(HERE / "rows.jsonl", 1200)
    corpus = [line for row in instructions(4000, seed=1) for line in text_of(row).split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=SHAPE.vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (HERE / "tokenizer.vocab").unlink()
    model = build(SHAPE)
    model.initialize(seed=0, std=0.08)
    write_folder(model)


def write_folder(model: LanguageModel) -> None:
    """Put the weights and both configurations beside the tokenizer."""
    built = HERE / "built"
    save_checkpoint(model, built)
    for file in built.iterdir():
        file.replace(HERE / file.name)
    built.rmdir()
    write_json(HERE / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


if __name__ == "__main__":
    main()
