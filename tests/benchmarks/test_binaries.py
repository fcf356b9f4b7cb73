"""What is read from binaries: ways through made-up programs, layouts of accesses, tiles that hold a high score."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("kernels need Triton", allow_module_level=True)

from benchmarks import disassembly, high_scores
from benchmarks.binaries import Binary
from benchmarks.disassembly import Code, longest_way, row_bytes, shortest_way, successors
from benchmarks.high_scores import high_points, share_of_tiles
from dwtriton.kernels.configs import DenseConfig
from dwtriton.kernels.negatives import LOSS_OF_LOW_SCORE, SLOPE_OF_LOW_SCORE
from dwtriton.kernels.trial import Setting


def program(*instructions: str) -> list[list[int]]:
    """What may follow each of the instructions, which lie 16 bytes apart; `to N` is the address of the N-th."""
    lines = []
    for number, line in enumerate(instructions):
        words = line.split(" to ")
        target = f" {int(words[1]) * 16:#x}" if len(words) > 1 else ""
        lines.append((f"{number * 16:04x}", words[0] + target))
    return successors(lines)


def test_the_shortest_way_skips_what_a_branch_skips_and_the_longest_goes_through_it():
    following = program("MOV", "@!P0 BRA to 5", "FADD", "FMUL", "FADD", "STG", "EXIT")
    assert shortest_way(following) == [0, 1, 5, 6]
    assert longest_way(following, turns=9) == 7


@pytest.mark.parametrize(
    ("line", "stack"), [("LDL R2, [R1]", 8), ("@P0 STL.64 [R1+0x8], R2", 8), ("LDG.E R2, [R4.64]", 0)]
)
def test_stack_counts_as_spills_where_an_instruction_accesses_it(line, stack, monkeypatch):
    printed = {"--dump-resource-usage": "REG:48 STACK:8 SHARED:512 LOCAL:0", "-sass": f"  /*0000*/   {line} ;"}
    monkeypatch.setattr(disassembly, "_cuobjdump", lambda _, option: printed[option])
    assert disassembly.resources(SimpleNamespace(asm={"cubin": b""})) == (48, stack)


def test_a_loop_counts_its_turns_on_the_longest_way_and_one_within_it_theirs():
    loop = ("MOV", "@P1 BRA to 6", "LDG", "@P2 BRA to 5", "FADD", "@!P0 BRA to 2", "EXIT")
    assert shortest_way(program(*loop)) == [0, 1, 6]
    assert longest_way(program(*loop), turns=20) == 2 + 20 * 4 + 1
    nested = ("MOV", "LDG", "FADD", "@P0 BRA to 2", "@P1 BRA.U to 1", "EXIT")
    assert longest_way(program(*nested), turns=3) == 1 + 3 * (1 + 3 * 2 + 1) + 1
    assert len(shortest_way(program(*nested))) == 6


def test_calls_come_back_parted_threads_do_not_exist_and_code_that_nothing_leads_to_does_not_count():
    following = program(
        "BRA.DIV UR6, to 5",  # only if the threads of a warp have parted
        "CALL.REL.NOINC to 6",
        "@P0 EXIT",
        "BRA.U !UP0, to 4",
        "EXIT",
        "BRA to 2",
        "RET.REL.NODEC R28 to 0",
    )
    assert shortest_way(following) == [0, 1, 2, 3, 4]
    assert longest_way(following, turns=100) == 5


IR = """\
#blocked = #ttg.blocked<{sizePerThread = [1, 2], threadsPerWarp = [16, 2], warpsPerCTA = [1, 1], order = [1, 0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [16, 2], warpsPerCTA = [1, 1], order = [1, 0]}>
#blocked2 = #ttg.blocked<{sizePerThread = [4, 1], threadsPerWarp = [8, 4], warpsPerCTA = [1, 1], order = [0, 1]}>
    %z_153 = tt.load %z_151, %z_152 : tensor<16x16x!tt.ptr<bf16>, #blocked1> loc(#loc288)
    %z_274 = tt.load %z_273, %z_261, %cst_43 : tensor<16x4x!tt.ptr<bf16>, #blocked> loc(#loc306)
    tt.store %11, %13 evictionPolicy = evict_first : tensor<64x8x!tt.ptr<bf16>, #blocked2> loc(#loc149)
"""


@pytest.mark.parametrize(("tile", "expected"), [((16, 16), {32}), ((16, 4), {8}), ((64, 8), {64}), ((32, 16), set())])
def test_the_bytes_of_a_row_follow_from_the_layout_of_an_access(tile, expected):
    assert row_bytes(SimpleNamespace(asm={"ttgir": IR}), tile, itemsize=2) == expected


def setting(layout: str = "channels_last") -> Setting:
    return Setting(torch.float32, layout, 3, (40, 24), 2, 1)  # levels of 5 by 3, 3 by 2, 2 by 1, and twice a point


def test_points_are_high_where_their_sum_is_that_of_one_high_score(monkeypatch):
    """Against a sum written out point by point, in float64."""
    monkeypatch.setitem(high_scores.LOGITS, "wild", (0.0, 2.0))
    high = high_points(setting(), "wild")
    generator = np.random.default_rng(0)
    for level, (height, width) in enumerate(setting().level_sizes()):
        count = 2 * height * width
        z = generator.standard_normal((count, 3), np.float32).astype(float) * 2
        u = generator.standard_normal((count, 1), np.float32).astype(float)
        s = 1 / (1 + np.exp(-z)) / (1 + np.exp(-u))
        losses = (s**2 * -np.log(1 - s)).sum(1)
        slopes = (s**3 * (-2 * np.log(1 - s) / s + 1 / (1 - s))).sum(1)
        for kernel, sums, limit in zip(high, (losses, slopes), (LOSS_OF_LOW_SCORE, SLOPE_OF_LOW_SCORE)):
            assert (high[kernel][level].ravel() == (sums >= limit.value)).all()
            assert high[kernel][level].shape == (2, height * width)
    assert 0 < np.concatenate([level.ravel() for level in high["dense_forward"]]).mean() < 1


def test_a_tile_is_done_twice_for_one_point_and_lies_in_two_images_only_where_points_do(monkeypatch):
    level = np.zeros((2, 15), bool)
    level[0, 14] = True
    monkeypatch.setattr(high_scores, "high_points", lambda *_: {"dense_forward": [level, np.zeros((2, 6), bool)]})
    # in rows of 30 and 12 points, or in two rows of 15 and of 6
    assert share_of_tiles(setting(), "start", "dense_forward", 8) == 1 / (4 + 2)
    assert share_of_tiles(setting("contiguous"), "start", "dense_forward", 8) == 1 / (2 * 2 + 2 * 1)
    assert share_of_tiles(setting("contiguous"), "start", "dense_forward", 1) == 1 / 42


def test_instructions_an_entry_are_a_warps_and_average_over_tiles(monkeypatch):
    config = DenseConfig(points=16, classes=16, warps=1, tiles=1, stages=1)
    code = Code(instructions=1000, shortest=800, longest=4000, wide_loads=5, wide_stores=0)
    binary = Binary("cuda:90", "bfloat16", "channels_last", 80, "dense_forward", config, 1, 64, 0, 0, code)
    assert binary.each == (20, 100)  # of 40 logits of a thread
    monkeypatch.setattr("benchmarks.binaries.share_of_tiles", lambda *_: 0.25)
    assert binary.executed("start") == (0.25, 40)
    assert binary._replace(classes=365).each is None  # a loop over classes
    assert binary._replace(code=None).each is None
