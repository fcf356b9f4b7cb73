"""Ctrl-C and SIGTERM end a command without a traceback and with 130, in the middle of its imports, too."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from dwtriton.console import cli
from dwtriton.core.errors import UserError


@pytest.mark.parametrize(
    ("command", "number"),
    [(["-m", "dwtriton.train"], signal.SIGINT), (["-m", "dwtriton", "export"], signal.SIGTERM)],
)
def test_a_signal_during_imports(command, number):
    command = [sys.executable, "-X", "importtime", *command, "--help"]  # which says what has been imported
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeds = partial(signal.signal, number, signal.SIG_DFL)  # as jobs in the background do not
    with subprocess.Popen(command, **pipes, preexec_fn=heeds) as process:
        imported = []
        for line in process.stderr:
            imported.append(line)
            if line.endswith("torch._C\n"):
                process.send_signal(number)
                break
        printed, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""
    assert "torch._inductor" not in rest  # it was in the middle of it
    assert [line for line in (*imported, *rest.splitlines()) if not line.startswith("import time:")] == []


def raising(*errors):
    """Return a command that gets a signal, whose KeyboardInterrupt a library turns into the other errors."""

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except KeyboardInterrupt as interrupt:
            for error in errors:
                raise error from interrupt
            raise

    return main


@pytest.mark.parametrize("errors", [(), (ImportError("partially initialised"),), (UserError("no image"),)])
def test_a_signal_during_work_whatever_a_library_makes_of_it(errors, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(raising(*errors))
    assert (exit_.value.code, tuple(capsys.readouterr())) == (130, ("", ""))


def test_signals_that_a_shell_lets_ignore_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def main():
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 0
