"""Train the rows of a few tokens in a frozen embedding and head: the control tokens of a chat template on a base model.

A base model has often never seen ``<|im_start|>``: its rows are what they were at the start of pretraining, LoRA does
not move them, and an answer that must end with such a token does not end. For the chosen ids i and no others:

    x = E[ids]                dE[i] = sum of dx over the places where ids = i
    z = h W^T                 dW[i] = dz[:, i]^T h            with W = E where the head is tied: the sum of both

What is trained are copies of these rows in float32. Before a table is used, they are written into it, rounded to its
type, so that values come from the table alone: the start is the base model bit for bit, and a product with the head is
one product. Gradients go to the copies alone: there is no buffer of the size of a table.

As PEFT's ``trainable_token_indices`` has it, rows are replaced, not added to: what stood there does not count.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitune.models import LanguageModel
from minitune.models.layers import Embedding, Head
from minitune.ops import IGNORE, Ops
from minitune.ops.precision import wide

CHUNK = 4096
"""Tokens whose logits there are at one time, in training."""


class TrainedRows(nn.Module):
    """The trained rows ``values (n, C)`` of one table, for ``ids (n,)`` in ascending order."""

    ids: Tensor

    def __init__(self, table: Tensor, ids: Sequence[int]):
        super().__init__()
        chosen = torch.tensor(sorted(set(ids)), device=table.device)
        self.register_buffer("ids", chosen, persistent=False)
        self.values = nn.Parameter(table.detach()[chosen].to(torch.promote_types(table.dtype, torch.float32)))

    def write_to(self, table: Tensor) -> None:
        """Put the rows as they are now into their table."""
        # By .data: a backward that is still to come needs these very values, and torch would refuse it for the write.
        table.data.index_copy_(0, self.ids, self.values.detach().to(table.dtype))


class RowsEmbedding(nn.Module):
    """A frozen ``Embedding`` with trained rows."""

    def __init__(self, base: Embedding, rows: TrainedRows):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        self.rows.write_to(self.base.weight)
        factor = float(torch.tensor(self.base.scale, dtype=dtype))
        return _Looked.apply(self.base(ids, dtype), ids, self.rows.values, self.rows.ids, factor)


class RowsHead(nn.Module):
    """A frozen ``Head`` with trained rows."""

    def __init__(self, base: Head, rows: TrainedRows):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        self.rows.write_to(self.base.weight)
        return _Scored.apply(self.base(x), x.detach(), self.rows.values, self.rows.ids)

    def loss(self, ops: Ops, x: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """As ``Head.loss``. The fused operation gives no gradient for single rows, so here head and loss are two."""
        self.rows.write_to(self.base.weight)
        if not torch.is_grad_enabled():
            return self.base.loss(ops, x, targets, **options)
        kept = targets != IGNORE
        weights: Tensor | None = options.pop("token_weight", None)
        targets = targets[kept]
        weights = None if weights is None else weights[kept]

        def loss_of(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            chosen = None if weights is None else weights[part]
            return ops.cross_entropy(logits, targets[part], token_weight=chosen, **options)

        head = self.base.weight.to(x.dtype), self.base.bias
        return _Lost.apply(x[kept], *head, self.rows.values, self.rows.ids, loss_of)


class _Looked(torch.autograd.Function):
    """``x (..., C)``, looked up in a frozen table, as it is; its gradient goes to the trained rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, values: Tensor, chosen: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(ids, chosen)
        ctx.factor, ctx.kind = factor, values.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, chosen = ctx.saved_tensors
        here = (chosen[:, None] == ids.flatten()).to(ctx.kind)  # (n, N)
        # A product and not a scattered sum, whose order is not the same every time on a GPU.
        drows = here @ dx.flatten(0, -2).to(ctx.kind)  # (n, C)
        return None, None, drows.mul_(ctx.factor), None, None


class _Scored(torch.autograd.Function):
    """Logits ``z (..., V)`` as they are; their gradient goes on to the base head, and to the trained rows."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(x, chosen)
        ctx.kind = values.dtype
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, chosen = ctx.saved_tensors
        return dz, None, _of_rows(dz, x, chosen, ctx.kind), None


class _Lost(torch.autograd.Function):
    """``(loss_sum, denominator)`` of ``x (M, C)``, a chunk of tokens at a time.

    The gradients are made on the way, while a chunk's dz is there: so no logits are kept, and none made twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        chosen: Tensor,
        loss_of: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        dx, drows = torch.empty_like(x), torch.zeros_like(values)
        sums = []
        for start in range(0, max(1, len(x)), CHUNK):
            part = slice(start, start + CHUNK)
            z = F.linear(x[part], weight, None if bias is None else bias.to(x.dtype)).requires_grad_()  # (chunk, V)
            with torch.enable_grad():
                loss, denominator = loss_of(z, part)
            (dz,) = torch.autograd.grad(loss, z)
            dx[part] = dz @ weight
            drows += _of_rows(dz, x[part], chosen, values.dtype)
            sums.append(torch.stack([loss.detach(), denominator.to(loss.dtype)]))
        ctx.save_for_backward(dx, drows)
        loss, denominator = torch.stack(sums).sum(0).unbind()
        ctx.mark_non_differentiable(denominator)
        return loss, denominator

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, drows = ctx.saved_tensors
        kind = wide(dx.dtype)
        return (dx.to(kind) * dloss).to(dx.dtype), None, None, drows * dloss.to(drows.dtype), None, None


def _of_rows(dz: Tensor, x: Tensor, chosen: Tensor, kind: torch.dtype) -> Tensor:
    """dz[:, i]^T x for the chosen i: (n, C)."""
    return dz.flatten(0, -2)[:, chosen].T.to(kind) @ x.flatten(0, -2).to(kind)


def add_token_rows(
    model: LanguageModel, ids: Sequence[int], *, embedding: bool = True, head: bool = True
) -> dict[str, TrainedRows]:
    """Train the rows of ``ids`` in the embedding and the head, one set of rows where the head is tied.

    Both tables are frozen. After ``add_lora``, which freezes whatever is there. Returns the rows by table.
    """
    V, tied = model.config.vocab_size, model.config.tie_embeddings
    assert ids
    assert set(ids) <= set(range(V)), f"ids {ids} of a vocabulary of {V}"
    assert embedding == head or not tied
    found: dict[str, TrainedRows] = {}
    if embedding:
        found["embed"] = TrainedRows(model.embed.weight, ids)
    if head:
        found["head"] = found["embed"] if tied else TrainedRows(model.head.weight, ids)
    if embedding:
        setattr(model, "embed", RowsEmbedding(model.embed, found["embed"]))  # noqa: B010 - stands for another class
    if head:
        setattr(model, "head", RowsHead(model.head, found["head"]))  # noqa: B010
    return found


def token_rows(model: LanguageModel) -> dict[str, TrainedRows]:
    """The trained rows by table, ``embed`` and ``head``; the same under both where the head is tied."""
    return {name: child.rows for name, child in model.named_children() if isinstance(child, RowsEmbedding | RowsHead)}


def merge_token_rows(model: LanguageModel) -> int:
    """Leave the trained rows in their tables, as plain weights; of how many tokens there were any."""
    found = token_rows(model)
    for name, rows in found.items():
        wrapped = model.get_submodule(name)
        base = wrapped.get_submodule("base")
        rows.write_to(base.get_parameter("weight"))
        setattr(model, name, base)
    return len({int(id) for rows in found.values() for id in rows.ids})
