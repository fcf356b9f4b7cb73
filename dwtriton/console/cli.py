"""The command line of all commands: parsers with examples, shared options, output, errors and exit codes."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from dwtriton.console.terminal import Terminal, escape_unknown_characters, printable
from dwtriton.core.errors import UserError, cause_of_failure
from dwtriton.core.interruption import INTERRUPTED, interruptible
from dwtriton.core.text import one_line

EXIT_CODES = "exit codes: 0 done; 1 the run failed; 2 bad input; 130 interrupted"
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "--cfg": {"metavar": "NAME|FILE", "required": True, "help": "config, by name or as a TOML file"},
    "--set": {"metavar": "KEY=VALUE", "action": "append", "default": [], "help": "change a config key; repeatable"},
    "--weights": {"metavar": "FILE", "type": Path, "required": True, "help": "checkpoint of a run, or a converted one"},
    "--data": {"metavar": "DIR", "type": Path, "help": "folder in COCO layout (default: the data of the run)"},
    "--size": {"metavar": "HxW", "help": "image size, multiples of 32 (default: that of inference, landscape)"},
    "--out": {"metavar": "FILE", "type": Path, "required": True, "help": "file to write"},
    "--force": {"action": "store_true", "help": "replace what is already there"},
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors show arguments as `printable` does: a shell may have put the names of files there."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def help_with(examples: str) -> dict[str, Any]:
    """Return the arguments of a parser whose --help ends with examples and the exit codes."""
    epilog = f"examples:\n{examples}\n\n{EXIT_CODES}"
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def command_parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with --quiet and --json."""
    parser = Parser(prog=f"python -m {prog}", description=description, **help_with(examples))
    _add_output_options(parser)
    return parser


def parser_with_actions(
    prog: str, description: str, examples: dict[str, str]
) -> tuple[argparse.ArgumentParser, Callable[..., argparse.ArgumentParser]]:
    """Return the parser of a command with several actions, and `add_action(name, run, help)` -> parser of the action.

    `examples` by action. The parsed arguments hold the name as `action` and the function as `run`.
    """
    all_examples = "\n".join(examples.values())
    parser = Parser(prog=f"python -m {prog}", description=description, **help_with(all_examples))
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")

    def add_action(name: str, run: Callable, help: str) -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}."
        action = actions.add_parser(name, help=help, description=description, **help_with(examples[name]))
        _add_output_options(action)
        action.set_defaults(run=run)
        return action

    return parser, add_action


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add some of SHARED_OPTIONS; `changes` replace parts of their declaration, such as the help."""
    for name in names:
        parser.add_argument(name, **SHARED_OPTIONS[name] | changes)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print nothing but errors")
    output.add_argument("--json", action="store_true", help="print the result as one line of JSON, and nothing else")


def open_console(arguments: argparse.Namespace, silent: bool = False) -> Console:
    """Return the console for texts and tables; it prints nothing with --quiet, with --json, or if it is `silent`."""
    return Terminal(quiet=arguments.quiet or arguments.json or silent)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line as it is: not wrapped, so that scripts and logs can read it, and without markup or colours."""
    print_text(console, one_line(text), style)


def print_text(console: Console, text: str, style: str | None = None) -> None:
    """Print a text of several lines as `print_line` prints one."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def report_failure(problem: str) -> int:
    """Print why a run failed as one line on standard error, even with --quiet; return the exit code."""
    _print_error(problem)
    return 1


def _print_error(problem: object) -> None:
    indented = re.sub(r"\n(?!  )", "\n  ", printable(f"error: {problem}"))  # a name cannot begin a line
    print(indented, file=sys.stderr)


def read_size(text: str, divisor: int = 1) -> tuple[int, int]:
    """Return (h, w) of `--size HxW`. Raises UserError unless both are multiples of `divisor`, from 1 to 99999."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    height, width = map(int, match.groups()) if match else (0, 0)
    if not (height and width) or height % divisor or width % divisor:
        unit = "pixels" if divisor == 1 else f"multiples of {divisor} pixels"
        raise UserError(f"--size is height x width in {unit}, such as 800x1344, not {text!r}")
    return height, width


def print_result(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the result of a command as one line if --json is given."""
    if arguments.json:
        print(json.dumps(result).replace("\x7f", r"\u007f"))  # the one control character that JSON lets through


def run(main: Callable[[], int]) -> None:
    """Run a command and exit with its code; print a UserError and what fails a run as one line on standard error."""
    escape_unknown_characters()
    try:
        with interruptible():
            code = main()
            sys.stdout.flush()
    except UserError as error:
        _print_error(error)
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        cause = cause_of_failure(error)
        if cause is None:
            raise
        code = report_failure(cause)
    sys.exit(code)
