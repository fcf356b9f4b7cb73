"""What every command shares: errors in one line, and exit codes that scripts can use."""

import argparse
import sys
from collections.abc import Callable

from dwtriton.errors import UserError

EXIT_CODES = "exit codes: 0 done; 1 the run failed; 2 bad input; 130 interrupted"


def command(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose `--help` ends with examples and the exit codes."""
    return argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=description,
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: Callable[[], int]) -> None:
    """Run a command and exit with its code; a UserError becomes one line on standard error."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
