"""Train, stop, fail, kill, resume on other ranks, evaluate, damage a file, in any order: the same bits or a refusal."""

import io
import json
import math
import re
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from rich.console import Console

from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.config.load import dump_config, load_config
from dwtriton.core.errors import UserError, WriteError
from dwtriton.train.metrics import read_metrics
from dwtriton.train.signals import Interrupted
from dwtriton.train.trainer import Trainer
from tests.conftest import TINY
from tests.support import toy_run
from tests.support.faulty_disk import BROKEN, FULL, READ_ONLY, Killed, faulty_disk
from tests.support.generated_cases import THOROUGH
from tests.support.kills import SETTINGS
from tests.support.rank_job import Forked

FILES = ("last.pt", "previous.pt", "best.pt", "epoch-001.pt", "metrics.jsonl", "config.toml", ".last.partial.pt")
DAMAGES = {
    "a flipped bit": lambda content, at: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :],
    "a cut": lambda content, at: content[:at],
    "zeros": lambda content, at: content[:at] + bytes(len(content) - at),
    "garbage behind it": lambda content, at: content + b"garbage",
}
OFFER = re.compile(r"cp (\S+) (\S+) and --resume again$")


class RunInAnyOrder(RuleBasedStateMachine):
    """A run of `total` iterations in a new folder; `reference` is that of a run that nothing happened to.

    Subclasses have `train(to)`, which begins the run or goes on, and stops after that many iterations.
    """

    reference: Path
    total: int
    calls: int  # that change the disk, in a whole run

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.out = Path(self.folder.name) / "run"
        self.damaged: set[str] = set()

    def go_on(self, to: int) -> None:
        """Train as a user would who does what an error advises; a run without a whole checkpoint begins anew."""
        while refusal := self.refused(to):
            assert "last.pt" in self.damaged, refusal
            assert "\n" not in refusal
            if offer := OFFER.search(refusal):
                shutil.copyfile(*offer.groups())
                self.damaged.discard("last.pt")
            else:
                assert not any(map(self.is_whole, self.out.glob("*.pt")))
                shutil.rmtree(self.out)
                self.damaged.clear()

    def refused(self, to: int) -> str | None:
        """Train; return why that is refused, if it is."""
        try:
            self.train(to)
        except UserError as error:
            return str(error)
        return None

    def is_whole(self, path: Path) -> bool:
        try:
            return load_checkpoint(path) is not None
        except UserError:
            return False

    @rule(to=st.integers(1, 100))
    def train_and_stop(self, to):
        with faulty_disk(healthy=math.inf):
            self.go_on(1 + to % self.total)

    @rule(at=st.floats(0, 1), number=st.sampled_from([FULL, BROKEN, READ_ONLY, None]))
    def train_until_the_disk_fails_or_a_kill(self, at, number):
        failure = ""
        try:
            with faulty_disk(int(at * self.calls), number):
                self.go_on(self.total)
        except (WriteError, Killed) as error:
            failure = str(error)
        line = r"" if number is None else rf"{self.out}/\S+ cannot be written: [\w -/]+"
        assert failure == "" or re.fullmatch(line, failure)

    @rule(name=st.sampled_from(FILES), damage=st.sampled_from(list(DAMAGES)), at=st.floats(0, 1, exclude_max=True))
    def damage_a_file(self, name, damage, at):
        path = self.out / name
        if path.exists() and (content := path.read_bytes()):
            path.unlink()  # it may be linked to another one
            path.write_bytes(DAMAGES[damage](content, int(at * len(content))))
            self.damaged.add(name)

    @rule(name=st.sampled_from(FILES))
    def lose_a_file(self, name):
        if (self.out / name).exists():
            (self.out / name).unlink()
            self.damaged.add(name)

    @rule()
    def evaluate(self):
        for path in self.out.glob("[!.]*.pt"):
            assert path.name in self.damaged or self.is_whole(path)

    def teardown(self) -> None:
        with faulty_disk(healthy=math.inf):
            self.go_on(self.total)
        if not self.damaged:
            self.compare_folders()
        names = ["last.pt", "epoch-001.pt", "epoch-002.pt"]
        names += ["best.pt"] * ("metrics.jsonl" not in self.damaged)  # whose lost rows may hold the best AP
        for name in names:
            same = (self.out / name).exists() and (self.out / name).read_bytes() == (self.reference / name).read_bytes()
            assert same or name in self.damaged, name
        rows, expected = (read_metrics(path / "metrics.jsonl") for path in (self.out, self.reference))
        assert rows == expected or "metrics.jsonl" in self.damaged
        assert {json.dumps(row) for row in rows} <= {json.dumps(row) for row in expected}
        self.folder.cleanup()

    def compare_folders(self) -> None:
        leave = {"run.lock", "previous.pt"}  # which depend on where it was stopped
        found, expected = ({path.name for path in folder.iterdir()} - leave for folder in (self.out, self.reference))
        assert found == expected
        for name in found:
            assert (self.out / name).read_bytes() == (self.reference / name).read_bytes(), name


def try_orders(machine, examples, steps):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(machine, settings=settings(options, derandomize=not THOROUGH, database=None))


def count_calls(train) -> int:
    with faulty_disk(healthy=math.inf) as disk:
        train()
    return len(disk.calls)


def test_the_folder_of_a_run(small_config, tmp_path):
    cfg = small_config(train={"keep_every": 1})

    class ToyRun(RunInAnyOrder):
        reference, total = tmp_path / "reference", 5
        calls = count_calls(lambda: toy_run.train(tmp_path / "reference", cfg, 5))

        def train(self, to):
            toy_run.train(self.out, cfg, to)

    try_orders(ToyRun, examples=1000 if THOROUGH else 12, steps=8)


@pytest.mark.slow
def test_a_training(tiny, tmp_path):
    cfg = tiny("train.keep_every=1", "train.checkpoint_every=3")
    whole = Trainer(cfg, tmp_path / "reference", Console(file=io.StringIO()))

    class TinyRun(RunInAnyOrder):
        reference, total = tmp_path / "reference", whole.total
        calls = count_calls(whole.fit)

        def train(self, to):
            resume = any(self.out.glob("*.pt"))
            trainer = Trainer(cfg, self.out, Console(file=io.StringIO()), resume)
            step = trainer.step

            def stopping_step(batches, epoch):
                step(batches, epoch)
                trainer.stop_requested = trainer.iteration == to < self.total

            trainer.step = stopping_step
            try:
                trainer.fit()
            except Interrupted:
                assert trainer.iteration == to

    try_orders(TinyRun, examples=100 if THOROUGH else 4, steps=5)


@pytest.fixture
def server():
    forked = Forked()
    yield forked
    forked.kill()


@pytest.mark.slow
def test_a_training_on_changing_ranks(server, tmp_path):
    """The same bits as a run that was stopped nowhere but where the number of ranks changed."""
    cfg = load_config("shapes", [*TINY, *SETTINGS, "data.shapes={train_images=10, val_images=4}"], tmp_path / "shapes")
    (tmp_path / "cfg.toml").write_text(dump_config(cfg))
    references: dict[tuple[int, ...], Path] = {}  # by the number of ranks in each iteration

    def train(out, ranks, *scenario):
        begin = ["--cfg", str(tmp_path / "cfg.toml")]
        which = ["--resume"] if any(out.glob("*.pt")) else begin
        (tmp_path / "printed").unlink(missing_ok=True)
        arguments = [*map(str, scenario), *which, "--out", str(out)]
        code, printed = server.run(tmp_path / "printed", *arguments, ranks=ranks)
        assert "Traceback" not in printed
        if code == 2:
            raise UserError(re.search("error: (.*)\n", printed)[1])
        return code

    def iteration(out):
        return load_checkpoint(out / "last.pt").iteration if (out / "last.pt").exists() else 0

    assert train(tmp_path / "first", 1, "stops", 0) == 0

    class RunOnRanks(RunInAnyOrder):
        total = iteration(tmp_path / "first")

        def __init__(self):
            super().__init__()
            self.ranks = 1
            self.history: list[int] = []  # the number of ranks in each iteration of last.pt

        @property
        def reference(self):
            assert len(self.history) == self.total
            history = tuple(self.history)
            if history not in references:
                references[history] = out = tmp_path / f"reference {history}"
                for ranks, iterations in groupby(range(self.total), key=lambda n: history[n]):
                    assert train(out, ranks, "stops", max(iterations) + 1) in (0, 130)
            return references[history]

        def run(self, *scenario):
            done = 0 if "last.pt" in self.damaged else iteration(self.out)
            code = train(self.out, self.ranks, *scenario)
            self.history[done:] = [self.ranks] * (iteration(self.out) - done)
            return code

        def train(self, to):
            assert self.run("stops", to) == 0 or iteration(self.out) == to

        @rule(ranks=st.sampled_from([1, 2]))
        def change_ranks(self, ranks):
            self.ranks = ranks

        @rule(at=st.integers(0, 100), victim=st.sampled_from([0, 1]))
        def train_until_the_disk_fails_or_a_kill(self, at, victim):
            if "last.pt" not in self.damaged and self.out.exists():
                self.run("is_killed", min(victim, self.ranks - 1), at % self.total)

        @rule()
        def evaluate(self):
            super().evaluate()
            if "last.pt" in self.damaged or not (self.out / "last.pt").exists():
                return
            out = Path(self.folder.name) / "evaluation"
            arguments = ["evaluates", "--weights", str(self.out / "last.pt"), "--out", str(out), "--force"]
            assert server.run(tmp_path / "printed", *arguments, ranks=self.ranks)[0] == 0
            found = json.loads((out / "metrics.json").read_text())
            for row in read_metrics(self.out / "metrics.jsonl"):
                if (row["kind"], row["iteration"]) == ("evaluation", iteration(self.out)):
                    assert found == {key: row[key] for key in found}

    try_orders(RunOnRanks, examples=50 if THOROUGH else 3, steps=5)
