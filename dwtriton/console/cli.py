"""What every command shares: help with examples, output for people or for scripts, errors in one line, exit codes."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from dwtriton.core.errors import UserError

EXIT_CODES = "exit codes: 0 done; 1 the run failed; 2 bad input; 130 interrupted"


def command(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command, with the options for scripts; its `--help` ends with examples and the exit codes."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description, **_ending(examples))
    _add_output_options(parser)
    return parser


def command_with_actions(
    prog: str, description: str, examples: dict[str, str]
) -> tuple[argparse.ArgumentParser, Callable[..., argparse.ArgumentParser]]:
    """The parser of a command that does several things, and `add(action, run, what)`, which makes an action's own.

    `examples` by action; the parsed arguments hold `action` and, as `run`, the function of the chosen one.
    """
    every = "\n".join(examples.values())
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description, **_ending(every))
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")

    def add(action: str, run: Callable, what: str) -> argparse.ArgumentParser:
        description = f"{what[0].upper()}{what[1:]}."
        sub = actions.add_parser(action, help=what, description=description, **_ending(examples[action]))
        _add_output_options(sub)
        sub.set_defaults(run=run)
        return sub

    return parser, add


def _ending(examples: str) -> dict[str, Any]:
    epilog = f"examples:\n{examples}\n\n{EXIT_CODES}"
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print nothing but errors")
    output.add_argument("--json", action="store_true", help="print the result as one line of JSON, and nothing else")


def open_console(arguments: argparse.Namespace, speaks: bool = True) -> Console:
    """Where a command tells people what it does: nowhere with `--quiet` or `--json`, or if this process is not to."""
    return Console(quiet=arguments.quiet or arguments.json or not speaks)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: not wrapped, so that scripts and logs can read it, and without colours for its numbers."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def report_failure(problem: str) -> int:
    """Print why a run failed, as one line on standard error, whatever else is printed; returns the exit code."""
    print(f"error: {problem}", file=sys.stderr)
    return 1


def read_size(text: str, divisor: int = 1) -> tuple[int, int]:
    """(h, w) of the option `--size HxW`. Raises UserError unless both are positive multiples of `divisor`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    height, width = map(int, match.groups()) if match else (0, 0)
    if not (height and width) or height % divisor or width % divisor:
        unit = "pixels" if divisor == 1 else f"multiples of {divisor} pixels"
        raise UserError(f"--size is height x width in {unit}, such as 800x1344, not {text!r}")
    return height, width


def print_result(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """With `--json`, print the result of the command as one line."""
    if arguments.json:
        print(json.dumps(result))


def run(main: Callable[[], int]) -> None:
    """Run a command and exit with its code; a UserError becomes one line on standard error."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
