"""Where CPUs and other devices are treated differently.

On a CPU a look at values costs nothing, and temporary tensors of small steps stay in the cache. On a GPU the host waits
for a value, and every operation costs it microseconds: steps are few and large.
"""

from torch import Tensor


def on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def add_at(total: Tensor, index: Tensor, values: Tensor) -> None:
    """Add `values` [..., K] to `total` [..., M] at `index` [K], always in the same order."""
    if on_cpu(total):
        total.index_add_(-1, index, values)
    else:  # on a GPU that adds in any order; this sorts first
        total.movedim(-1, 0).index_put_((index,), values.movedim(-1, 0), accumulate=True)
