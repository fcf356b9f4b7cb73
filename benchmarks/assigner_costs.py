"""Time and memory of the loss of each assigner, with its gradients, on made-up outputs of a head."""

from itertools import chain

import torch

from benchmarks.assigner_runs import TABLES
from benchmarks.cases import Size, make_case
from benchmarks.recording import significant
from benchmarks.timing import measure
from dwtriton.config.load import load_config
from dwtriton.model.losses import build_loss

SECONDS = 1.0  # of each measurement
CASES = {  # size, images, boxes an image
    "shapes": (Size(96, 128, 8), 8, 4),
    "COCO": (Size(800, 1344, 80), 2, 7),
    "COCO, crowded": (Size(800, 1344, 80), 2, 300),
}


def measure_costs(device: torch.device) -> list[dict]:
    """Return milliseconds, and MB beyond inputs and gradients, of each row of the tables in each case."""
    rows = dict(chain.from_iterable(table.rows.items() for table in TABLES.values()))
    return [
        {"row": row, "case": case} | measure_cost(settings, case, device)
        for case in CASES
        for row, settings in rows.items()
    ]


def measure_cost(settings: tuple[str, ...], case: str, device: torch.device) -> dict:
    """Return time and memory of the loss that `settings` choose, with the gradients of its sum; one thread on a CPU."""
    size, images, boxes = CASES[case]
    loss = build_loss(load_config("shapes", list(settings)).loss)
    inputs = make_case(size, images, boxes, torch.float32, device)
    leaves = inputs.leaves()

    def step():
        losses = loss(*inputs.inputs, inputs.packed)
        return torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = measure(step, device, SECONDS, capture=False)
    finally:
        torch.set_num_threads(threads)
    extra = max(0, measured.peak_bytes - sum(leaf.nbytes for leaf in leaves))
    return {"ms": significant(measured.ms), "extra_mb": significant(extra / 1e6)}
