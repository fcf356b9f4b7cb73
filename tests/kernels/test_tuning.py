"""Keys of kernel configs, tables and their lookup."""

import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dwtriton.core.errors import UserError
from dwtriton.kernels import tuning
from dwtriton.kernels.configs import (
    BagsConfig,
    DenseConfig,
    KernelConfigs,
    Key,
    default_configs,
    interpreter_configs,
)
from dwtriton.kernels.trial import Setting
from dwtriton.kernels.tuning import lookup

GPU = "NVIDIA H200"
CUDA = torch.device("cuda", 0)
KEY = Key(torch.bfloat16, "channels_last", 80, 22400)
OTHER_KEY = KEY._replace(layout="contiguous")


def configs(warps: int) -> KernelConfigs:
    """Configs that the number of warps tells apart."""
    dense = DenseConfig(64, 32, warps, 2, 1)
    return KernelConfigs(dense, BagsConfig(256, warps, 4096), dense._replace(tiles=1))


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
    assert lookup(CUDA, KEY) == default_configs(KEY)
    for kind, warps in (("shipped", 1), ("cache", 2), ("named", 8)):
        write_table(places[kind], warps)
        if kind == "named":
            monkeypatch.setenv("DWTRITON_TABLE", str(places[kind]))
        tuning.clear_cache()
        assert lookup(CUDA, KEY) == configs(warps)
    monkeypatch.setenv("DWTRITON_TABLE", "default")
    tuning.clear_cache()
    assert lookup(CUDA, KEY) == default_configs(KEY)


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
        assert lookup(CUDA, OTHER_KEY) == default_configs(OTHER_KEY)
    assert lookup(CUDA, KEY) == configs(1)
    assert len(said()) == 2
    assert said()[1] == f"cuda:0: no tuned kernel configs for {OTHER_KEY.name}; using the defaults"


def test_without_a_table_one_line_says_how_to_get_one(said):
    lookup(CUDA, KEY)
    lookup(CUDA, OTHER_KEY)
    assert said() == [f"cuda:0 ({GPU}): default kernel configs; `python -m dwtriton.tune` finds better ones"]


def test_on_a_cpu_configs_for_the_interpreter_serve_in_silence(monkeypatch, said):
    monkeypatch.setenv("DWTRITON_TABLE", "absent.json")
    assert lookup(torch.device("cpu"), KEY) == interpreter_configs(80)
    assert said() == []


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    assert tuning.cache_table("Tesla T4 (16GB)") == tmp_path / "cache" / "tesla-t4-16gb.json"
    monkeypatch.delenv("DWTRITON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.cache_table(GPU) == tmp_path / "dwtriton" / "nvidia-h200.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.cache_table(GPU) == tmp_path / ".cache" / "dwtriton" / "nvidia-h200.json"


def changed(kernel: str, **change) -> dict:
    """A change of a table: its entry with other values for a kernel."""
    return {"entries": {KEY.name: {**entry(4), kernel: {**entry(4)[kernel], **change}}}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (None, "it is not JSON"),
        ({"version": 1}, "its version is 1, this dwtriton reads version 2"),
        ({"gpu": None}, "it names no gpu or has no entries"),
        ({"entries": []}, "it names no gpu or has no entries"),
        (
            {"entries": {KEY.name: {"dense_forward": configs(4).dense_forward._asdict()}}},
            f"{KEY.name!r}: it has no bags config",
        ),
        ({"entries": {KEY.name: 7}}, "it has no dense_forward config"),
        (changed("dense_forward", warps=3), "dense_forward warps must be a power of two up to 8, not 3"),
        (changed("dense_forward", classes=0), "dense_forward classes must be a power of two up to 64, not 0"),
        (changed("dense_backward", stages=None), "dense_backward stages must be a power of two up to 4, not None"),
        (changed("dense_forward", points=True), "dense_forward points must be a power of two up to 4096, not True"),
        (changed("bags", programs=2.0), "bags programs must be a power of two up to 65536, not 2.0"),
        (changed("bags", points="128"), "bags points must be a power of two up to 4096, not '128'"),
        (changed("dense_forward", points=4096, classes=16), "dense_forward points times classes must be at most 32768"),
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


@pytest.mark.parametrize(
    ("kernel", "field"),
    [(kernel, field) for kernel, kind in KernelConfigs.__annotations__.items() for field in kind._fields],
)
def test_every_value_of_a_table_is_there_and_bounded(kernel, field):
    smallest = dict.fromkeys(configs(4)._asdict()[kernel]._fields, 1)
    largest = tuning.LARGEST[field]

    def read(config: dict) -> int:
        return getattr(getattr(tuning._read_entry({**entry(4), kernel: config}), kernel), field)

    assert [read({**smallest, field: value}) for value in (1, largest)] == [1, largest]
    for value in (0, 2 * largest):
        with pytest.raises(ValueError, match=f"{kernel} {field} must be a power of two up to {largest}, not {value}"):
            read({**smallest, field: value})
    del smallest[field]
    with pytest.raises(ValueError, match=f"{kernel} {field} must be a power of two up to {largest}, not None"):
        read(smallest)


def test_a_table_that_is_a_folder_or_absent_is_one_clear_error(places, monkeypatch):
    places["cache"].mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be used: Is a directory; delete it"):
        lookup(CUDA, KEY)
    monkeypatch.setenv("DWTRITON_TABLE", "absent.json")
    with pytest.raises(UserError, match=r"DWTRITON_TABLE names absent\.json, which is no file; name a table"):
        lookup(CUDA, KEY)
