"""Copies between CPU and GPU that the host does not wait for."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a CPU tensor to `device`; to a GPU asynchronously, through pinned memory."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class AsyncHostCopy:
    """A copy of a tensor to the CPU that starts at once and is waited for when it is read."""

    def __init__(self, values: Tensor) -> None:
        """Queue the copy on the current stream; later changes of `values` do not affect it."""
        on_gpu = values.device.type == "cuda"
        self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_gpu)
        self._copy.copy_(values.detach(), non_blocking=True)
        self._done = torch.cuda.Event() if on_gpu else None
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(values.device))

    def read(self) -> Tensor:
        """Return the copy. Waits for it, but not for work queued on the device after it."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy
