"""Exercise 8: documents packed into one row.

Three documents of 3, 1 and 2 tokens stand behind each other in one row of 6. Nothing must change for them: each counts
its positions from 0 (RoPE turns by them), no token sees another document, and the last token of a document has nothing
to predict, since the token behind it belongs to someone else.

    document     0 0 0 1 2 2
    position     0 1 2 0 0 1

Reading: docs/math/14-packing.md, minitune/ops/plan.py, minitune/data/pack.py
Check:   python docs/exercises/check.py 8
"""

import numpy as np

IGNORE = -100


def documents(lengths: list[int]) -> np.ndarray:
    """For each token of the row the number of its document."""
    return np.repeat(np.arange(len(lengths)), lengths)


def positions(lengths: list[int]) -> np.ndarray:
    """For each token of the row its position in its document."""
    position = np.concatenate([np.arange(length) for length in lengths])
    return position


def visible(lengths: list[int]) -> np.ndarray:
    """``(T, T)``, true where the token of the row may see that of the column."""
    document = documents(lengths)
    seen = (document[:, None] == document[None, :]) & np.tri(len(document), dtype=bool)
    return seen


def targets(ids: np.ndarray, lengths: list[int]) -> np.ndarray:
    """For each token of ``ids (T,)`` the id that it has to predict, or IGNORE."""
    document = documents(lengths)
    target = np.append(np.where(document[1:] == document[:-1], ids[1:], IGNORE), IGNORE)
    return target
