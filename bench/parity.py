"""Every family against the reference library, on tiny random models with every flag on.

    python -m bench.parity

For each case: a model of random weights is made and saved by ``transformers``, loaded here, and asked for the logits,
the gradient of the loss with respect to every parameter, and cached decoding, all in float32. The table says how far
they are apart, relative to the largest value of the reference.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitune.checkpoint import load_checkpoint
from minitune.models import LanguageModel
from minitune.models.cache import KVCache
from minitune.models.published import stored_tensors, to_layout
from minitune.ops import BUILTIN, IGNORE, Ops

TOKENS = 24
LOGIT_LIMIT, GRADIENT_LIMIT, CACHE_LIMIT = 1e-4, 1e-3, 1e-4

_LLAMA: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GPT2 = {
    "vocab_size": 61, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Case:
    """One configuration of one family, as keyword arguments of the reference's own configuration class."""

    name: str
    family: str
    settings: dict[str, Any]


CASES = (
    Case("llama, grouped, wide heads, biases", "llama", _LLAMA | {
        "head_dim": 20, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }),
    Case("llama, tied, llama3 rope", "llama", _LLAMA | {"tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    Case("llama, linear rope", "llama", _LLAMA | {
        "num_key_value_heads": 4, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    }),
    Case("mistral, window 8", "mistral", _LLAMA | {"sliding_window": 8}),
    Case("mistral, no window", "mistral", _LLAMA | {"sliding_window": None, "head_dim": 16}),
    Case("qwen2, tied", "qwen2", _LLAMA | {"tie_word_embeddings": True}),
    Case("qwen2, yarn, window in upper layers", "qwen2", _LLAMA | {
        "rope_parameters": _YARN, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
    }),
    Case("qwen3, wide heads, biases", "qwen3", _LLAMA | {"head_dim": 24, "attention_bias": True}),
    Case("gemma2, window, caps, scale", "gemma2", _LLAMA | {
        "head_dim": 20, "sliding_window": 8, "query_pre_attn_scalar": 17, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    }),
    Case("gemma2, without caps, biases", "gemma2", _LLAMA | {
        "head_dim": 20, "sliding_window": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "attention_bias": True,
    }),
    Case("olmo2, grouped", "olmo2", _LLAMA | {"attention_bias": True}),
    Case("gpt2", "gpt2", _GPT2),
    Case("gpt2, untied, odd MLP, exact gelu", "gpt2", _GPT2 | {
        "tie_word_embeddings": False, "n_inner": 50, "activation_function": "gelu",
    }),
    Case("gpt_neox, parallel", "gpt_neox", _NEOX | {"rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    }}),
    Case("gpt_neox, serial, tied, no attention bias", "gpt_neox", _NEOX | {
        "use_parallel_residual": False, "tie_word_embeddings": True, "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    }),
)  # fmt: skip


@dataclass(frozen=True)
class Distance:
    """How far a case is apart, relative to the reference's largest value."""

    logits: float
    gradient: float
    cached: float
    worst_parameter: str

    @property
    def ok(self) -> bool:
        return self.logits <= LOGIT_LIMIT and self.gradient <= GRADIENT_LIMIT and self.cached <= CACHE_LIMIT


def reference_model(case: Case, seed: int = 0) -> Any:
    """A model of the reference library whose every parameter is random: biases and norms as well."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(case.family, **case.settings)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            centre = 1.0 if weight.ndim == 1 and not name.endswith("bias") and case.family != "gemma2" else 0.0
            weight.copy_(centre + 0.3 * noise if weight.ndim == 1 else 0.15 * noise)
    return model.eval()


def compare(case: Case, folder: Path, ops: Ops = BUILTIN) -> Distance:
    """Save the reference's model to ``folder``, load it here, and measure."""
    reference = reference_model(case)
    reference.save_pretrained(folder)
    model = load_checkpoint(folder, ops=ops).model
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, case.settings["vocab_size"], (2, TOKENS), generator=generator)

    theirs = reference(ids).logits
    ours = model.logits(model(ids))
    gradients = dict(_gradients(model, reference, ids))
    worst = max(gradients, key=lambda name: gradients[name])
    return Distance(relative(ours, theirs), gradients[worst], relative(cached_logits(model, ids), ours), worst)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of ``b``."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


@torch.no_grad()
def cached_logits(model: LanguageModel, ids: Tensor) -> Tensor:
    """Logits of every position by way of the cache: a first chunk, then one token at a time."""
    cache = KVCache(model.config, len(ids), ids.shape[1], device="cpu", dtype=model.compute_dtype)
    hidden = []
    for start, end in [(0, 5), *((i, i + 1) for i in range(5, ids.shape[1]))]:
        hidden.append(model(ids[:, start:end], cache=cache))
        cache.advance(end - start)
    return model.logits(torch.cat(hidden, 1))


def _gradients(model: LanguageModel, reference: Any, ids: Tensor) -> Iterator[tuple[str, float]]:
    """Distance of the loss gradient, for every published tensor."""
    targets = torch.cat((ids[:, 1:], torch.full((len(ids), 1), IGNORE)), 1)
    targets[:, :3] = IGNORE
    loss, count = model.loss(model(ids), targets)
    (loss / count).backward()
    logits = reference(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE).backward()
    theirs = dict(reference.named_parameters())
    # The reference calls the head of GPT-NeoX otherwise in memory than in its files.
    theirs.setdefault("embed_out.weight", reference.get_output_embeddings().weight)
    for stored in stored_tensors(model.config, dict(model.named_parameters())):
        grads = []
        for name in stored.parts:
            grad = model.get_parameter(name).grad
            assert grad is not None, name
            grads.append(grad)
        ours = to_layout(torch.cat(grads), stored.layout, model.config)
        yield stored.name, relative(ours, theirs[stored.name].grad)


def main() -> int:
    """Print the table; exit 1 where a family is off."""
    import transformers

    print(f"float32, {TOKENS} tokens, against transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| case | logits | gradient (worst parameter) | cached = full | |")
    print("|---|--:|---|--:|---|")
    good = True
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            d = compare(case, Path(folder))
        good &= d.ok
        verdict = "ok" if d.ok else "OFF"
        print(f"| {case.name} | {d.logits:.1e} | {d.gradient:.1e} `{d.worst_parameter}` | {d.cached:.1e} | {verdict} |")
    print(f"\nlimits: logits {LOGIT_LIMIT:g}, gradient {GRADIENT_LIMIT:g}, cached {CACHE_LIMIT:g}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
