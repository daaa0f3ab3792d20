"""What a model folder is, found out by loading it."""

from dataclasses import dataclass
from typing import Any

import torch

from minitune.adapters import LoRAConfig, add_lora, load_adapter
from minitune.adapters.token_rows import token_rows
from minitune.chat import template_for
from minitune.checkpoint import Checkpoint, load_checkpoint
from minitune.errors import ConfigError, TokenizerError
from minitune.jobs.load import Source, resolve, tokenizer_of
from minitune.memory_plan import inference_bytes

# Weight, gradient and two moments, four bytes each.
TRAINED_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What ``minitune info`` prints; memory is for float32 weights, gradients and optimizer, without activations."""

    folder: str
    family: str
    shape: dict[str, Any]
    parameters: int
    dtypes: dict[str, int]
    tokenizer: str
    vocab_size: int | None
    bos_id: int | None
    stop_ids: tuple[int, ...]
    template: str
    tensors: dict[str, int]
    shared: dict[str, str]
    adapter: str | None
    memory_bytes: dict[str, int]


def describe(name: str) -> Facts:
    """Load the model behind ``name`` and say what it is; raises where anything in it is missing, unused or wrong."""
    source = resolve(name)
    checkpoint = load_checkpoint(source.base)
    model, proof = checkpoint.model, checkpoint.certificate
    config = model.config
    parameters = sum(w.numel() for w in model.parameters())
    run_bytes = inference_bytes(model, torch.float32)
    if source.adapter is not None:
        lora = load_adapter(model, source.adapter)
    else:
        lora = LoRAConfig()
        add_lora(model, lora)
    kind, ids, bos, template = _tokenizer(checkpoint, source)
    tokens = {int(id) for rows in token_rows(model).values() for id in rows.ids}
    added = sum(w.numel() for w in model.parameters() if w.requires_grad)
    adapted = f"LoRA, rank {lora.rank}, alpha {lora.alpha:g}, {added:,} parameters"
    adapted += f", with the rows of {len(tokens)} tokens" if tokens else ""
    return Facts(
        folder=str(source.base),
        family=str(checkpoint.raw.get("model_type")),
        shape={
            "layers": config.num_layers,
            "hidden": config.hidden_size,
            "heads": config.num_heads,
            "kv heads": config.num_kv_heads,
            "head dim": config.head_dim,
            "ffn": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "positions": config.max_positions,
            "tied": config.tie_embeddings,
        },
        parameters=parameters,
        dtypes=dict(proof.dtypes),
        tokenizer=kind,
        vocab_size=ids,
        bos_id=bos,
        stop_ids=model.stop_ids,
        template=template,
        tensors={"used": len(proof.used), "recomputed": len(proof.recomputed)},
        shared=dict(proof.shared),
        adapter=f"{source.adapter} ({adapted})" if source.adapter else None,
        memory_bytes={
            "run": run_bytes,
            "LoRA-tune": parameters * 4 + added * TRAINED_BYTES,
            "fully tune": parameters * TRAINED_BYTES,
        },
    )


def _tokenizer(checkpoint: Checkpoint, source: Source) -> tuple[str, int | None, int | None, str]:
    """Kind, number of ids, start id and chat template; the reason in place of the kind where it cannot be read."""
    try:
        tokenizer = tokenizer_of(checkpoint, source)
    except TokenizerError as error:
        return f"none that can be used ({error})", None, None, "none without a tokenizer"
    try:
        template, why = template_for(tokenizer)
        described = f"{template.name} ({why})"
    except ConfigError as error:
        described = f"none that can be used ({error})"
    return type(tokenizer).__name__, tokenizer.vocab_size, tokenizer.bos_id, described
