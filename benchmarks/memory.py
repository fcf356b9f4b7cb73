"""Memory that the training step of each config keeps, counted without a GPU and without computing anything.

    python -m benchmarks.memory

prints the table of docs/reproduce.md: the estimates of dwtriton/train/memory.py, and what PyTorch's partitioner keeps
of the graph that is compiled.
"""

import torch

from benchmarks.joint_graph import joint_graph, kept
from dwtriton.config.load import config_names, load_config
from dwtriton.core.points import STRIDES
from dwtriton.model.detector import build_detector
from dwtriton.model.pixels import PixelDetector
from dwtriton.train.memory import kept_bytes, state_bytes

IMAGE = (800, 1344)  # pixels, the size of most batches
SETTINGS = {  # autocast, activation checkpointing
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "bfloat16, less": ("bfloat16", True),
}
COLUMNS = ["config", "weights, gradients, momenta", *SETTINGS, "half, compiled"]


def image_bytes(name: str, precision: str, recompute: bool) -> int:
    """Return the bytes that autograd keeps for the backward pass of one more image."""
    overrides = [f"train.precision={precision}", f"train.activation_checkpointing={str(recompute).lower()}"]
    cfg = load_config(name, overrides)
    return kept_bytes(cfg, 2, IMAGE) - kept_bytes(cfg, 1, IMAGE)


def compiled_bytes(name: str, images: int) -> int:
    """Return the bytes that a compiled step in half precision keeps for the backward pass, without parameters."""
    cfg = load_config(name)
    detector = build_detector(cfg).to(memory_format=torch.channels_last)
    graph = joint_graph(PixelDetector(detector, cfg.data), IMAGE, images)
    return sum(node.meta["val"].untyped_storage().nbytes() for node in kept(graph, outputs=3 * len(STRIDES)))


def row(name: str) -> list[str]:
    """Return the cells of a config in the order of `COLUMNS`: GB on each GPU, then GB for each image on it."""
    counts = [state_bytes(load_config(name)), *(image_bytes(name, *setting) for setting in SETTINGS.values())]
    counts.append(compiled_bytes(name, 2) - compiled_bytes(name, 1))
    return [f"`{name}`", *(f"{count / 1e9:.2f} GB" for count in counts)]


def markdown_table() -> str:
    """Return a table with a row for each config of COCO; `small` is for small data."""
    names = [name for name in config_names() if name != "small" and load_config(name).data.shapes is None]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(row, names)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(markdown_table())
