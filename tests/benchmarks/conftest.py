import pytest
import torch


@pytest.fixture(autouse=True)
def own_threads(monkeypatch):
    """Benchmarks choose a number of threads; in tests it stays what it is, for them and for all later tests."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
