"""What a call would cost on a GPU, counted on fake tensors, which have shapes and a device but no memory."""

import weakref
from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SORTED = 20  # launches of a sum that sorts by index first, and 200 bytes for each index
MAKES_NO_KERNEL = {"prim::device", "aten::empty", "aten::empty_like", "aten::new_empty", "aten::detach"}


class GpuCost(TorchDispatchMode):
    """Count kernels, the bytes they move, and the most bytes of tensors that are alive at once."""

    def __init__(self):
        super().__init__()
        self.launches = self.bytes = self.alive = self.peak = 0
        self.waits = []  # names of operations that read values on the host
        self._known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        name = operation.name().split(".")[0]
        inputs, outputs = list(tensors((args, kwargs))), list(tensors(results))
        for output in () if operation.is_view else outputs:
            self._keep(output.untyped_storage())
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.waits.append(name)
        if not operation.is_view and name not in MAKES_NO_KERNEL:
            self.launches += SORTED if name == "aten::index_put_" else 1
            self.bytes += moved(name, inputs, outputs)
        return results

    def _keep(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def moved(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> int:
    """Return bytes read and written; of a tensor that is indexed only where it is."""
    if name in ("aten::index_select", "aten::index"):
        return sum(part.nbytes for part in inputs[1:]) + 2 * outputs[0].nbytes
    if name in ("aten::scatter_reduce_", "aten::index_put_"):
        _, index, values = inputs
        return index.nbytes + 3 * values.nbytes + 200 * len(index) * (name == "aten::index_put_")
    return sum(part.nbytes for part in (*inputs, *outputs))


def tensors(values: object) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested sequences and dicts."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from tensors(value)
