"""Attention: shapes of real models, causal and not, packed, and who else can do it.

FLOPs count visible pairs only: 4 D a pair and head forward, 2.5 times that backward.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops import Case

MODELS = {  # H, K, D
    "SmolLM2-135M": (9, 3, 64),
    "Qwen2.5-0.5B": (14, 2, 64),
    "Llama-3.2-1B": (32, 8, 64),
    "Llama-3-8B": (32, 8, 128),
    "MHA d128": (16, 16, 128),
    "Gemma-2-2B": (8, 4, 256),
}


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Rows of 16k tokens in all, packed ones with realistic lengths."""
    lengths = (2048,) if quick else (512, 2048, 4096, 8192, 16384)
    for model, (H, K, D) in MODELS.items():
        if quick and D != 128:
            continue
        for T in lengths if D >= 128 else lengths[-3:]:
            for causal in (True, False) if model == "MHA d128" else (True,):
                yield dense(device, model, max(1, 16384 // T), T, H, K, D, causal)
    H, K, D = MODELS["Llama-3-8B"]
    yield packed(device, "Llama-3-8B", 8192 if quick else 32768, H, K, D)
    if not quick:
        yield dense(device, "Llama-3-8B", 1, 32768, H, K, D, True)
        yield dense(device, "Mistral window", 1, 16384, 32, 8, 128, True, window=4096)


def dense(
    device: torch.device, model: str, B: int, T: int, H: int, K: int, D: int, causal: bool, window: int | None = None
) -> Case:
    """B rows of T tokens."""
    pairs = B * H * (T * T if not causal else visible_pairs([T], window))
    name = f"{model} B{B} T{T} H{H} K{K} D{D} {'causal' if causal else 'full'}"
    name += "" if window is None else f" window {window}"
    contestants: dict[str, Callable[..., Tensor]] = {"ours": partial(ours, causal=causal, window=window)}
    if window is None:
        contestants |= {
            "SDPA as dispatched": partial(sdpa, causal=causal, backend=None),
            "SDPA cuDNN": partial(sdpa, causal=causal, backend="CUDNN_ATTENTION"),
            "SDPA flash": partial(sdpa, causal=causal, backend="FLASH_ATTENTION"),
        }
        if T * T * B * H <= 1 << 31:
            contestants["reference"] = partial(reference, causal=causal)
    contestants["FlexAttention"] = flex(causal, window, T, device)
    if (flash := flash_attention_3()) is not None:
        contestants["FlashAttention-3"] = partial(flash, causal=causal, window=window)
    return Case(
        name=name,
        inputs=partial(qkv, device, B, T, H, K, D),
        contestants=contestants,
        unit="flops",
        work=flops(pairs, D),
        truth=partial(truth, causal=causal, window=window),
        part=partial(slices, group=H // K),
    )


def packed(device: torch.device, model: str, T: int, H: int, K: int, D: int) -> Case:
    """One row of T tokens of many documents, with lengths as instruction data has them."""
    from minitune.ops import AttentionPlan

    lengths = document_lengths(T)
    cu = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    plan = AttentionPlan(
        positions=positions, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=max(lengths), max_seqlen_k=max(lengths)
    )
    contestants: dict[str, Callable[..., Tensor]] = {
        "ours": partial(ours, plan=plan),
        "FlexAttention": flex_packed(cu, T, device),
    }
    return Case(
        name=f"{model} packed T{T} documents {len(lengths)} H{H} K{K} D{D}",
        inputs=partial(qkv, device, 1, T, H, K, D),
        contestants=contestants,
        unit="flops",
        work=flops(H * visible_pairs(lengths, None), D),
    )


def document_lengths(T: int) -> list[int]:
    """Log-normal lengths around 250 tokens, a few of thousands, that fill T exactly."""
    generator = torch.Generator().manual_seed(1)
    lengths: list[int] = []
    while sum(lengths) < T:
        n = int(math.exp(5.5 + 1.0 * float(torch.randn((), generator=generator))))
        lengths.append(min(max(n, 8), 4096, T - sum(lengths)))
    return lengths


def visible_pairs(lengths: Sequence[int], window: int | None) -> int:
    """Query-key pairs under a causal mask, of documents of these lengths."""
    total = 0
    for n in lengths:
        w = n if window is None else min(window, n)
        total += w * (w + 1) // 2 + (n - w) * w
    return total


def flops(pairs: int, D: int) -> dict[str, float]:
    return {"forward": 4.0 * pairs * D, "backward": 10.0 * pairs * D, "both": 14.0 * pairs * D}


def qkv(device: torch.device, B: int, T: int, H: int, K: int, D: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return tuple(
        torch.randn(B, T, h, D, generator=generator, device=device, dtype=torch.float32).to(dtype).requires_grad_()
        for h in (H, K, K)
    )


# ---- contestants


def ours(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    from minitune_kernels import attention

    return attention(q, k, v, **options)  # pyright: ignore[reportArgumentType]


def reference(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    from minitune.ops import REFERENCE

    return REFERENCE.attention(q, k, v, causal=causal)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, backend: str | None) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call() -> Tensor:
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=causal,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return y.transpose(1, 2)

    if backend is None:
        return call()
    with sdpa_kernel(getattr(SDPBackend, backend)):
        return call()


def flex(causal: bool, window: int | None, T: int, device: torch.device) -> Callable[..., Tensor]:
    """FlexAttention compiled, with its block mask made once."""
    made: list[Callable[..., Tensor]] = []

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not made:
            made.append(_flex(causal, window, T, device))
        return made[0](q, k, v)

    return call


def _flex(causal: bool, window: int | None, T: int, device: torch.device) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) if window is None else (j <= i) & (j > i - window)

    mask = create_block_mask(sees, None, None, T, T, device=str(device)) if causal else None
    return _compiled_flex(flex_attention, mask)


def flex_packed(cu: Tensor, T: int, device: torch.device) -> Callable[..., Tensor]:
    made: list[Callable[..., Tensor]] = []

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not made:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            document = torch.bucketize(torch.arange(T, device=device), cu[1:], right=True)
            mask = create_block_mask(
                lambda b, h, i, j: (j <= i) & (document[i] == document[j]), None, None, T, T, device=str(device)
            )
            made.append(_compiled_flex(flex_attention, mask))
        return made[0](q, k, v)

    return call


def _compiled_flex(flex_attention: Callable[..., object], mask: object) -> Callable[..., Tensor]:
    compiled = torch.compile(flex_attention)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = compiled(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            block_mask=mask,
            enable_gqa=q.shape[2] != k.shape[2],
        )  # pyright: ignore[reportAssignmentType]
        return y.transpose(1, 2)

    return call


def flash_attention_3() -> Callable[..., Tensor] | None:
    try:
        from flash_attn_interface import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def call(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None) -> Tensor:
        size = (-1, -1) if window is None else (window - 1, 0)
        y = flash_attn_func(q, k, v, causal=causal, window_size=size)
        return y[0] if isinstance(y, tuple) else y

    return call


# ---- accuracy, on the first row and one key/value head with its group


def truth(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None) -> list[Tensor]:
    """Output and gradients in float64 of the first row's first group of heads, on its first 2,048 queries.

    Under a causal mask they are those of the whole in y and dq; without one nothing is compared but y of few queries.
    """
    from minitune.ops.attention import attention

    group = q.shape[2] // k.shape[2]
    n = min(q.shape[1], 1024)
    a, b, c = (x[:1, :, :heads].detach().double() for x, heads in ((q, group), (k, 1), (v, 1)))
    if causal:
        return [attention(a[:, :n], b[:, :n], c[:, :n], window=window)]
    return [attention(a[:, :n], b, c, causal=False)]


def slices(outputs: Sequence[Tensor], *, group: int) -> list[Tensor]:
    """The part of the output that ``truth`` gives."""
    y = outputs[0]
    return [y[:1, : min(y.shape[1], 1024), :group]]


# ---- what ships


def shipped() -> dict[str, Callable[[], object]]:
    """Every tile size that a launch can pick: head dims, types, softcap, both forms of the backward."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float32):  # float16 compiles to the same but for the type of its products
        for D in (16, 32, 64, 80, 96, 128, 192, 256):
            for softcap in (None, 30.0):
                if (softcap or dtype == torch.float32) and D != 128:
                    continue
                name = f"{str(dtype)[6:]} D{D}" + (" softcap" if softcap else "")
                calls[name] = partial(_meta, dtype, D, softcap, False)
                if dtype != torch.float32 and D <= 128:
                    calls[f"{name} split"] = partial(_meta, dtype, D, softcap, True)
    return calls


def _meta(dtype: torch.dtype, D: int, softcap: float | None, deterministic: bool) -> None:
    from minitune_kernels.attention import attention_backward, attention_forward

    q, k, v = (torch.empty(2, 4096, h, D, dtype=dtype, device="meta") for h in (8, 2, 2))
    span = torch.empty(1, 4096, dtype=torch.int32, device="meta")
    y = torch.empty_like(q)
    lse = torch.empty(2, 8, 4096, device="meta")
    attention_forward(q, k, v, span, span, 0.1, softcap or 0.0)
    attention_backward(y, q, k, v, y, lse, span, span, span, span, 0.1, softcap or 0.0, deterministic)
