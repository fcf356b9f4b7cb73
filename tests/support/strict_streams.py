"""Commands whose output goes to streams that take ASCII alone, as in a process of their own."""

import io
import sys

import pytest

from dwtriton.__main__ import import_command


def run_on_strict_streams(name: str, *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii", "strict", newline="") for _ in range(2)]
    module = import_command(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as exit_:
            module.cli.run(module.main)
    for stream in streams:
        stream.flush()
    printed, error = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    return exit_.value.code, printed, error
