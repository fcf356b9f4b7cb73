"""Kernel configs: defaults, search space, tables and their lookup, the search itself, and the command around it."""

import json
import logging
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dwtriton import tune as command
from dwtriton.errors import UserError
from dwtriton.kernels import tuning
from dwtriton.kernels.trial import Setting, make_case
from dwtriton.kernels.tuning import DenseConfig, Key, KernelConfigs, StatisticsConfig, default_configs, lookup
from dwtriton.tune import NOISE, search

GPU = "NVIDIA H200"
CUDA = torch.device("cuda", 0)
KEY = Key(torch.bfloat16, "channels_last", 80, 22400)
OTHER_KEY = KEY._replace(layout="contiguous")


def configs(warps: int) -> KernelConfigs:
    """Configs that the number of warps tells apart."""
    dense = DenseConfig(8, 8, 32, warps)
    return KernelConfigs(StatisticsConfig(256, warps), dense, dense)


def entry(warps: int) -> dict:
    return {kernel: {**config._asdict(), "us": 1.5} for kernel, config in configs(warps)._asdict().items()}


def write_table(path, warps: int):
    path.parent.mkdir(exist_ok=True)
    tuning.write_table(path, GPU, {KEY.name: entry(warps)})


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    """One GPU by name, and no tables but those a test writes; returns where each kind of table lies."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: GPU)
    monkeypatch.setattr(tuning, "SHIPPED_TABLES", tmp_path / "shipped")
    monkeypatch.setenv("DWTRITON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DWTRITON_TABLE", raising=False)
    tuning.clear_cache()
    yield {kind: tmp_path / kind / "nvidia-h200.json" for kind in ("named", "cache", "shipped")}
    tuning.clear_cache()


@pytest.fixture
def said(caplog):
    """What the lookup said so far."""
    caplog.set_level(logging.INFO, logger="dwtriton")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "dwtriton"]


@given(st.integers(1, 3000))
def test_the_search_space_starts_with_the_default_and_a_table_may_hold_all_of_it(classes):
    space = tuning.search_space(classes)
    assert tuple(candidates[0] for candidates in space.values()) == default_configs(classes)
    assert tuple(space) == KernelConfigs._fields
    assert len(set(space["statistics"])) == 6
    dense = space["forward"]
    assert len(set(dense)) == len(dense) <= 25
    assert len(dense) >= (15 if classes > 32 else 5)
    for config in dense:
        elements = config.tile_height * config.tile_width * config.classes
        assert config == dense[0] or 4 <= elements / (32 * config.warps) <= 64
        fields = {"statistics": space["statistics"][-1]._asdict(), "forward": config._asdict()}
        assert tuning._read_entry({**fields, "backward": config._asdict()}).backward == config


@pytest.mark.parametrize(
    ("classes", "block"), [(1, 1), (3, 4), (15, 16), (16, 16), (20, 32), (64, 64), (80, 16), (91, 32), (1203, 64)]
)
def test_the_default_class_block_pads_least_and_is_the_larger_of_equals(classes, block):
    assert default_configs(classes).forward.classes == default_configs(classes).backward.classes == block


@given(st.integers(1, 2**20), st.integers(1, 2**20))
def test_sizes_share_a_key_within_a_power_of_two(one, other):
    same = (one - 1).bit_length() == (other - 1).bit_length()
    assert (KEY._replace(points=one).name == KEY._replace(points=other).name) == same
    assert (KEY._replace(classes=one).name == KEY._replace(classes=other).name) == same


def test_a_key_knows_dtype_and_layout_but_neither_batch_nor_boxes():
    setting = Setting(torch.bfloat16, "channels_last", 80, (800, 1344), 16, 7)
    assert KEY.name == setting.key().name == "bfloat16 channels_last classes<=128 points<=32768"
    assert setting.key() == setting._replace(batch=1, boxes=1000).key()
    assert len({KEY.name, OTHER_KEY.name, KEY._replace(dtype=torch.float16).name}) == 3


def test_lookup_takes_the_named_table_then_the_cache_then_the_shipped_one_then_the_defaults(places, monkeypatch):
    assert lookup(CUDA, KEY) == default_configs(80)
    for kind, warps in (("shipped", 1), ("cache", 2), ("named", 8)):
        write_table(places[kind], warps)
        if kind == "named":
            monkeypatch.setenv("DWTRITON_TABLE", str(places[kind]))
        tuning.clear_cache()
        assert lookup(CUDA, KEY) == configs(warps)
    monkeypatch.setenv("DWTRITON_TABLE", "default")
    tuning.clear_cache()
    assert lookup(CUDA, KEY) == default_configs(80)


def test_a_process_keeps_the_table_that_it_read(places):
    write_table(places["cache"], 1)
    assert lookup(CUDA, KEY) == configs(1)
    write_table(places["cache"], 2)
    assert lookup(CUDA, KEY) == configs(1)
    tuning.clear_cache()
    assert lookup(CUDA, KEY) == configs(2)


def test_what_was_taken_is_said_once_for_each_device(places, said):
    write_table(places["cache"], 1)
    for device in (CUDA, CUDA, torch.device("cuda", 1), CUDA):
        lookup(device, KEY)
    taken = f"({GPU}): kernel configs of {places['cache']}, tuned on {GPU}"
    assert said() == [f"cuda:0 {taken}", f"cuda:1 {taken}"]


def test_a_missing_key_takes_the_defaults_and_says_so_once(places, said):
    write_table(places["cache"], 1)
    write_table(places["shipped"], 2)
    for _ in range(3):
        assert lookup(CUDA, OTHER_KEY) == default_configs(80)
    assert lookup(CUDA, KEY) == configs(1)
    assert len(said()) == 2
    assert said()[1] == f"cuda:0: no tuned kernel configs for {OTHER_KEY.name}; the defaults serve"


def test_without_a_table_one_line_says_how_to_get_one(said):
    lookup(CUDA, KEY)
    lookup(CUDA, OTHER_KEY)
    assert said() == [f"cuda:0 ({GPU}): default kernel configs; `python -m dwtriton.tune` finds better ones"]


def test_on_a_cpu_the_defaults_serve_in_silence(monkeypatch, said):
    monkeypatch.setenv("DWTRITON_TABLE", "absent.json")
    assert lookup(torch.device("cpu"), KEY) == default_configs(80)
    assert said() == []


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    assert tuning.cache_table("Tesla T4 (16GB)") == tmp_path / "cache" / "tesla-t4-16gb.json"
    monkeypatch.delenv("DWTRITON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.cache_table(GPU) == tmp_path / "dwtriton" / "nvidia-h200.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.cache_table(GPU) == tmp_path / ".cache" / "dwtriton" / "nvidia-h200.json"


def forward(**change) -> dict:
    return {"entries": {KEY.name: {**entry(4), "forward": {**entry(4)["forward"], **change}}}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (None, "it is not JSON"),
        ({"version": 2}, "its version is 2, this dwtriton reads version 1"),
        ({"gpu": None}, "it names no gpu or has no entries"),
        ({"entries": []}, "it names no gpu or has no entries"),
        (
            {"entries": {KEY.name: {"statistics": {"points": 256, "warps": 4}}}},
            f"{KEY.name!r}: it has no forward config",
        ),
        ({"entries": {KEY.name: 7}}, "it has no statistics config"),
        (forward(warps=3), "forward warps must be a power of two up to 16, not 3"),
        (forward(warps=32), "forward warps must be a power of two up to 16, not 32"),
        (forward(classes=0), "forward classes must be a power of two up to 256, not 0"),
        (forward(classes=None), "forward classes must be a power of two up to 256, not None"),
        (forward(tile_height=True), "forward tile_height must be a power of two up to 64, not True"),
        (forward(tile_height=64, tile_width=64), "forward tile times classes must be at most 32768"),
    ],
)
def test_a_broken_table_is_one_clear_error(change, problem, places):
    path = places["cache"]
    write_table(path, 1)
    table = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps({**table, **change}))
    with pytest.raises(UserError) as error:
        lookup(CUDA, KEY)
    assert f"the tuning table {path} cannot be used: " in str(error.value)
    assert problem in str(error.value)
    assert "delete it and run `python -m dwtriton.tune`" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_is_a_folder_or_absent_is_one_clear_error(places, monkeypatch):
    places["cache"].mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be used: Is a directory; delete it"):
        lookup(CUDA, KEY)
    monkeypatch.setenv("DWTRITON_TABLE", "absent.json")
    with pytest.raises(UserError, match=r"DWTRITON_TABLE names absent\.json, which is no file; name a table"):
        lookup(CUDA, KEY)


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
    assert found == search(candidates, Machine(trials).measure, seconds, Machine(trials).clock) or seconds < 36


def fake_timers(setting):
    """Eight warps are fastest, sixty-four classes at a time do not fit."""

    def measure(config):
        return math.inf if getattr(config, "classes", 0) == 64 else 40 / config.warps

    return dict.fromkeys(KernelConfigs._fields, measure)


def settings(classes=80):
    return [Setting(dtype, "channels_last", classes, (64, 96), 2, 3) for dtype in command.DTYPES.values()]


def test_every_kernel_of_every_setting_is_searched_and_the_default_timed_even_without_time():
    results = command.tune(settings(), fake_timers, 60, Console(quiet=True))
    assert [list(found) for found in results] == [list(KernelConfigs._fields)] * 3
    assert all(found.config.warps == 8 and found.us == 5 for by_kernel in results for found in by_kernel.values())
    assert results[0]["forward"].failed > 0
    results = command.tune(settings(), fake_timers, 0, Console(quiet=True))
    assert all(found.tried == 1 and found.config.warps == 4 for by_kernel in results for found in by_kernel.values())


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process on a faked GPU; returns (exit code, standard output, standard error)."""
    monkeypatch.setattr(command, "require_gpu", lambda: GPU)
    monkeypatch.setattr(command, "gpu_timers", fake_timers)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dwtriton.tune", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            command.cli.run(command.main)
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return run


def test_the_command_writes_what_the_lookup_reads_and_keeps_what_was_there(call, places):
    code, printed, _ = call()
    assert code == 0
    assert "8x16 points, 16 classes, 8 warps" in printed
    assert "50%" in printed
    assert lookup(CUDA, KEY).forward == DenseConfig(8, 16, 16, 8)
    assert call("--classes", 20, "--dtype", "float16")[0] == 0
    table = json.loads(places["cache"].read_text())
    assert (table["version"], table["gpu"], len(table["entries"])) == (1, GPU, 4)
    assert table["torch"] and table["triton"] and table["date"]
    kept = table["entries"][KEY.name]
    assert kept["measured_on"] == "16 images of 800x1344, 80 classes, 7 boxes an image"
    assert (kept["forward"]["us"], kept["forward"]["default_us"]) == (5, 10)


def test_a_table_elsewhere_is_named_and_that_of_another_gpu_is_refused(call, tmp_path, monkeypatch):
    out = tmp_path / "new" / "table.json"
    code, printed, _ = call("--out", out)
    assert (code, f"to use it, set DWTRITON_TABLE={out}" in printed) == (0, True)
    monkeypatch.setattr(command, "require_gpu", lambda: "NVIDIA L4")
    code, _, error = call("--out", out)
    assert (code, f"{out} is the table of {GPU}, and this GPU is NVIDIA L4; give another --out" in error) == (2, True)


@pytest.mark.parametrize("which", ["default", "tuned"])
def test_a_check_that_fails_ends_with_one_line_and_writes_nothing(which, call, places, monkeypatch):
    def disagreement(_, chosen):
        return "the sum is 2, not 1" if (chosen == default_configs(80)) == (which == "default") else None

    monkeypatch.setattr(command, "make_case", lambda *_: None)
    monkeypatch.setattr(command, "disagreement", disagreement)
    code, printed, _ = call("--check")
    assert code == 1
    assert sum(line.startswith(f"error: {KEY.name}: the sum is 2, not 1, with") for line in printed.splitlines()) == 1
    assert not places["cache"].exists()


def test_without_a_gpu_the_command_says_what_it_needs(call, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["dwtriton.tune"])
    with pytest.raises(UserError, match="needs a GPU that PyTorch can use; without one, --dry-run lists"):
        command.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="TRITON_INTERPRET is set.*unset it"):
        command.main()


def test_help_has_examples_and_a_dry_run_lists_everything_without_a_gpu(call, places, monkeypatch):
    code, printed, _ = call("--help")
    assert (code, "examples:" in printed, "exit codes:" in printed) == (0, True, True)
    monkeypatch.setattr(command, "require_gpu", lambda: pytest.fail("asks for a GPU"))
    code, printed, _ = call("--dry-run", "--layout", "channels_last", "contiguous")
    assert code == 0
    assert sum(line.startswith("key ") for line in printed.splitlines()) == 6
    for candidates in tuning.search_space(80).values():
        assert all(f"  {command.describe(config)}\n" in printed for config in candidates)
    assert not places["cache"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "800"], "--size is height x width in pixels, such as 800x1344, not '800'"),
        (["--size", "0x64"], "--size is height x width"),
        (["--classes", "0"], "--classes must be at least 1, not 0"),
        (["--batch", "-1"], "--batch must be at least 1, not -1"),
        (["--boxes", "-1"], "--boxes must be at least 0, not -1"),
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
    for level, same, size in zip(case.cls_logits, again.cls_logits, [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]):
        assert level.shape == (2, 5, *size)
        assert level.dtype == torch.bfloat16
        assert level.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(level, same)
    assert case.targets.offsets.tolist() == [0, 3, 6]
    assert make_case(setting._replace(boxes=0), "cpu").targets.offsets.tolist() == [0, 0, 0]


CHECK = """
import torch
from dwtriton.kernels import trial
from dwtriton.kernels.tuning import DenseConfig, KernelConfigs, StatisticsConfig
from dwtriton.kernels.trial import Setting, disagreement, make_case

right, backward = KernelConfigs(StatisticsConfig(64, 1), *[DenseConfig(8, 16, 4, 4)] * 2), trial.dense_backward
def wrong(*arguments):
    gradients = backward(*arguments)
    gradients[5][0, 2, 3, 4] += 1e-3 * gradients[5].abs().max()
    return gradients
for dtype, layout in ((torch.float32, "channels_last"), (torch.bfloat16, "contiguous")):
    case = make_case(Setting(dtype, layout, 3, (64, 96), 1, 2), "cpu")
    trial.dense_backward = backward
    print(disagreement(case, right))
    trial.dense_backward = wrong
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
