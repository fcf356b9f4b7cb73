"""The end of a command on several ranks after another rank has ended: one line, and exit code 1."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from dwtriton.console.cli import report_failure
from dwtriton.core import elastic, ranks


def end_with_lost_ranks(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command on several ranks end with one line, and 1, if another rank has ended before it."""

    @wraps(command)
    def run_on_rank(*arguments: Any) -> int:
        try:
            with ranks.explain_lost_ranks():
                return command(*arguments)
        except ranks.LostRankError as error:
            cause = f"{type(error.__cause__).__name__}: {str(error.__cause__).partition(chr(10))[0]}"
            report_failure(f"{error}; torchrun's report says how that rank ended ({cause})")
            time.sleep(elastic.REPORT_SECONDS)
            return 1

    return run_on_rank
