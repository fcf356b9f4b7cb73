"""HeadOutputs: the order of its levels, and the dtype to compute in."""

import torch

from dwtriton.core.head_outputs import HeadOutputs


def outputs(*dtypes):
    """Two levels of each kind; `dtypes` are those of the coarser level."""
    return HeadOutputs(*([torch.zeros(1, 1, 2, 2).half(), torch.zeros(1, 1, 1, 1, dtype=kind)] for kind in dtypes))


def test_levels_follow_each_other_kind_by_kind():
    given = outputs(torch.float32, torch.float16, torch.bfloat16)
    assert [id(level) for level in given.levels] == [id(level) for kind in given for level in kind]
    assert given.levels[2] is given.box_distances[0]


def test_arithmetic_is_float64_if_any_level_is():
    half, double = torch.float16, torch.float64
    assert outputs(half, half, half).arithmetic == torch.float32
    for dtypes in ((double, half, half), (half, double, half), (half, half, double)):
        assert outputs(*dtypes).arithmetic == torch.float64
