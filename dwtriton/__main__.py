"""`dwtriton NAME ...`, the same as `python -m dwtriton.NAME ...`: all commands under one name."""

import sys
from importlib import import_module, metadata

from dwtriton.console import cli
from dwtriton.console.cli import EXIT_CODES
from dwtriton.core.errors import UserError
from dwtriton.core.text import nearest

COMMANDS = {  # what each does, in the order in which one meets them
    "train": "train a detector on data in COCO layout",
    "evaluate": "COCO figures and a report of a checkpoint",
    "predict": "detect in images and videos",
    "explain": "draw the positive and negative weights of an image's objects",
    "data": "check a data set, or convert one to COCO format",
    "weights": "look into checkpoints, and convert them from and to MMDetection",
    "summary": "parameters, operations and outputs of each part of a network",
    "export": "write a checkpoint's network as a torch.export or ONNX file",
    "tune": "find the fastest configs of the kernels on this GPU",
    "completion": "print the script that completes these commands in a shell",
}
PACKAGES = ("train", "data", "evaluate", "predict", "explain", "weights")  # commands with a folder of their own


def usage() -> str:
    """What `dwtriton --help` prints."""
    commands = "\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())
    return (
        f"usage: dwtriton COMMAND ...    or: python -m dwtriton.COMMAND ...\n\n"
        f"Dual Weighting label assignment for dense object detectors.\n\ncommands:\n{commands}\n\n"
        f"options:\n  -h, --help  this list; `dwtriton COMMAND --help` explains a command, with examples\n"
        f"  --version   the version of this package\n\n"
        f"examples:\n  dwtriton train --cfg shapes\n  dwtriton evaluate --weights runs/shapes-1/last.pt\n\n{EXIT_CODES}"
    )


def module_name(command: str) -> str:
    """The module that holds a command's `main` and `build_parser`."""
    return f"dwtriton.{command}.__main__" if command in PACKAGES else f"dwtriton.{command}"


def main() -> int:
    """Run the command that is named first with the arguments behind it; returns its exit code."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"dwtriton {metadata.version('dwtriton')}")
        return 0
    if name not in COMMANDS:
        problem = f"there is no command {name!r}{nearest(name, list(COMMANDS))}" if name else "name a command"
        raise UserError(f"{problem}; dwtriton --help lists them")
    command = import_module(module_name(name))
    sys.argv = [f"dwtriton {name}", *arguments]
    return command.main()


def script() -> None:
    """The console script `dwtriton`."""
    cli.run(main)


if __name__ == "__main__":
    script()
