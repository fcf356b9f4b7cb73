"""Launch configs: the defaults, and the space that tuning searches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dwtriton.kernels import tuning
from dwtriton.kernels.configs import (
    MOST_BLOCKS,
    BagsConfig,
    DenseConfig,
    KernelConfigs,
    Key,
    class_blocks,
    default_configs,
    search_space,
)

DENSE = ("dense_forward", "dense_backward")
DTYPES, LAYOUTS = [torch.bfloat16, torch.float16, torch.float32], ["channels_last", "contiguous"]
KEYS = st.builds(Key, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(1, 3000), st.just(22400))


def key(classes: int, dtype: torch.dtype = torch.bfloat16, layout: str = "channels_last") -> Key:
    return Key(dtype, layout, classes, 22400)


def logits_of_thread(config: DenseConfig) -> float:
    """Of one block of classes."""
    return config.points * config.classes / (32 * config.warps)


@given(KEYS)
def test_the_search_space_starts_with_the_default_and_a_table_may_hold_all_of_it(key):
    space = search_space(key)
    assert tuple(candidates[0] for candidates in space.values()) == default_configs(key)
    assert tuple(space) == KernelConfigs._fields
    for kernel, candidates in space.items():
        assert 3 < len(set(candidates)) == len(candidates) <= 15  # docs/tuning.md; there is time for a few of each
        for config in candidates:
            fields = {name: others[-1]._asdict() for name, others in space.items()}
            assert getattr(tuning._read_entry({**fields, kernel: config._asdict()}), kernel) == config


@given(KEYS)
def test_loads_are_as_wide_as_rows_allow_and_a_thread_has_no_more_logits_than_registers_hold(key):
    for kernel, candidates in zip(DENSE, map(search_space(key).get, DENSE)):
        for config in candidates:
            logits = logits_of_thread(config)
            assert logits * config.tiles * config.stages <= 16
            if key.layout == "channels_last":
                assert config.classes * key.dtype.itemsize >= min(32, key.classes * key.dtype.itemsize)
            if key.dtype == torch.float32 and kernel == "dense_backward":
                assert logits <= 8
        assert logits_of_thread(candidates[0]) >= min(key.together, candidates[0].classes)


@given(KEYS)
def test_each_part_of_a_config_is_searched_where_it_matters(key):
    space = search_space(key)
    looped = default_configs(key).dense_forward.steps(key.classes) > 1
    ahead = looped and key.together * key.dtype.itemsize >= 4  # GPUs copy ahead no less than that
    for kernel in DENSE:
        values = {field: {getattr(config, field) for config in space[kernel]} for field in DenseConfig._fields}
        assert values["classes"] == set(class_blocks(key))
        assert values["warps"] == {1, 2, 4}
        assert values["tiles"] == ({1} if looped else {1, 2})
        assert values["stages"] == ({1, 2} if ahead else {1})
        assert len(values["points"]) >= 3
        assert all(config.steps(key.classes) > 1 for config in space[kernel] if config.stages > 1)
    assert {config.programs for config in space["bags"]} == {2**12, 2**14, 2**16}


@given(st.integers(1, 3000), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_the_steps_of_a_dense_pass_read_all_classes_in_equal_shares(classes, block):
    config = DenseConfig(64, block, 1, 1, 1)
    blocks, steps = config.blocks(classes), config.steps(classes)
    assert blocks <= MOST_BLOCKS
    assert (steps - 1) * blocks * block < classes <= steps * blocks * block
    assert (blocks - 1) * steps * block < classes


def test_the_defaults_for_80_classes_are_those_of_the_arithmetic():
    """Of `default_configs`: a thread's logits of five blocks, of one warp."""
    for dtype, expected in ((torch.bfloat16, (8, 16)), (torch.float16, (8, 16)), (torch.float32, (8, 8))):
        forward, bags, backward = default_configs(key(80, dtype))
        assert (logits_of_thread(forward), logits_of_thread(backward)) == expected
        for config in (forward, backward):
            assert (config.classes, config.warps, config.steps(80), config.blocks(80)) == (16, 1, 1, 5)
        assert bags == BagsConfig(128, 2, 2**14)


@pytest.mark.parametrize(
    ("classes", "dtype", "layout", "logits"),
    [
        (80, torch.bfloat16, "channels_last", 8),
        (20, torch.bfloat16, "channels_last", 4),
        (91, torch.bfloat16, "channels_last", 1),
        (80, torch.float32, "channels_last", 4),
        (50, torch.float32, "channels_last", 2),
        (365, torch.float32, "channels_last", 1),
        (80, torch.bfloat16, "contiguous", 1),
    ],
)
def test_a_thread_loads_as_many_logits_together_as_divide_a_row(classes, dtype, layout, logits):
    assert key(classes, dtype, layout).together == logits


@pytest.mark.parametrize(
    ("classes", "dtype", "blocks"),
    [
        (1, torch.bfloat16, [1]),
        (2, torch.bfloat16, [2]),
        (3, torch.bfloat16, [4]),
        (16, torch.bfloat16, [16]),
        (20, torch.bfloat16, [16]),
        (20, torch.float32, [8]),
        (60, torch.bfloat16, [16, 32]),
        (80, torch.bfloat16, [16, 32]),
        (80, torch.float32, [16, 32]),
        (365, torch.bfloat16, [16, 32]),
        (1203, torch.float32, [16, 32]),
    ],
)
def test_class_blocks_are_whole_sectors_or_what_fewer_classes_need(classes, dtype, blocks):
    assert class_blocks(key(classes, dtype)) == blocks


@given(st.integers(1, 3000), st.sampled_from(DTYPES))
def test_where_the_points_of_a_class_lie_together_a_default_has_a_sector_of_them(classes, dtype):
    for config in (default_configs(key(classes, dtype, "contiguous"))[i] for i in (0, 2)):
        assert config.points * dtype.itemsize >= 32
