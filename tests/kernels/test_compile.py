"""The kernels compile for every target as a launch would have them: no spills, within limits, loads 16 bytes wide, and
once for all sizes. Shows what they compile to with `pytest -s`."""

from itertools import product

import pytest
import torch
import triton

from benchmarks.binaries import (
    DTYPES,
    TARGETS,
    WIDE,
    Binary,
    compile_all,
    compile_only,
    compiler_pool,
    default_job,
    launch_all,
    show,
    tuning_jobs,
)
from dwtriton.kernels import INTERPRETED
from dwtriton.kernels.trial import Setting
from dwtriton.kernels.tuning import DenseConfig, default_configs

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 was set: Triton compiles nothing")

KERNELS = {"dense_forward", "bags", "boxes", "correction", "finish", "dense_backward", "touched", "pairs_backward"}
KERNELS |= {"assign"}
MOST_REGISTERS = 64  # of a dense pass
MOST_INSTRUCTIONS = {"dense_forward": 21, "dense_backward": 26}  # an entry, for 80 classes in bfloat16
COMMON = list(product(["bfloat16", "float32"], ["channels_last"], [80]))
OTHERS = [
    ("float16", "channels_last", 80),
    ("bfloat16", "contiguous", 80),
    ("float32", "contiguous", 20),
    ("bfloat16", "channels_last", 3),
    ("float16", "contiguous", 1),
]
WIDE_CLASSES = [("bfloat16", 8), ("bfloat16", 24), ("float32", 4), ("float32", 20)]


@pytest.fixture(scope="module")
def pool():
    with compiler_pool() as pool:
        yield pool


def check(binaries):
    """All are sound; shows them, and names those that are not."""
    show(binaries)
    problems = [problem for binary in binaries for problem in binary.problems()]
    assert not problems, "\n".join(problems)


def check_wide(binaries):
    """Every load of logits, and store of their gradients, is 16 bytes wide, and a row's part whole sectors."""
    for binary in binaries:
        if binary.kernel in MOST_INSTRUCTIONS:
            points, classes, warps, _ = binary.config
            itemsize = DTYPES[binary.dtype].itemsize
            assert classes * itemsize % 32 == 0 or classes >= binary.classes
            accesses = itemsize * points * classes // (WIDE * 32 * warps)
            assert accesses, f"{binary.name}: too few logits in a thread for a wide load"
            wanted = accesses * -(-binary.classes // classes)
            assert binary.wide_loads >= wanted, binary.name  # and those where scores are high
            if binary.kernel == "dense_backward":
                assert binary.wide_stores >= wanted, binary.name


@pytest.mark.parametrize("target", TARGETS)
def test_default_configs_do_not_spill_and_fit(target, pool):
    binaries = compile_all([default_job(target, *inputs) for inputs in COMMON], pool)
    assert len(binaries) == len(COMMON) * len(KERNELS)
    assert {binary.kernel for binary in binaries} == KERNELS
    check(binaries)
    if target.startswith("cuda"):
        check_wide(binaries)
    if target == "cuda:90":
        for binary in binaries:
            if binary.kernel in MOST_INSTRUCTIONS:
                assert binary.registers <= MOST_REGISTERS, binary.name
                if binary.dtype == "bfloat16":
                    assert binary.each <= MOST_INSTRUCTIONS[binary.kernel], binary.name


def test_default_configs_of_other_inputs_do_not_spill_and_fit(pool):
    check(compile_all([default_job("cuda:90", *inputs) for inputs in OTHERS], pool))


def test_loads_are_wide_wherever_a_point_has_a_multiple_of_16_bytes(pool):
    jobs = [default_job("cuda:90", dtype, "channels_last", classes) for dtype, classes in WIDE_CLASSES]
    binaries = compile_all(jobs, pool)
    check(binaries)
    check_wide(binaries)


def test_the_tuning_space_does_not_spill_and_fits(pool):
    check(compile_all([job for inputs in COMMON for job in tuning_jobs("cuda:90", *inputs)], pool))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_tuning_space_of_every_target_does_not_spill_and_fits(target, pool):
    check(compile_all([job for inputs in [*COMMON, *OTHERS] for job in tuning_jobs(target, *inputs)], pool))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_one_binary_serves_all_sizes(target, layout, monkeypatch):
    """Sizes, batches and box counts that are 1, odd, or multiples of 16 ask for the same specialisation."""
    keys = {}

    def note(*, key, fn, **_):
        keys.setdefault(fn.name, set()).add(key)
        return True  # do not compile

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    for size, batch, boxes in [((256, 256), 1, 1), ((72, 104), 3, 5), ((128, 160), 16, 16), ((264, 480), 2, 150)]:
        setting = Setting(torch.bfloat16, layout, 20, size, batch, boxes)
        with compile_only(target):
            launch_all(setting, default_configs(20))
    assert len(keys) == len(KERNELS)
    assert {name: len(found) for name, found in keys.items()} == dict.fromkeys(keys, 1)


def test_a_binary_that_spills_or_does_not_fit_is_named():
    config, counts = DenseConfig(128, 32, 16, 1), (None, None, None, None)
    binary = Binary("cuda:86", "float32", "channels_last", 80, "dense_backward", config, 16, 255, 32, 2**17, *counts)
    name = "cuda:86 float32 channels_last C=80: dense_backward 128 points, 32 classes, 16 warps, 1 tiles"
    assert binary.problems() == [
        f"{name} puts 32 bytes a thread into stack or local memory",
        f"{name} needs 131072 bytes of shared memory, of 101376",
        f"{name} needs 130560 registers, of 65536",
    ]
    assert not binary._replace(registers=128, stack=0, shared=99 * 1024).problems()
