"""Run a command of the package with a scenario applied, for test_ranks.py: `rank_job.py SCENARIO [argument ...]`.

torchrun starts this file. Jobs of which nothing depends on torchrun itself call `run_rank` in processes forked from one
that has imported everything (`Forked`), which saves most of their time.
"""

import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from dwtriton.core import elastic
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.train import __main__ as train_command
from dwtriton.train import trainer as trainer_module


def rank() -> str:
    return os.environ.get("RANK", "0")


def before_step(act):
    """Call `act(trainer, batches)` before every optimiser step."""
    step = trainer_module.Trainer.step

    def acting_step(trainer, batches, epoch):
        act(trainer, batches)
        step(trainer, batches, epoch)

    trainer_module.Trainer.step = acting_step


def in_float64():
    """Weights and images in float64. First boxes of 16, 32, ... pixels have IoUs over 0.5: no normaliser is clamped."""
    build = trainer_module.build_detector

    def build_in_float64(cfg):
        detector = build(cfg).double()
        torch.nn.init.constant_(detector.head.box_conv.bias, 1.0)
        detector.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return detector

    trainer_module.build_detector = build_in_float64


def compiled_in_float64():
    """Trace graphs as torch.compile does, but run them without generating code, which would take minutes."""
    in_float64()
    torch.compile = partial(torch.compile, backend="aot_eager")


def rank_1_dies_once():
    """In iteration 6 of a job that began at the first, by SIGKILL."""
    begun_at = []

    def die(trainer, _batches):
        begun_at.append(trainer.iteration)
        if (rank(), trainer.iteration, begun_at[0]) == ("1", 5, 0):
            os.kill(os.getpid(), signal.SIGKILL)

    in_float64()
    before_step(die)


def end_at_once(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def rank_1_dies_before_it_trains():
    if rank() == "1":
        trainer_module.build_detector = end_at_once


def rank_1_dies_before_it_evaluates():
    if rank() == "1":
        evaluate_command.detect = end_at_once


def rank_1_has_another_rate():
    if rank() == "1":
        sys.argv.append("--set=optimizer.lr=0.5")


def rank_1_has_another_folder():
    if rank() == "1":
        sys.argv[sys.argv.index("--out") + 1] += "-other"


def rank_1_resumes():
    if rank() == "1":
        sys.argv.append("--resume")


def rank_1_evaluates_with_another_threshold():
    if rank() == "1":
        sys.argv.append("--set=inference.score_threshold=0.9")


def rank_1_evaluates_another_file():
    if rank() == "1":
        sys.argv[sys.argv.index("--weights") + 1] += "-other"


def rank_1_sees_nan():
    """In iteration 3 the images of rank 1 are not finite; it writes their ids beside the run."""

    def poison(trainer, batches):
        if (rank(), trainer.iteration) == ("1", 2):
            trainer.detector.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.nan,))
            (trainer.out / "poisoned").write_text(" ".join(map(str, batches[0].image_ids)))

    before_step(poison)


def rank_1_has_a_bug():
    """In iteration 3 an error of its own, of the type that gloo raises."""

    def fail(trainer, _batches):
        if (rank(), trainer.iteration) == ("1", 2):
            raise RuntimeError("a bug beside gloo")

    before_step(fail)


def slow_steps():
    in_float64()
    before_step(lambda _trainer, _batches: time.sleep(0.3))


def stops():
    """After as many iterations as the first argument says, as after a signal."""
    last = int(sys.argv.pop(1))

    def request_stop(trainer, _batches):
        trainer.stop_requested = trainer.iteration + 1 == last < trainer.total

    before_step(request_stop)


def is_killed():
    """The rank that the first argument names, after as many iterations as the second one says."""
    victim, last = sys.argv.pop(1), int(sys.argv.pop(1))
    before_step(lambda trainer, _batches: end_at_once() if (rank(), trainer.iteration) == (victim, last) else None)


def evaluates():
    pass


TRAINING = (
    in_float64,
    compiled_in_float64,
    rank_1_dies_once,
    rank_1_dies_before_it_trains,
    rank_1_has_another_rate,
    rank_1_has_another_folder,
    rank_1_resumes,
    rank_1_sees_nan,
    rank_1_has_a_bug,
    slow_steps,
    stops,
    is_killed,
)
EVALUATING = (
    evaluates,
    rank_1_dies_before_it_evaluates,
    rank_1_evaluates_with_another_threshold,
    rank_1_evaluates_another_file,
)


def main() -> None:
    """Run the command for which the scenario named by the first argument is made."""
    name = sys.argv.pop(1)
    scenario = next(scenario for scenario in (*TRAINING, *EVALUATING) if scenario.__name__ == name)
    scenario()
    command = train_command if scenario in TRAINING else evaluate_command
    command.cli.run(command.main)


def run_rank(number: int, ranks: int, port: int, output: Path, arguments: list[str]) -> None:
    """Run as one of the ranks in an environment like torchrun's; all that is printed is appended to `output`."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    environment = {"RANK": number, "LOCAL_RANK": number, "GROUP_WORLD_SIZE": 1}
    environment |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "job"}
    environment |= {"TORCHELASTIC_MAX_RESTARTS": 0, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ |= {name: str(value) for name, value in environment.items()}
    torch.set_num_threads(1)
    elastic.REPORT_SECONDS = 0  # of a torchrun that is not there
    sys.argv[:] = ["rank_job.py", *arguments]
    main()


class Forked:
    """Starts jobs, of two ranks if not told otherwise, in forked processes."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.ranks: list[multiprocessing.Process] = []

    def run(self, output: Path, *arguments: str, ranks: int = 2) -> tuple[int, str]:
        """Run a job to its end; return 0 if all ranks succeed, and what they print."""
        store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # torchrun's, for it
        self.ranks = [
            self.context.Process(target=run_rank, args=(number, ranks, store.port, output, list(arguments)))
            for number in range(ranks)
        ]
        for process in self.ranks:
            process.start()
        for process in self.ranks:
            process.join(240)
        return max(abs(process.exitcode) for process in self.ranks), output.read_text()

    def kill(self) -> None:
        """End the ranks of the last job."""
        for process in self.ranks:
            process.kill()


if __name__ == "__main__":
    main()
