"""Ways to compute the frozen layers of a ResNet-50, which have no backward pass.

    python -m benchmarks.frozen

times the stem and two convolutions of layer1, each with its bias, its ReLU and, behind a block, its addition, in half
precision and channels_last, and writes benchmarks/results/frozen/MACHINE.json after each:

- as trained: the convolution, then everything else in one pass that torch.compile makes;
- in the convolution: by cuDNN, which PyTorch has for inference only;
- 4 channels, 8 channels: as trained, with channels of zeros beside the three of the image. Normalisation would write
  them; their cost there is not timed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.machine import find_device, machine
from benchmarks.recording import RESULTS, TOO_LARGE, Results, reason, results_file, significant
from benchmarks.timing import measure
from dwtriton.console.cli import run

AS_TRAINED, IN_CONVOLUTION = "as trained", "in the convolution"
PADDED = {"4 channels": 4, "8 channels": 8}


class Layer(NamedTuple):
    """A convolution of a ResNet-50."""

    channels: int
    out: int
    kernel: int
    stride: int
    scale: int  # pixels of the image to one of its input, each way
    added: bool  # to the shortcut of its block


LAYERS = {
    "stem": Layer(channels=3, out=64, kernel=7, stride=2, scale=1, added=False),
    "layer1, 3x3": Layer(channels=64, out=64, kernel=3, stride=1, scale=4, added=False),
    "layer1, 1x1 and addition": Layer(channels=64, out=256, kernel=1, stride=1, scale=4, added=True),
}


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    device = find_device(args.device)
    results = open_results(args)
    for row in results.missing(planned(args)):
        try:
            step = make_step(LAYERS[row["layer"]], row["way"], args, device)
            row["ms"] = significant(measure(step, device, args.seconds, capture=device.type == "cuda").ms)
        except Exception as error:
            row["skipped"] = reason(error)
        results.add(row)
        print(f"{row['layer']}, {row['way']}: {row.get('ms', row.get('skipped'))} ms", flush=True)
    ours = [row for row in results.content["rows"] if row["way"] == AS_TRAINED]
    return int(any(row.get("skipped", TOO_LARGE) != TOO_LARGE for row in ours))


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--precision", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement, at least one call")
    parser.add_argument("--resume", action="store_true", help="keep rows of the same code, and measure the others")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(arguments)
    args.out = args.out or results_file(find_device(args.device), RESULTS / "frozen")
    return args


def open_results(args: argparse.Namespace) -> Results:
    """Return the file of results, with the rows that are kept."""
    case = {name: getattr(args, name) for name in ("height", "width", "images", "precision")}
    head = {"machine": machine(torch.device(args.device)), "case": case}
    return Results(args.out, head, ("layer", "way"), None, args.resume)


def planned(args: argparse.Namespace) -> list[dict]:
    """Return the names of the rows to measure."""
    ways = {name: (AS_TRAINED, IN_CONVOLUTION, *(PADDED if name == "stem" else ())) for name in LAYERS}
    return [{"layer": name, "way": way} for name in LAYERS for way in ways[name]]


def make_step(layer: Layer, way: str, args: argparse.Namespace, device: torch.device) -> Callable[[], torch.Tensor]:
    """Return a call of a layer that goes one of the ways."""

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, device=device, dtype=getattr(torch, args.precision))
        return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values

    channels = PADDED.get(way, layer.channels)
    x = random(args.images, channels, args.height // layer.scale, args.width // layer.scale)
    weight, bias = random(layer.out, channels, layer.kernel, layer.kernel), random(layer.out)
    geometry = (layer.stride, layer.stride), (layer.kernel // 2, layer.kernel // 2), (1, 1), 1
    shortcut = random(*F.conv2d(x, weight, None, *geometry).shape) if layer.added else None
    if way == IN_CONVOLUTION:
        if layer.added:
            return lambda: torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, *geometry)
        return lambda: torch.cudnn_convolution_relu(x, weight, bias, *geometry)

    def finish(y: torch.Tensor) -> torch.Tensor:
        y = y + bias[:, None, None]
        return F.relu(y if shortcut is None else y + shortcut)

    compiled = torch.compile(finish)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return compiled(F.conv2d(x, weight, None, *geometry))

    return step


if __name__ == "__main__":
    run(main)
