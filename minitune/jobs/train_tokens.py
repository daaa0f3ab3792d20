"""``--train-tokens``: the control tokens of a chat template get rows that are trained, and are added where they lack.

LoRA leaves embedding and head as they are. A base model that has never seen ``<|im_end|>`` then cannot end an answer
with it, however long it is tuned. With ``--method full`` all rows are trained anyway; then tokens are only added.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minitune.adapters import add_token_rows
from minitune.chat import AnyTemplate, Template, missing_tokens
from minitune.files import cache_folder, code_fingerprint, sha256
from minitune.jobs.prepared import Prepared
from minitune.models import LanguageModel
from minitune.tokenizer import Tokenizer
from minitune.tokenizer.extend import extended


def with_template_tokens(
    tokenizer: Tokenizer, template: AnyTemplate, place: Path, model: LanguageModel | None = None
) -> tuple[Tokenizer, Path]:
    """The tokenizer with every control token that ``template`` needs, and where it can be loaded from.

    Both stay what they are (``place`` is where the tokenizer came from) where none lacks. ``model`` gets rows for the
    new ids, unless it has some to spare.
    """
    names = missing_tokens(template, tokenizer)
    if not names:
        return tokenizer, place
    key = [names, [(file.name, sha256(file)) for file in tokenizer.files], code_fingerprint()]
    folder = cache_folder() / "tokenizers" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    try:
        made = extended(tokenizer, names, folder)
    except OSError:  # nowhere to keep it
        folder = Path(tempfile.mkdtemp(prefix="minitune-")) / "tokenizer"
        made = extended(tokenizer, names, folder)
    if model is not None and made.vocab_size > model.config.vocab_size:
        model.resize(made.vocab_size)
    return made, folder


def train_template_rows(
    model: LanguageModel, tokenizer: Tokenizer, template: AnyTemplate, prepared: Sequence[Prepared]
) -> tuple[str, str]:
    """Train the rows of the template's control tokens, and of all others that stand in the examples; after LoRA.

    Returns their names, and how many there are, in words.
    """
    named = template.tokens if isinstance(template, Template) else ()
    there = {id for name in named if (id := tokenizer.token_id(name)) is not None}
    ids = sorted(there.union(control_ids_of(prepared, tokenizer)))
    tables = add_token_rows(model, ids)
    where = "embedding and head are one" if model.config.tie_embeddings else "in embedding and head"
    count = sum(rows.values.numel() for rows in set(tables.values()))
    return " ".join(map(tokenizer.token, ids)), f"their rows are trained: {count:,} parameters, {where}"


def control_ids_of(prepared: Sequence[Prepared], tokenizer: Tokenizer) -> list[int]:
    """The control ids that stand in the examples, in ascending order."""
    return sorted({id for one in prepared for id in one.store.used_ids()} & tokenizer.control_ids)
