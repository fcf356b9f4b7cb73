"""`dwtriton NAME ...`, the same as `python -m dwtriton.NAME ...`: all commands under one name."""

import argparse
import sys
from importlib import import_module, metadata
from types import ModuleType

from dwtriton.console import cli
from dwtriton.core.errors import UserError
from dwtriton.core.text import nearest

COMMANDS = {  # in the order in which one meets them
    "train": "train a detector on data in COCO layout",
    "evaluate": "COCO metrics and a report of a checkpoint",
    "predict": "detect objects in images and videos",
    "explain": "draw the positive and negative weights of objects",
    "data": "check a data set, convert one to COCO layout, or split it",
    "config": "list all settings of a config",
    "weights": "show checkpoints, and convert them from and to MMDetection",
    "summary": "parameters, operations and output shapes of a network",
    "export": "write a network to a torch.export or ONNX file",
    "tune": "find the fastest launch configs of the kernels on this GPU",
    "completion": "print a shell's completion script for these commands",
}
EXAMPLES = """\
  dwtriton train --cfg shapes
  dwtriton evaluate --weights runs/shapes-1/last.pt
  dwtriton COMMAND --help                              explains a command, with examples"""


def build_parser(with_options: bool = False) -> argparse.ArgumentParser:
    """Return the parser of all commands; their options need imports of several seconds and are left out by default."""
    description = "Dual Weighting label assignment for dense object detectors."
    parser = cli.Parser(prog="dwtriton", description=description, **cli.help_with(EXAMPLES))
    parser.add_argument("--version", action="version", version=f"dwtriton {metadata.version('dwtriton')}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, help in COMMANDS.items():
        parents = [import_command(name).build_parser()] if with_options else []
        commands.add_parser(name, help=help, parents=parents, add_help=False)
    return parser


def import_command(name: str) -> ModuleType:
    """Return the module with a command's `main` and `build_parser`: `dwtriton.NAME`, or its `__main__` if a package."""
    module = import_module(f"dwtriton.{name}")
    return import_module(f"dwtriton.{name}.__main__") if hasattr(module, "__path__") else module


def main() -> int:
    """Run the command named first with the arguments after it; return its exit code."""
    name, *arguments = sys.argv[1:] or [""]
    if name in COMMANDS:
        sys.argv = [f"dwtriton {name}", *arguments]
        return import_command(name).main()
    if name.startswith("-"):
        build_parser().parse_args([name])
    problem = f"there is no command {name!r}{nearest(name, list(COMMANDS))}" if name else "name a command"
    raise UserError(f"{problem}; dwtriton --help lists them")


def script() -> None:
    """Console script `dwtriton`."""
    cli.run(main)


if __name__ == "__main__":
    script()
