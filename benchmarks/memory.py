"""Memory that the training step of each config keeps, counted without a GPU and without computing anything.

    python -m benchmarks.memory

prints the table of docs/reproduce.md. The network runs on fake tensors, which have a shape, a dtype and a device but no
content, and the sizes of the tensors that autograd keeps for the backward pass are added up. A real GPU needs more:
temporary tensors, cuDNN's workspace, fragmentation and the CUDA context are not counted.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dwtriton import build_detector, load_config
from dwtriton.config.load import config_names

IMAGE = (800, 1344)  # pixels, the size of most batches
STATE_BYTES = 3 * 4  # of a trainable parameter: itself, its gradient, its momentum in float32
SETTINGS = {  # autocast, activation checkpointing
    "float32": (None, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, less": (torch.bfloat16, True),
}
COLUMNS = ["config", "weights, gradients, momenta", *SETTINGS]
DEVICE = "cuda"  # its autocast decides the dtypes; nothing is allocated there


def kept_bytes(name: str, images: int, precision: torch.dtype | None, recompute: bool) -> int:
    """Return the bytes that autograd keeps between the forward and the backward pass, without parameters."""
    checkpointing = f"train.activation_checkpointing={str(recompute).lower()}"
    cfg = load_config(name, [checkpointing, "loss.backend=torch", "backbone.weights=none"])
    with FakeTensorMode(), torch.device(DEVICE):
        detector = build_detector(cfg).train()
        batch = torch.empty(images, 3, *IMAGE).to(memory_format=torch.channels_last)
        parameters = {p.untyped_storage()._cdata for p in detector.parameters()}
        kept = {}  # storages; held, since an address that is freed and used again would be counted once

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = storage
            return tensor

        before = torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE)
        try:  # torch.autocast refuses a device that is not there
            torch.set_autocast_enabled(DEVICE, precision is not None)
            torch.set_autocast_dtype(DEVICE, precision or before[1])
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = detector.head_outputs(batch)
        finally:
            torch.set_autocast_enabled(DEVICE, before[0])
            torch.set_autocast_dtype(DEVICE, before[1])
        del outputs
        return sum(storage.nbytes() for storage in kept.values())


def state_bytes(name: str) -> int:
    """Return the bytes of weights, gradients and momenta in float32."""
    with torch.device("meta"):
        parameters = list(build_detector(load_config(name)).parameters())
    return sum(p.numel() * (STATE_BYTES if p.requires_grad else 4) for p in parameters)


def row(name: str) -> list[str]:
    """Return the cells of a config in the order of `COLUMNS`: GB on each GPU, then GB for each image on it."""
    an_image = [kept_bytes(name, 2, *setting) - kept_bytes(name, 1, *setting) for setting in SETTINGS.values()]
    return [f"`{name}`", *(f"{count / 1e9:.2f} GB" for count in (state_bytes(name), *an_image))]


def markdown_table() -> str:
    """Return a table with a row for each config of COCO."""
    names = [name for name in config_names() if load_config(name).data.shapes is None]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(row, names)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(markdown_table())
