import pytest


@pytest.fixture(autouse=True)
def every_test_in_poisoned_memory(poisoned_memory):
    pass
