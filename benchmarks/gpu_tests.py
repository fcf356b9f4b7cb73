"""The tests of the GPU, in several processes, within a few minutes.

    python -m benchmarks.gpu_tests

writes a line for each test into benchmarks/results/tests/MACHINE.txt as it ends, and tracebacks of those that fail into
MACHINE-failures.txt beside it. A test that takes too long is stopped with its process, which leaves where it stood; a
new process goes on. Exit code 0: all passed or were skipped; 1: some failed; 2: none can run; 3: for some there was no
time.
"""

import argparse
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing import connection, get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.pytest_worker import work
from dwtriton.console.cli import run
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder

ROOT = Path(__file__).parents[1]
SELECTION = ["-m", "gpu and not slow", "-p", "no:cacheprovider"]
MEMORY = 5e9  # bytes of the GPU that a process may take, besides one test of large offsets
LAST_WORDS = 2.0  # seconds for a process to write where it stands


class Process:
    """A process that runs tests, and the tests that it was given: the one that it runs, and the next."""

    def __init__(self, number: int, folder: Path, arguments: list[str]) -> None:
        self.number = number
        self.log = folder / f"{number}-{time.monotonic_ns()}.txt"
        self.pipe, far_end = (context := get_context("spawn")).Pipe()
        self.process = context.Process(target=work, args=(far_end, self.log, arguments))
        self.process.start()
        far_end.close()  # so that the pipe ends with the process
        self.given: list[str] = []
        self.since = time.monotonic()

    def stop(self, last_words: bool) -> str:
        """End the process; return the end of what it printed, and with `last_words` where it stood."""
        if last_words and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(LAST_WORDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with the processes that a test has started
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


class Run:
    """Tests handed out to processes; every result goes to `report` at once.

    Every other process takes tests from the end: the longest, which compile detectors, lie at both ends.
    """

    def __init__(self, arguments: list[str], limit: float, report: Callable[[str, str, float, str], None]) -> None:
        self.arguments = arguments
        self.limit = limit  # seconds for one test, and for collecting all
        self.report = report
        self.tests: list[str] | None = None  # unknown until the first process has collected them
        self.left: deque[str] = deque()
        self.done: set[str] = set()

    def run(self, processes: int, seconds: float) -> list[str]:
        """Run until all tests are done or the time is up; return the names of those that are not done."""
        deadline = time.monotonic() + seconds
        with TemporaryDirectory() as folder:
            working = [Process(number, Path(folder), self.arguments) for number in range(processes)]
            try:
                while working and time.monotonic() < deadline:
                    limits = [process.since + self.limit for process in working]
                    wait = max(0.0, min(*limits, deadline) - time.monotonic())
                    ready = connection.wait([process.pipe for process in working], wait)
                    for process in list(working):
                        late = time.monotonic() - process.since > self.limit
                        if process.pipe in ready and self.listen(process):
                            continue
                        if process.pipe in ready or late:
                            working.remove(process)
                            if self.give_up(process, late):
                                working.append(Process(process.number, Path(folder), self.arguments))
            finally:
                for process in working:
                    process.stop(last_words=False)
        return [test for test in self.tests or [] if test not in self.done]

    def listen(self, process: Process) -> bool:
        """Take a message of a process; return whether it is still there."""
        try:
            message = process.pipe.recv()
        except (EOFError, OSError):
            return False
        if isinstance(message, list):
            process.since = time.monotonic()
            if self.tests is None:
                self.tests, self.left = message, deque(message)
        elif message is None:
            following = self.take(process.number) if self.left else None
            process.given += [following] if following else []
            process.pipe.send(following)
        else:
            process.given = process.given[1:]
            process.since = time.monotonic()
            self.finish(*message)
        return True

    def take(self, number: int) -> str:
        return self.left.pop() if number % 2 else self.left.popleft()

    def give_up(self, process: Process, late: bool) -> bool:
        """Stop a process that is late, or is no more; return whether another should take its place."""
        words = process.stop(last_words=late)
        if not process.given:
            if self.tests is None:
                raise UserError(f"pytest could not collect the tests:\n{words}")
            return False
        test, *following = process.given
        self.left.extendleft(following)
        code = process.process.exitcode
        problem = f"stopped after {self.limit:.0f} s" if late else f"its process ended with code {code}"
        self.finish(test, "failed", time.monotonic() - process.since, f"{problem}\n{words}")
        return bool(self.left)

    def finish(self, test: str, outcome: str, seconds: float, text: str) -> None:
        if test not in self.done:  # each process reports a module that cannot be imported
            self.done.add(test)
            self.report(test, outcome, seconds, text)


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    if absent := [name for name in ("pytest", "hypothesis", "torch") if find_spec(name) is None]:
        raise UserError(f"the tests need {', '.join(absent)}: install the extra `test`")
    name, processes = args.name, args.processes
    if name is None or processes is None:
        gpu, most = look_at_gpu()
        name, processes = name or gpu, processes or most
    make_folder(args.folder)
    names, failures = (args.folder / f"{name}{ending}.txt" for ending in ("", "-failures"))
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    with names.open("w", encoding="utf-8") as lines, failures.open("w", encoding="utf-8") as details:

        def report(test: str, outcome: str, seconds: float, text: str) -> None:
            counts[outcome] += 1
            print(f"{outcome} {seconds:.1f} s {test}", file=lines, flush=True)
            if outcome == "failed":
                print(f"failed {test}", flush=True)
                print(f"{'=' * 20} {test}\n{text}\n", file=details, flush=True)

        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # of each process
        missing = Run([*SELECTION, *args.tests], args.seconds, report).run(processes, 60 * args.minutes)
        total = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        summary = f"{total}, {len(missing)} missing, {time.monotonic() - begin:.0f} s"
        print(f"missing: {', '.join(missing) or 'none'}\n{summary}", file=lines)
    print(f"missing: {', '.join(missing) or 'none'}\n{summary}; names in {names}, tracebacks in {failures}")
    return 1 if counts["failed"] else 3 if missing or not counts["passed"] else 0


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=["tests"], help="files or folders (default: all)")
    parser.add_argument("--minutes", type=float, default=3.0, help="for all together (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=90.0, help="for one test (default: %(default)g)")
    parser.add_argument("--processes", type=int, help="default: 8, or what cores and memory of the GPU allow")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results" / "tests", help="of the files")
    parser.add_argument("--name", help="of the files (default: of the GPU)")
    return parser.parse_args(arguments)


def look_at_gpu() -> tuple[str, int]:
    """Return the name of the GPU as in names of files, and how many processes may use it. Raises UserError for none."""
    import torch

    from benchmarks.recording import results_file

    if not torch.cuda.is_available():
        raise UserError("gpu-tests: PyTorch finds no GPU of NVIDIA or AMD; none of its tests can run")
    device = torch.device("cuda")
    memory = torch.cuda.get_device_properties(device).total_memory
    return results_file(device).stem, max(1, min(8, (os.cpu_count() or 2) // 2, int(memory / MEMORY)))


if __name__ == "__main__":
    run(main)
