"""`python -m dwtriton.tune`: the search on a faked clock, the command on a faked GPU, the check in the interpreter."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from triton.runtime.errors import OutOfResources

from dwtriton import tune as command
from dwtriton.core.errors import UserError
from dwtriton.kernels import trial, tuning
from dwtriton.kernels.bags import SPLITS
from dwtriton.kernels.configs import KernelConfigs, Key, default_configs, search_space
from dwtriton.kernels.trial import Setting, make_case
from dwtriton.tune import NOISE, search

GPU = "NVIDIA H200"
KEY = Key(torch.bfloat16, "channels_last", 80, 22400)


class Machine:
    """A clock, and a measure that takes time on it."""

    def __init__(self, trials):
        self.now, self.trials, self.starts = 100.0, trials, []

    def clock(self):
        return self.now

    def measure(self, config):
        us, seconds = self.trials[config]
        self.starts.append(self.now)
        self.now += seconds
        return us


TIMES = st.one_of(st.floats(1, 100), st.just(math.inf))


@given(st.lists(st.tuples(TIMES, st.floats(0.01, 3)), min_size=1, max_size=12), st.floats(-1, 15))
def test_the_search_keeps_to_its_time_skips_failures_and_takes_the_best(trials, seconds):
    machine = Machine(trials)
    candidates = list(range(len(trials)))
    if all(math.isinf(us) for us, _ in trials):
        with pytest.raises(UserError, match="configs runs on this GPU"):
            search(candidates, machine.measure, seconds, machine.clock)
        return
    ticks = []
    found = search(candidates, machine.measure, seconds, machine.clock, progress=lambda: ticks.append(1))
    tried = [us for us, _ in trials[: found.tried]]
    assert len(machine.starts) == len(ticks) == found.tried >= 1
    assert found.failed == sum(map(math.isinf, tried))
    assert found.default_us == trials[0][0]
    assert found.us == trials[found.config][0] < math.inf
    assert found.config == 0 or found.us < found.default_us * (1 - NOISE)  # noise never replaces the default
    assert min(tried) >= found.us * (1 - NOISE)
    needed = next(i for i, (us, _) in enumerate(trials) if us < math.inf)  # however long it takes, one has to run
    assert all(start < 100 + seconds for start in machine.starts[needed + 1 :])
    assert found.tried == len(trials) or machine.now >= 100 + seconds
    again = Machine(trials)
    assert search(candidates, again.measure, seconds, again.clock) == found


def fake_timers(setting):
    """Four warps are fastest; 32 classes at a time do not fit."""

    def measure(config):
        return math.inf if getattr(config, "classes", 0) == 32 else 80 / config.warps

    return dict.fromkeys(KernelConfigs._fields, measure)


def settings(classes=80):
    return [Setting(dtype, "channels_last", classes, (64, 96), 2, 3) for dtype in command.DTYPES.values()]


def test_every_kernel_of_every_setting_is_searched_and_the_default_timed_even_without_time(monkeypatch):
    monkeypatch.setattr(command, "gpu_timers", fake_timers)
    results = command.tune(settings(), 60, Console(quiet=True))
    assert [list(found) for found in results] == [list(KernelConfigs._fields)] * 3
    for by_kernel, setting in zip(results, settings()):
        for kernel, found in by_kernel.items():
            space = search_space(setting.key())[kernel]
            fits = [config for config in space if getattr(config, "classes", 0) != 32]
            assert (found.tried, found.config.warps) == (len(space), 4)
            assert found.failed == len(space) - len(fits)
    assert results[0]["dense_forward"].failed > 0
    results = command.tune(settings(), 0, Console(quiet=True))
    for by_kernel, setting in zip(results, settings()):
        tried = [found.tried - found.failed for found in by_kernel.values()]
        assert tried == [1] * len(tried)  # the default, or the first that runs
        default = default_configs(setting.key())
        assert all(found.config == first for found, first in zip(by_kernel.values(), default) if found.failed == 0)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dwtriton.tune", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            command.cli.run(command.main)
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Pretend that there is a GPU; return the path of its table."""
    monkeypatch.setattr(command, "require_gpu", lambda: GPU)
    monkeypatch.setattr(command, "gpu_timers", fake_timers)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: GPU)
    monkeypatch.setenv("DWTRITON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DWTRITON_TABLE", raising=False)
    tuning.clear_cache()
    yield tmp_path / "cache" / "nvidia-h200.json"
    tuning.clear_cache()


def test_the_command_writes_what_the_lookup_reads_and_keeps_what_was_there(call, cache):
    code, printed, _ = call()
    assert code == 0
    assert "classes 16, warps 4" in printed
    assert "75%" in printed
    assert tuning.lookup(torch.device("cuda", 0), KEY).dense_forward.warps == 4
    assert call("--classes", 20, "--dtype", "float16")[0] == 0
    table = json.loads(cache.read_text())
    assert (table["version"], table["gpu"], len(table["entries"])) == (2, GPU, 4)
    assert all(table[name] for name in ("torch", "triton", "date"))
    kept = table["entries"][KEY.name]
    assert kept["measured_on"] == "16 images of 800x1344, 80 classes, 7 boxes an image"
    assert (kept["dense_forward"]["us"], kept["dense_forward"]["default_us"]) == (20, 80)


def test_a_table_elsewhere_is_named_and_that_of_another_gpu_is_refused(call, cache, tmp_path, monkeypatch):
    out = tmp_path / "new" / "table.json"
    code, printed, _ = call("--out", out)
    assert (code, f"to use it, set DWTRITON_TABLE={out}" in printed) == (0, True)
    monkeypatch.setattr(command, "require_gpu", lambda: "NVIDIA L4")
    code, _, error = call("--out", out)
    assert (code, f"{out} is the table of {GPU}, and this GPU is NVIDIA L4; give another --out" in error) == (2, True)


@pytest.mark.parametrize("which", ["default", "tuned"])
def test_a_check_that_fails_ends_with_one_line_and_writes_nothing(which, call, cache, monkeypatch):
    def disagreement(_, chosen):
        untuned = chosen in [default_configs(KEY._replace(dtype=dtype)) for dtype in command.DTYPES.values()]
        return "the sum is 2, not 1" if untuned == (which == "default") else None

    monkeypatch.setattr(command, "make_case", lambda *_: None)
    monkeypatch.setattr(command, "disagreement", disagreement)
    code, _, error = call("--check", "--quiet")
    assert code == 1
    assert error.startswith(f"error: {KEY.name}: the sum is 2, not 1, with")
    assert error.count("\n") == 1
    assert not cache.exists()


def test_without_a_gpu_the_error_names_the_remedy(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = call()
    assert code == 2
    assert error == "error: tuning needs a GPU that PyTorch can use; without one, --dry-run lists what would be tried\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code, _, error = call()
    assert (code, "TRITON_INTERPRET is set, so the kernels would run on the CPU; unset it" in error) == (2, True)


def test_help_has_examples_and_a_dry_run_lists_everything_without_a_gpu(call, cache, monkeypatch):
    code, printed, _ = call("--help")
    assert (code, "examples:" in printed, "exit codes:" in printed) == (0, True, True)
    monkeypatch.setattr(command, "require_gpu", lambda: pytest.fail("asks for a GPU"))
    code, printed, _ = call("--dry-run", "--layout", "channels_last", "contiguous")
    assert code == 0
    assert sum(line.startswith("key ") for line in printed.splitlines()) == 6
    assert not cache.exists()


def test_a_dry_run_lists_what_is_tried_for_each_dtype(call):
    code, printed, _ = call("--dry-run", "--classes", "24")
    half, full = printed.split("key float32 ")
    assert code == 0
    for part, dtype, keys in ((half, torch.bfloat16, 2), (full, torch.float32, 0)):
        expected = []
        for kernel, candidates in search_space(Key(dtype, "channels_last", 24, 22400)).items():
            expected.append(f"{kernel}: {len(candidates)} configs, the default first")
            expected.extend(f"  {command.describe(config)}" for config in candidates)
        lines = part.splitlines()
        assert sum(line.startswith("key ") for line in lines) == keys
        assert lines[-len(expected) :] == expected
    assert half.splitlines()[2:] != full.splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "800"], "--size is height x width in pixels, such as 800x1344, not '800'"),
        (["--size", "0x64"], "--size is height x width"),
        (["--classes", "0"], "--classes must be at least 1, not 0"),
        (["--batch", "-1"], "--batch must be at least 1, not -1"),
        (["--boxes", "0"], "--boxes must be at least 1, not 0"),
        (["--seconds", "nan"], "--seconds must be at least 0, not nan"),
        (["--dtype", "float64"], "--dtype: invalid choice: 'float64'"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message, call):
    code, _, error = call(*arguments)
    assert (code, message in error) == (2, True)


def test_a_case_is_the_same_on_every_call_and_predicts_some_boxes_closely():
    setting = Setting(torch.bfloat16, "channels_last", 5, (100, 130), 2, 3)
    case, again = make_case(setting, "cpu"), make_case(setting, "cpu")
    sizes = [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]
    for level, same, size in zip(case.outputs.cls_logits, again.outputs.cls_logits, sizes):
        assert level.shape == (2, 5, *size)
        assert level.dtype == torch.bfloat16
        assert level.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(level, same)
    assert case.targets.offsets.tolist() == [0, 3, 6]
    width = case.targets.boxes[:, 2:] - case.targets.boxes[:, :2]
    assert (width >= 31.9).all()
    assert (case.targets.boxes <= torch.tensor([130, 100, 130, 100]) + 0.1).all()


def test_bags_are_timed_with_so_many_boxes_that_programs_share_them_in_all_ways(monkeypatch):
    timed = []
    monkeypatch.setattr(trial, "box_bags", lambda pyramid, boxes, soft, config: timed.append(boxes))
    trial.kernel_calls(make_case(Setting(torch.float32, "channels_last", 3, (64, 96), 2, 3), "cpu"))["bags"](None)
    few, many = timed
    assert few.offsets.tolist() == [0, 3, 6]
    assert many.offsets.tolist() == [0, 3 * trial.CROWD, 6 * trial.CROWD]
    for image in range(2):
        rows = slice(*(few.offsets[image : image + 2] * trial.CROWD).tolist())
        assert {*map(tuple, many.corners[rows].tolist())} == {*map(tuple, few.corners[3 * image :][:3].tolist())}
    boxes = 16 * 7 * trial.CROWD  # of the default setting
    ways = {next(ways for ways in SPLITS if boxes * ways <= config.programs) for config in search_space(KEY)["bags"]}
    assert ways == {*SPLITS}


def test_a_device_time_is_in_microseconds_and_infinite_for_what_does_not_fit(monkeypatch):
    def bench(call, **_):
        call()
        return 0.25

    def too_large(_):
        raise OutOfResources(300000, 232448, "shared memory")

    monkeypatch.setattr(trial, "do_bench_cudagraph", bench)
    assert trial.device_time(lambda config: config, 1) == 250
    assert trial.device_time(too_large, 1) == math.inf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="times kernels on a GPU")
def test_on_a_gpu_the_command_times_checks_and_writes(call, tmp_path):
    code, printed, error = call("--seconds", 15, "--dtype", "bfloat16", "--check", "--out", tmp_path / "table.json")
    assert code == 0, printed + error
    table = tuning.read_table(tmp_path / "table.json")
    times = [table["entries"][KEY.name][kernel] for kernel in KernelConfigs._fields]
    assert all(0 < time["us"] <= time["default_us"] for time in times)


CHECK = """
import torch
from dwtriton.kernels import trial
from dwtriton.kernels.trial import Setting, disagreement, make_case
from dwtriton.kernels.configs import interpreter_configs

right, backward = interpreter_configs(3), trial.backward_pass
def wrong(*arguments):
    gradients = backward(*arguments)
    gradients[5][0, 2, 3, 4] += 1e-3 * gradients[5].abs().max()
    return gradients
for dtype, layout in ((torch.float32, "channels_last"), (torch.bfloat16, "contiguous")):
    case = make_case(Setting(dtype, layout, 3, (64, 96), 1, 2), "cpu")
    trial.backward_pass = backward
    print(disagreement(case, right))
    trial.backward_pass = wrong
    print(disagreement(case, right))
"""


def test_the_check_passes_the_kernels_and_notices_one_wrong_entry(monkeypatch):
    """In Triton's interpreter, which only a process of its own can switch on."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[::2] == ["None", "None"]
    assert all(line.startswith("the gradient of the distances is off by ") for line in lines[1::2])
