"""`python -m dwtriton.summary`: parameters, operations and outputs of each part of a config's network."""

import argparse
import math

import torch
from rich.table import Column, Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dwtriton.config.load import load_config
from dwtriton.config.schema import Config
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.data.buckets import padded_size
from dwtriton.model.detector import SIZE_DIVISOR, build_detector

PARTS = ("backbone", "fpn", "head")
EXAMPLES = """\
  python -m dwtriton.summary --cfg r50_1x
  python -m dwtriton.summary --cfg shapes --size 160x224 --set head.convs=4 --json"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.summary", "Print parameters and operations of a network by part.", EXAMPLES)
    cli.add_options(parser, "--cfg", "--size", "--set")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    cfg = load_config(arguments.cfg, arguments.set)
    size = arguments.size and cli.read_size(arguments.size, SIZE_DIVISOR)
    size = size or padded_size([(cfg.inference.short_side, cfg.inference.long_side)], SIZE_DIVISOR)
    with torch.device("meta"):
        detector = build_detector(cfg)
    numbers = [Column(name, justify="right") for name in ("parameters", "trainable", "GFLOPs an image")]
    caption = "of convolutions; a multiplication and an addition are two operations"
    table = Table("part", *numbers, title=f"images of {size[0]}x{size[1]}", caption=caption)
    rows = {}
    for part, flops in part_flops(cfg, size).items():
        parameters = list(getattr(detector, part).parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        rows[part] = {"parameters": sum(p.numel() for p in parameters), "trainable": trainable, "flops": flops}
    rows["all"] = {key: sum(row[key] for row in rows.values()) for key in ("parameters", "trainable", "flops")}
    for part, row in rows.items():
        table.add_row(part, f"{row['parameters']:,}", f"{row['trainable']:,}", f"{row['flops'] / 1e9:.1f}")
    console.print(table)
    levels = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in detector.strides]
    cells = ", ".join(f"{height}x{width}" for height, width in levels)
    points = sum(height * width for height, width in levels)
    print_line(console, f"levels {cells}: {points} points, {points * cfg.head.num_classes} class logits an image")
    cli.print_result(arguments, {"size": list(size), "points": points, "parts": rows})
    return 0


def part_flops(cfg: Config, size: tuple[int, int]) -> dict[str, int]:
    """Return the operations of each part for one image of (h, w), forward.

    Convolutions are counted on fake tensors; a multiplication and an addition are two operations.
    """
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        detector = build_detector(cfg).eval()
        detector.head_outputs(torch.empty(1, 3, *size))
    counts = counter.get_flop_counts()  # by class name of the modules that were called
    return {part: sum(counts[type(getattr(detector, part)).__name__].values()) for part in PARTS}


def _deformable_flops(_input, weight, *_others, out_shape=None, **_settings) -> int:
    """Count a convolution of the same geometry; sampling between cells is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


FLOP_FORMULAS = {torch.ops.torchvision.deform_conv2d: _deformable_flops}  # which PyTorch's counter does not know

if __name__ == "__main__":
    cli.run(main)
