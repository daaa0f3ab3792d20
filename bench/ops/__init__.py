"""Kernel benchmarks as data: one module an operation, each with the cases it times and the kernels it ships.

A module ``bench.ops.<operation>`` has

* ``cases(device, quick) -> Iterator[Case]``: what is timed, with its contestants;
* ``shipped() -> dict[str, Callable[[], object]]``: calls on ``meta`` tensors that cover every configuration that ships,
  for ``bench.compiled``.

``python -m bench.ops OPERATION ...`` runs them by the protocol of ``bench.measure``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

OPERATIONS = (
    "attention",
    "decode_attention",
    "cross_entropy",
    "linear_cross_entropy",
    "rms_norm",
    "layer_norm",
    "rope",
    "qk_norm_rope",
    "glu",
    "lora_linear",
    "adamw",
)


@dataclass(frozen=True)
class Case:
    """One shape of one operation, and who takes part.

    ``inputs(seed)`` makes the arguments of a call; those that require a gradient are the leaves of the backward.
    ``contestants`` take those arguments; ``work`` is what a direction must do at least, in ``unit`` ("flops" counts
    visible work only, "bytes" each input read once and each output written once). ``truth`` is the same in float64, or
    on a part that it and ``part`` agree on; without it nothing is compared.
    """

    name: str
    inputs: Callable[[int], tuple[Tensor, ...]]
    contestants: Mapping[str, Callable[..., Tensor]]
    unit: str
    work: Mapping[str, float]  # by direction: forward, backward, both
    directions: Sequence[str] = ("forward", "backward", "both")
    truth: Callable[..., Sequence[Tensor]] | None = None
    part: Callable[[Sequence[Tensor]], Sequence[Tensor]] = field(default=lambda outputs: outputs)
    input_sets: int = 2
    retains: bool = True  # the backward may run twice; else its time is both less forward
    note: str = ""
