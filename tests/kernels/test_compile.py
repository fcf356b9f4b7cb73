"""The kernels compile for every target as a launch would have them: no spills, within limits, loads 16 bytes wide.

pytest prints at its end what they compile to on sm_90, and how many instructions the dense passes execute.
"""

import io
from itertools import product

import pytest
import torch
import triton
from rich.console import Console

from benchmarks.binaries import (
    DENSE,
    DTYPES,
    WIDTH,
    Binary,
    compile_all,
    compiler_pool,
    default_job,
    dense_job,
    launch_all,
    show,
    show_executed,
    tuning_jobs,
)
from benchmarks.disassembly import WIDE
from benchmarks.targets import TARGETS, compile_only
from dwtriton.kernels import INTERPRETED
from dwtriton.kernels.configs import DenseConfig, Key, default_configs
from dwtriton.kernels.trial import Setting

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 was set: Triton compiles nothing")

PAIRS = {"correction", "correction_many", "pairs_backward", "pairs_backward_many"}
KERNELS = {*DENSE, *PAIRS, "bags", "boxes", "touching", "listing", "finish", "assign"}
SECTOR = 32  # bytes, the least that memory moves
MOST_REGISTERS = {**dict.fromkeys(DENSE, 64), **dict.fromkeys(PAIRS, 128)}  # on sm_90
MOST_INSTRUCTIONS = {"dense_forward": 21, "dense_backward": 26}  # an entry, for 80 classes in bfloat16 on sm_90
CLASSES = [1, 3, 20, 60, 80, 365, 1203]
LAYOUTS = ["channels_last", "contiguous"]
LEVELS = [(8,), (8, 16, 32), (4, 8, 16, 32, 64, 128, 256)]  # strides, besides the usual five


@pytest.fixture(scope="module")
def pool():
    with compiler_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def sm_90(pool):
    """All kernels in bfloat16 and float32, and the dense passes in float16, for 80 classes."""
    jobs = [default_job("cuda:90", "bfloat16"), default_job("cuda:90", "float32"), dense_job("cuda:90", "float16")]
    return compile_all(jobs, pool)


def check(binaries: list[Binary]) -> None:
    """None spills, all fit, and accesses of logits are wide."""
    problems = [problem for binary in binaries for problem in binary.problems()]
    assert not problems, "\n".join(problems)
    for binary in binaries:
        if binary.kernel in DENSE and binary.target.startswith("cuda") and binary.layout == "channels_last":
            check_accesses(binary)


def check_accesses(binary: Binary) -> None:
    """Where rows allow, all logits of a thread come in loads of 16 bytes, and gradients leave so.

    What a warp takes of a row at once are whole sectors, or all of it; whole sectors of memory where a row is some.
    """
    config, itemsize = binary.config, DTYPES[binary.dtype].itemsize
    assert config.classes * itemsize % SECTOR == 0 or config.classes >= binary.classes
    assert binary.rows, binary
    assert all(row % SECTOR == 0 or row >= binary.classes * itemsize for row in binary.rows), binary
    if binary.classes * itemsize % WIDE == 0:
        logits = config.points * config.tiles * config.classes * config.blocks(binary.classes) / (32 * config.warps)
        assert binary.code.wide_loads == logits * itemsize / WIDE, binary  # on the way of ordinary logits: all of them
        assert binary.kernel == "dense_forward" or binary.code.wide_stores >= binary.code.wide_loads, binary


def test_on_sm_90_dense_passes_execute_as_few_instructions_as_memory_leaves_time_for(sm_90, report):
    """Counted on the way that tiles without a high score take, plus the exact way times the share of tiles with one."""
    text = io.StringIO()
    for table in (show, show_executed):
        table(sm_90, Console(width=WIDTH, file=text))
    report.append(text.getvalue())
    found = {binary.kernel: binary for binary in sm_90 if binary.dtype == "bfloat16"}
    for kernel, most in MOST_INSTRUCTIONS.items():
        share, executed = found[kernel].executed("start")
        assert share < 1e-3
        assert found[kernel].each[0] <= executed <= most, found[kernel]


def test_on_sm_90_all_kernels_are_sound(sm_90):
    assert {binary.kernel for binary in sm_90 if binary.dtype == "bfloat16"} == KERNELS
    assert {binary.kernel for binary in sm_90 if binary.dtype == "float32"} == KERNELS
    assert {binary.kernel for binary in sm_90 if binary.dtype == "float16"} == {*DENSE}
    check(sm_90)
    for binary in sm_90:
        assert binary.registers <= MOST_REGISTERS.get(binary.kernel, 255), binary


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "cuda:90"])
def test_kernels_are_sound_for_every_target(target, pool):
    binaries = compile_all([default_job(target, "bfloat16"), *(dense_job(target, dtype) for dtype in DTYPES)], pool)
    assert {binary.kernel for binary in binaries} == KERNELS
    assert len(binaries) == len(KERNELS) + 2 * len(DENSE)
    check(binaries)


def test_dense_passes_are_sound_for_any_number_of_classes_and_both_layouts(pool):
    """With numbers whose rows are a multiple of 16 bytes among them: 8 and 256."""
    inputs = [*product(["bfloat16"], ["channels_last"], [1, 3, 8, 20, 60, 256, 365, 1203])]
    inputs += product(["float32", "float16"], ["channels_last"], [1, 20, 365])
    inputs += [*product(["bfloat16", "float32"], ["contiguous"], [3, 365]), ("float16", "contiguous", 80)]
    binaries = compile_all([dense_job("cuda:90", *each) for each in inputs], pool)
    assert len(binaries) == len(inputs) * len(DENSE)
    check(binaries)


def test_kernels_are_sound_for_seven_levels_one_class_and_the_other_layout(pool):
    check(compile_all([default_job("cuda:90", "bfloat16", "contiguous", 1, LEVELS[-1])], pool))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_all_kernels_are_sound_for_every_target_and_input(target, dtype, pool):
    """Dense passes and `finish` for each number of classes, which the others take at run time."""
    of_classes = frozenset({*DENSE, "finish"})
    jobs = [default_job(target, dtype, *each)._replace(kernels=of_classes) for each in product(LAYOUTS, CLASSES)]
    jobs += [default_job(target, dtype, layout, 80, strides) for layout, strides in product(LAYOUTS, LEVELS)]
    check(compile_all([*jobs, default_job(target, dtype), default_job(target, dtype, LAYOUTS[1])], pool))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [80, 20, 365])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tuning_space_is_sound(dtype, classes, pool):
    """On the GPU that defaults were chosen for; on others, configs that spill are timed, and lose."""
    binaries = compile_all(tuning_jobs("cuda:90", dtype, "channels_last", classes), pool)
    problems = [problem for binary in binaries for problem in binary.problems()]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_one_binary_serves_all_sizes(target, layout, monkeypatch):
    """Sizes, batches and box counts that are 1, odd, or multiples of 16 ask for the same specialisation."""
    keys = {}

    def note(*, key, fn, **_):
        keys.setdefault(fn.name, set()).add(key)
        return True  # do not compile

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    configs = default_configs(Key(torch.bfloat16, layout, 20, 22400))
    for size, batch, boxes in [((256, 256), 1, 1), ((72, 104), 3, 5), ((128, 160), 16, 16), ((264, 480), 2, 150)]:
        setting = Setting(torch.bfloat16, layout, 20, size, batch, boxes)
        with compile_only(target):
            launch_all(setting, configs)
    assert sum(map(len, keys.values())) == len(KERNELS)
    assert {name.rpartition(".")[2] for name, found in keys.items() if len(found) == 2} == {
        "correction_kernel",
        "pairs_backward_kernel",
    }


def test_a_binary_that_spills_or_does_not_fit_is_named():
    config = DenseConfig(128, 32, 16, 1, 1)
    binary = Binary("cuda:86", "float32", "channels_last", 80, "dense_backward", config, 16, 255, 32, 2**17, None)
    name = "cuda:86 float32 channels_last C=80: dense_backward 128 points, 32 classes, 16 warps, 1 tiles, 1 stages"
    assert binary.problems() == [
        f"{name} puts 32 bytes a thread into stack or local memory",
        f"{name} needs 131072 bytes of shared memory, of 101376",
        f"{name} needs 130560 registers, of 65536",
    ]
    assert not binary._replace(registers=128, stack=0, shared=99 * 1024).problems()
