"""A process that runs pytest's tests one by one as another process names them; knows nothing of PyTorch."""

import faulthandler
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest


def work(pipe: Connection, log: Path, arguments: list[str]) -> None:
    """Collect the tests that pytest selects by `arguments`, and run those that come through the pipe.

    What it prints goes to the file `log`, and so does the line at which it stands when it gets SIGUSR1.
    """
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.register(signal.SIGUSR1, file=file)  # pytest captures the two others
    pytest.main(arguments, plugins=[Worker(pipe)])


class Worker:
    """A plugin of pytest: asks for the name of the next test, and sends (name, outcome, seconds, text) of each.

    The first message holds the names of all tests. A module that cannot be imported counts as a test that failed.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.reports: list[pytest.TestReport] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.pipe.send((report.nodeid, "failed", 0.0, report.longreprtext))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.pipe.send(list(items))
        name = self.ask()
        while name is not None:
            following = self.ask()  # pytest keeps fixtures that the following test uses, too
            self.reports.clear()
            session.config.hook.pytest_runtest_protocol(item=items[name], nextitem=items.get(following))
            self.pipe.send((name, *self.result()))
            name = following
        return True

    def ask(self) -> str | None:
        self.pipe.send(None)
        return self.pipe.recv()

    def result(self) -> tuple[str, float, str]:
        """Return outcome, seconds and, unless it passed, the text of the test that has just run."""
        seconds = sum(report.duration for report in self.reports)
        for outcome in ("failed", "skipped"):
            texts = [_text(report) for report in self.reports if report.outcome == outcome]
            if texts:
                return outcome, seconds, "\n".join(texts)
        return "passed", seconds, ""


def _text(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # of a skipped test: file, line, reason
        return report.longrepr[2]
    return "\n".join([report.longreprtext, *(f"--- {title}\n{text}" for title, text in report.sections)])
