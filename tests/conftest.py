import pytest
import torch


@pytest.fixture
def poisoned_memory():
    """Fill every tensor that is made without values with NaN, so that an entry nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
