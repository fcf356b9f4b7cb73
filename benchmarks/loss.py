"""Time and memory of the loss with its gradient, against the released algorithm, on the CPU.

    python benchmarks/loss.py [--threads 2] [--repeats 5] [--out benchmarks/results/cpu.json]

Two images of 800x1344, 80 classes, float32, 1 to 1000 boxes an image with sizes spread as in COCO. Times are the least
of several runs. Memory is what one run allocates at its peak beyond the inputs and their gradients.
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peak import peak_bytes
from released import released_loss
from torch import Tensor

from dwtriton.dual_weight import DualWeightLoss
from dwtriton.points import STRIDES

BATCH, HEIGHT, WIDTH, CLASSES = 2, 800, 1344, 80
BOXES = (1, 7, 20, 100, 1000)  # an image; the mean of COCO is 7
RELEASED_LIMIT = 100  # boxes; beyond, the released form takes tens of GB
METHODS = ("ours", "released")


def make_case(boxes: int) -> tuple[list[list[Tensor]], list[dict[str, Tensor]]]:
    """Head outputs as in training, and boxes: log-uniform sides of 10 to 600 pixels, so that many are small."""
    generator = torch.Generator().manual_seed(boxes)
    sizes = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]

    def levels(channels: int, transform: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
        shapes = [(BATCH, channels, *size) for size in sizes]
        made = [transform(torch.randn(shape, generator=generator), s) for shape, s in zip(shapes, STRIDES)]
        return [level.requires_grad_() for level in made]

    inputs = [
        levels(CLASSES, lambda noise, _: noise - 4.6),
        levels(4, lambda noise, stride: stride * noise.exp() * 2),
        levels(1, lambda noise, _: noise),
    ]
    targets = []
    for _ in range(BATCH):
        side = 10 * 60 ** torch.rand(boxes, 2, generator=generator)
        limit = torch.tensor([WIDTH, HEIGHT])
        corner = torch.rand(boxes, 2, generator=generator) * (limit - side)
        labels = torch.randint(CLASSES, (boxes,), generator=generator)
        targets.append({"boxes": torch.cat((corner, corner + side), 1), "labels": labels})
    return inputs, targets


def make_step(method: str, boxes: int) -> Callable[[], None]:
    """Loss and gradients of a case, as one call."""
    inputs, targets = make_case(boxes)
    flat = [level for kind in inputs for level in kind]
    loss = DualWeightLoss(STRIDES, backend="torch")

    def step() -> None:
        losses = loss(*inputs, targets) if method == "ours" else released_loss(*inputs, targets, STRIDES)
        torch.autograd.grad(sum(losses.values()), flat)

    return step


def least_time(step: Callable[[], None], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one to warm up."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch (default: all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each case; the least counts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    points = sum(-(-HEIGHT // stride) * -(-WIDTH // stride) for stride in STRIDES)
    gradients = BATCH * points * (CLASSES + 4 + 1) * 4  # bytes
    rows = []
    print(f"{'boxes':>6} {'ours ms':>9} {'released ms':>12} {'ratio':>6} {'ours MB':>8} {'released MB':>12}")
    for boxes in BOXES:
        row: dict[str, float] = {"boxes": boxes}
        for method in METHODS:
            if method == "ours" or boxes <= RELEASED_LIMIT:
                step = make_step(method, boxes)
                row[f"{method}_ms"] = round(1e3 * least_time(step, args.repeats), 1)
                row[f"{method}_mb"] = round((peak_bytes(step) - gradients) / 1e6, 1)
        if "released_ms" in row:
            row["ratio"] = round(row["released_ms"] / row["ours_ms"], 1)
        rows.append(row)
        columns = (("ours_ms", 9), ("released_ms", 12), ("ratio", 6), ("ours_mb", 8), ("released_mb", 12))
        print(f"{boxes:>6} " + " ".join(f"{row.get(name, '-'):>{width}}" for name, width in columns), flush=True)
    case = {"batch": BATCH, "height": HEIGHT, "width": WIDTH, "classes": CLASSES, "dtype": "float32"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    partial.write_text(json.dumps({"machine": machine(), "case": case, "rows": rows}, indent=2) + "\n")
    os.replace(partial, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
