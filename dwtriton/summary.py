"""`python -m dwtriton.summary`: the parts of a config's network, their parameters, operations and outputs."""

import argparse
import re

import torch
from rich.table import Table

from dwtriton import cli
from dwtriton.cli import say
from dwtriton.config import load_config
from dwtriton.errors import UserError
from dwtriton.model.detector import SIZE_DIVISOR, build_detector
from dwtriton.model.flops import PARTS, part_flops
from dwtriton.points import STRIDES

EXAMPLES = """\
  python -m dwtriton.summary --cfg r50_1x
  python -m dwtriton.summary --cfg shapes --size 160x224 --set head.convs=4 --json"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command("dwtriton.summary", "Parameters and operations of each part of a network.", EXAMPLES)
    parser.add_argument("--cfg", metavar="NAME|FILE", required=True, help="a config by name or TOML file")
    parser.add_argument("--size", metavar="HxW", default="800x1344", help="of an image (default: %(default)s)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one config key; repeatable"
    )
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    cfg = load_config(arguments.cfg, arguments.set)
    size = read_size(arguments.size)
    with torch.device("meta"):
        detector = build_detector(cfg)
    flops = part_flops(cfg, size)
    table = Table("part", "parameters", "trainable", "GFLOPs an image")
    rows = {}
    for part in PARTS:
        parameters = list(getattr(detector, part).parameters())
        rows[part] = {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "flops": flops[part],
        }
    rows["all"] = {key: sum(rows[part][key] for part in PARTS) for key in ("parameters", "trainable", "flops")}
    for part, row in rows.items():
        table.add_row(part, f"{row['parameters']:,}", f"{row['trainable']:,}", f"{row['flops'] / 1e9:.1f}")
    console.print(table)
    levels = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    cells = ", ".join(f"{height}x{width}" for height, width in levels)
    points = sum(height * width for height, width in levels)
    say(console, f"levels {cells}: {points} points, {points * cfg.head.num_classes} class logits an image")
    cli.print_result(arguments, {"size": list(size), "points": points, "parts": rows})
    return 0


def read_size(text: str) -> tuple[int, int]:
    """(h, w) of "HxW". Raises UserError unless both are multiples of 32."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = tuple(map(int, match.groups())) if match else (0, 0)
    if not all(side and side % SIZE_DIVISOR == 0 for side in size):
        raise UserError(f"--size is height x width in multiples of {SIZE_DIVISOR}, such as 800x1344, not {text!r}")
    return size


if __name__ == "__main__":
    cli.run(main)
