"""What a training step costs: weights, floating-point operations and bytes, as formulas of a model's shape.

Letters as everywhere: N tokens, of which M are trained; C, F, V, L, H, K, D of the model. A product of (N, a) and
(a, b) is 2 N a b FLOPs. Norms, activations, rotations and the optimizer are not counted: they are memory traffic.
"""

from collections.abc import Sequence

from minitune.config import ModelConfig

OPTIMIZER_BYTES = 16
"""A trained weight in float32 with its gradient and AdamW's two moments."""


def block_matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of one block, name -> (out, in)."""
    C, F = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if config.form == "gpt":
        return {"qkv": (3 * C, C), "o": (C, C), "up": (F, C), "down": (C, F)}
    attention = {"q": (queries, C), "k": (keys, C), "v": (keys, C), "o": (C, queries)}
    return attention | {"gate": (F, C), "up": (F, C), "down": (C, F)}


def matrix_weights(config: ModelConfig) -> int:
    """Weights in the matrices of all blocks: every token meets each of them once."""
    return config.num_layers * sum(out * into for out, into in block_matrices(config).values())  # COST-1


def all_weights(config: ModelConfig) -> int:
    """Every weight of the model, biases, norms, embedding and head included."""
    C, D, V = config.hidden_size, config.head_dim, config.vocab_size
    matrices = block_matrices(config)
    biases = sum(matrices[name][0] for name in ("q", "k", "v", "qkv") if name in matrices and config.qkv_bias)
    biases += sum(matrices[name][0] for name in ("gate", "up", "down") if name in matrices and config.mlp_bias)
    biases += C * config.o_bias
    if config.form == "gpt":
        norms, last = 4 * C, 2 * C  # LayerNorms: weight and bias
    else:
        by = {"none": 0, "head": 2 * D, "all": (config.num_heads + config.num_kv_heads) * D}
        norms, last = 2 * C * config.pre_norm + 2 * C * config.post_norm + by[config.qk_norm], C
    positions = config.max_positions * C if config.form == "gpt" and config.learned_positions else 0
    ends = V * C * (1 if config.tie_embeddings else 2) + positions + last
    return matrix_weights(config) + config.num_layers * (biases + norms) + ends  # COST-2


def visible_pairs(lengths: Sequence[int], window: int | None = None) -> int:
    """Pairs of query and key that causal attention visits in documents of these ``lengths``, for one head."""
    pairs = 0
    for n in lengths:
        w = n if window is None else min(window, n)
        pairs += w * (w + 1) // 2 + (n - w) * w  # COST-3
    return pairs


def attention_pairs(config: ModelConfig, lengths: Sequence[int]) -> int:
    """The same, summed over the layers, each with its own window."""
    return sum(visible_pairs(lengths, config.window(layer)) for layer in range(config.num_layers))


def forward_flops(config: ModelConfig, *, tokens: int, trained: int, pairs: int) -> int:
    """FLOPs of the products of one forward: ``tokens`` through the blocks, ``trained`` through the head.

    ``pairs`` is summed over layers, as by ``attention_pairs``.
    """
    linear = 2 * tokens * matrix_weights(config)
    attention = 4 * config.num_heads * config.head_dim * pairs
    head = 2 * trained * config.vocab_size * config.hidden_size
    return linear + attention + head  # COST-4


def step_flops(
    config: ModelConfig, *, tokens: int, trained: int, pairs: int, rank: int = 0, checkpointing: bool = False
) -> int:
    """FLOPs of forward and backward: full tuning, or LoRA of ``rank`` R on every matrix of the blocks.

    With LoRA the input of every layer gets a gradient; that the first block's needs none is not taken off, nor that
    the last product of a block need not be done again.
    """
    linear = 2 * tokens * matrix_weights(config)
    attention = 4 * config.num_heads * config.head_dim * pairs
    head = 2 * trained * config.vocab_size * config.hidden_size
    thin = 2 * tokens * lora_weights(config, rank)
    again = (linear + attention + thin) * checkpointing
    if rank:
        return 2 * linear + 3 * attention + 2 * head + 3 * thin + again  # COST-7
    return 3 * (linear + attention + head) + again  # COST-6


def lora_weights(config: ModelConfig, rank: int) -> int:
    """Weights of LoRA on every matrix of the blocks."""
    return config.num_layers * rank * sum(out + into for out, into in block_matrices(config).values())  # COST-8


def utilisation(flops: float, seconds: float, peak_flops: float) -> float:
    """Share of the machine's product rate (FLOPs a second) that ``flops`` in ``seconds`` are."""
    return flops / (seconds * peak_flops)  # COST-9


def roofline_seconds(flops: float, traffic_bytes: float, peak_flops: float, bandwidth_bytes: float) -> float:
    """The least time for so much arithmetic and so much traffic, which overlap."""
    return max(flops / peak_flops, traffic_bytes / bandwidth_bytes)  # COST-10


def state_bytes(frozen: int, trained: int, *, stored_bytes: int = 4) -> int:
    """Bytes of weights, gradients and optimizer state; frozen weights have ``stored_bytes`` each."""
    return stored_bytes * frozen + OPTIMIZER_BYTES * trained  # COST-11


def block_numbers(config: ModelConfig) -> int:
    """Numbers a token that one Llama-form block keeps for the backward, with the builtin functions in float32."""
    C, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    norms = 2 * (2 * C + 1)  # input, and scaled for the layers that read it; one rstd
    attention = (2 * config.num_heads + 2 * config.num_kv_heads) * D + config.num_heads  # q, y, k, v; lse
    mlp = 4 * F  # gate, act(gate), up, their product
    return norms + attention + mlp  # COST-12


def activation_numbers(config: ModelConfig, *, tokens: int, trained: int, checkpointing: bool = False) -> int:
    """Numbers kept for the backward of a step, or at its peak where blocks are computed again."""
    C, L = config.hidden_size, config.num_layers
    ends = tokens * (C + 1) + trained * (C + config.vocab_size)  # the last norm; the head's input, log p
    if checkpointing:
        return tokens * ((L - 1) * C + block_numbers(config)) + ends  # COST-14
    return tokens * L * block_numbers(config) + ends  # COST-13


def cache_bytes(config: ModelConfig, *, tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values of so many cached tokens."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * itemsize  # COST-5
