"""Jobs of two ranks, as torchrun starts them, on CPUs: what one process gives, and one clear end when one fails."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.config.load import dump_config
from dwtriton.core import elastic, ranks
from dwtriton.core.errors import RunError, UserError
from dwtriton.train.metrics import read_metrics
from tests.support.rank_job import Forked

JOB = [str(Path(__file__).parents[1] / "support" / "rank_job.py")]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MARK = ("DWTRITON_TEST_JOB", str(os.getpid()))  # in the environment of every process that a test starts

SETTINGS = [  # of runs that are compared between numbers of processes
    "backbone.frozen_statistics=true",  # batch norms that train see the images of their own process
    "head.refine=true",
    "data.short_side=[64, 96]",
    "data.long_side=160",
    "data.buckets=2",  # the size of a batch is that of the images of all processes
    "train.checkpoint_every=3",
    "train.ema_decay=0.9",
    "optimizer.clip_norm=5.0",
    "data.class_weights={star=0.25, ring=0}",  # the weights of all processes' boxes normalise the losses of each
]


def start_job(folder, cfg, scenario, torchrun=TORCHRUN, out="run", environment=()) -> subprocess.Popen:
    """Start the training command; all that it prints can be read from the process."""
    file = folder / f"{out}.toml"
    file.write_text(dump_config(cfg))
    command = [sys.executable, *torchrun, *JOB, scenario, "--cfg", str(file), "--out", str(folder / out)]
    environment = {**os.environ, **dict(environment)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


@pytest.fixture(scope="module")
def server():
    """What forks ranks; not marked, so that it lives through all tests."""
    forked = Forked()
    first = forked.context.Process(target=int)
    first.start()
    first.join()
    return forked


@pytest.fixture(scope="module", autouse=True)
def marked(server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*MARK)
        yield


@pytest.fixture(autouse=True)
def nothing_runs_on(marked):
    """A test that fails leaves no process behind: torchrun gives each of its own a session, loaders leave theirs."""
    yield
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            if "=".join(MARK).encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


@pytest.fixture
def start(tiny, tmp_path):
    """start(scenario, *overrides, torchrun=[...], out=..., environment=...) -> Popen of the training command."""

    def start(scenario: str, *overrides: str, **options) -> subprocess.Popen:
        return start_job(tmp_path, tiny(*overrides), scenario, **options)

    return start


@pytest.fixture
def fork(server, tiny, tmp_path):
    """fork(scenario, *overrides) -> (code, printed) of the training command on two ranks."""

    def run(scenario: str, *overrides: str) -> tuple[int, str]:
        (tmp_path / "run.toml").write_text(dump_config(tiny(*overrides)))
        arguments = ["--cfg", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]
        return server.run(tmp_path / "printed", scenario, *arguments)

    yield run
    server.kill()


def finish(process: subprocess.Popen) -> str:
    """Everything it printed, once it has ended."""
    return process.communicate(timeout=240)[0]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The folder of a run of one process in float64, where nothing but the number of processes makes a difference."""
    folder = tmp_path_factory.mktemp("alone")
    job = start_job(folder, tiny(*SETTINGS, "schedule.epochs=1"), "in_float64", torchrun=[])
    printed = finish(job)
    assert job.returncode == 0, printed
    return folder / "run"


def assert_same_run(run, expected):
    """Losses, learning rates and AP of every row; weights, EMA and momenta of the last checkpoint."""
    rows, ours = (read_metrics(folder / "metrics.jsonl") for folder in (expected, run))
    assert len(rows) == len(ours) > 6
    for row, own in zip(rows, ours):
        assert own.pop("kind") == row.pop("kind")
        assert own.pop("class_ap", {}) == pytest.approx(row.pop("class_ap", {}), abs=1e-9)
        assert own == pytest.approx(row, rel=1e-9, abs=1e-9)
    whole, shared = (load_checkpoint(folder / "last.pt") for folder in (expected, run))
    assert shared.iteration == whole.iteration
    assert len(whole.optimizer["state"]) > 60
    for field in ("model", "ema", "optimizer"):
        torch.testing.assert_close(getattr(shared, field), getattr(whole, field), rtol=1e-9, atol=1e-9)


def test_two_ranks_one_of_which_dies_and_is_restarted_give_what_one_process_gives(start, alone, tmp_path):
    """In float64: losses, weights, momenta, AP."""
    job = start("rank_1_dies_once", *SETTINGS, "schedule.epochs=1", torchrun=[*TORCHRUN, "--max-restarts", "1"])
    printed = finish(job)
    assert job.returncode == 0, printed
    assert "rank 0 lost contact with rank 1 after iteration 5" in printed
    assert f"from {tmp_path / 'run' / 'last.pt'}" in printed  # of iteration 3
    assert "3 of them done" in printed
    assert_same_run(tmp_path / "run", alone)


def test_two_ranks_that_compile_give_what_one_process_gives_without(fork, alone, tmp_path):
    """One graph for each bucket, with the exchange of normalisers in it; gradients are exchanged behind it."""
    code, printed = fork("compiled_in_float64", *SETTINGS, "schedule.epochs=1", "train.compile=default")
    assert code == 0, printed
    assert "compiled 2 graphs in " in printed
    assert "recompiled in iteration" not in printed
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_job_on_two_machines_resumes_when_a_process_of_one_dies(start, alone, tmp_path):
    """The other machine's torchrun starts its processes anew without counting that as a restart."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "job"]
    machine = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    machine += ["--max-restarts", "1", "--local-addr", "localhost"]
    store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    settings = [*SETTINGS, "schedule.epochs=1"]
    jobs = [start("rank_1_dies_once", *settings, torchrun=machine, environment=store) for _ in range(2)]
    printed = [finish(job) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(printed)
    assert sum("3 of them done" in text for text in printed) == 1
    assert_same_run(tmp_path / "run", alone)


def test_a_job_stopped_by_sigterm_to_all_of_its_processes_goes_on_with_another_number(start, alone, tmp_path):
    """As a scheduler ends a job: torchrun, trainers and loaders get the signal, and torchrun passes it on as well."""
    settings = [*SETTINGS, "schedule.epochs=1", "data.workers=1"]
    job = start("slow_steps", *settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(read_metrics(metrics)) > 1)
    processes = [job.pid, *descendants(job.pid)]
    assert len(processes) >= 5  # torchrun, two trainers with a loader each
    for process in processes:
        os.kill(process, signal.SIGTERM)
    printed = finish(job)
    iteration = load_checkpoint(tmp_path / "run" / "last.pt").iteration
    assert f"stopped at iteration {iteration}; continue with:" in printed
    assert [row["iteration"] for row in read_metrics(metrics)] == list(range(1, iteration + 1))
    assert 2 <= iteration < 7

    command = [*JOB, "in_float64", "--resume", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", alone)


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(process: int) -> list[int]:
    """Children of a process, theirs, and so on."""
    children = [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return children + [number for child in children for number in descendants(child)]


def test_two_ranks_evaluate_every_image_once(finished, tmp_path):
    command = ["-m", "dwtriton.evaluate", "--weights", str(finished[0] / "last.pt"), "--out", str(tmp_path / "shared")]
    done = subprocess.run([sys.executable, *TORCHRUN, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 1
    metrics = json.loads((tmp_path / "shared" / "metrics.json").read_text())
    alone = read_metrics(finished[0] / "metrics.jsonl")[-1]  # of one process
    assert metrics == {key: value for key, value in alone.items() if key not in ("kind", "iteration", "epoch")}
    results = json.loads((tmp_path / "shared" / "detections.json").read_text())
    assert len({result["image_id"] for result in results}) == 8


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (
            "rank_1_evaluates_with_another_threshold",
            "ranks 0 and 1 disagree: inference.score_threshold is 0.001 and 0.9.",
        ),
        ("rank_1_evaluates_another_file", "rank 1: checkpoint "),
    ],
)
def test_ranks_that_would_evaluate_otherwise_end_with_one_error(scenario, message, finished, tmp_path, server):
    arguments = ["--weights", str(finished[0] / "last.pt"), "--out", str(tmp_path / "shared")]
    code, printed = server.run(tmp_path / "printed", scenario, *arguments)
    assert code != 0
    assert printed.count("error: ") == 1
    assert f"error: {message}" in printed
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("rank_1_has_another_rate", "optimizer.lr is 0.003 and 0.5."),
        ("rank_1_has_another_folder", "--out is {out} and {out}-other."),
        ("rank_1_resumes", "--resume is False and True."),
    ],
)
def test_ranks_that_disagree_end_with_one_error_that_names_what(scenario, message, fork, tmp_path):
    code, printed = fork(scenario)
    assert code != 0
    assert printed.count("error: ") == 1
    assert f"error: ranks 0 and 1 disagree: {message.format(out=tmp_path / 'run')}" in printed
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_out_is_one_error_before_anything_is_written(fork, tmp_path):
    code, printed = fork("slow_steps", "data.batch_size=5")
    assert code != 0
    assert printed.count("error: ") == 1
    assert "data.batch_size = 5" in printed
    assert "does not divide into 2 ranks x train.accumulate = 1" in printed
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_on_another_rank_ends_the_job_and_names_its_images(fork, tmp_path):
    code, printed = fork("rank_1_sees_nan")
    assert code != 0
    assert "at iteration 3, epoch 1" in printed
    for image_id in (tmp_path / "run" / "poisoned").read_text().split():
        assert f"{image_id} (" in printed


def test_an_error_of_a_rank_itself_is_not_taken_for_a_lost_contact(fork):
    """Though its text speaks of gloo: its connections decide. The other rank does lose contact."""
    code, printed = fork("rank_1_has_a_bug")
    assert code != 0
    assert "RuntimeError: a bug beside gloo" in printed
    assert "rank 1 lost contact" not in printed
    assert "rank 0 lost contact with rank 1 after iteration 2" in printed


LOST = re.compile(r"error: rank 0 lost contact with rank 1; torchrun's report says how that rank ended \(\w+: .+\)\n")


def test_a_rank_that_dies_before_its_first_step_is_one_error(fork):
    code, printed = fork("rank_1_dies_before_it_trains")
    assert code != 0
    assert LOST.search(printed)
    assert "Traceback" not in printed


def test_a_rank_that_dies_in_an_evaluation_is_one_error(finished, tmp_path, server):
    weights = ["--weights", str(finished[0] / "last.pt")]
    scenario = "rank_1_dies_before_it_evaluates"
    code, printed = server.run(tmp_path / "printed", scenario, *weights, "--out", str(tmp_path / "shared"))
    assert code != 0
    assert LOST.search(printed)
    assert "Traceback" not in printed


def test_ranks_that_cannot_meet_are_one_error(monkeypatch):
    def fail(*_, **__):
        raise torch.distributed.DistNetworkError("Connection reset by peer\nException raised from ...")

    for name, value in {"TORCHELASTIC_RUN_ID": "job", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks.distributed, "init_process_group", fail)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = r"^this rank cannot join the others; torchrun's report .* \(DistNetworkError: Connection reset by peer\)$"
    with pytest.raises(RunError, match=line), ranks.process_group():
        pass


def test_where_batch_norms_train_all_ranks_evaluate_the_statistics_that_are_saved(fork, tmp_path):
    """Each has gathered its own; the first one's are in the checkpoint."""
    code, printed = fork("in_float64", "schedule.epochs=1", "optimizer.lr=0.01", "data.batch_size=2")
    assert code == 0, printed
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    arguments = ["-m", "dwtriton.evaluate", "--weights", str(tmp_path / "run" / "last.pt")]
    subprocess.run([sys.executable, *arguments, "--out", str(tmp_path / "out")], check=True, timeout=240)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert row["class_ap"] == pytest.approx(metrics.pop("class_ap"), abs=1e-6)
    assert {name: row[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize(
    ("environment", "gpus", "message"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 2, "4 processes on a machine with 2 GPUs: --nproc-per-node=2"),
        ({"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}, 8, "needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        ({"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "0"}, 8, None),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, 8, None),
        ({}, 0, None),
    ],
)
def test_a_job_that_cannot_work_as_it_was_started(environment, gpus, message, monkeypatch):
    plain = {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "0", "LOCAL_RANK": "0"}
    plain |= {"RANK": "0", "TORCHELASTIC_RUN_ID": "job"}
    for name, value in {**plain, "TORCHELASTIC_USE_AGENT_STORE": "True", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(ranks.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(ranks.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    expected = contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message)
    with expected, ranks.process_group(elastic.restart_store()):
        pass
