"""The two tables that have a row for each id, the embedding and the head: their rows looked at, and more of them."""

import torch
from torch import Tensor

SMALL = 0.3
"""A row shorter than this share of the median row looks as if it was never trained."""
_ROWS = 16_384  # looked at together, so that nothing of the size of a whole table is made


def row_norms(table: Tensor) -> Tensor:
    """The norm (V,) of each row of a table (V, C), in float32."""
    return torch.cat([part.float().norm(dim=1) for part in table.split(_ROWS)])


@torch.no_grad()
def longer(table: Tensor, rows: int) -> Tensor:
    """``table (V, C)`` with rows behind its own, ``rows`` in all; each is the mean of those that look trained.

    In a head, the logit of a new token is then the mean of the logits of n old ones, and its probability at most 1 / n
    whatever the text, as the mean of exp is at least exp of the mean: the old tokens keep theirs. A row of zeros or a
    random one has no such bound. Nothing is drawn, so two that make a table longer make the same one; new tokens start
    alike and part with their first gradients, as they stand in different places.
    """
    norms = row_norms(table)
    trained = norms >= SMALL * norms.median()
    kind = torch.promote_types(table.dtype, torch.float32)
    mean = torch.zeros(table.shape[1], dtype=kind, device=table.device)
    for part, chosen in zip(table.split(_ROWS), trained.split(_ROWS), strict=True):
        mean += part[chosen].to(kind).sum(0)
    mean /= trained.sum()
    return torch.cat([table, mean.to(table.dtype).expand(rows - len(table), -1)])
