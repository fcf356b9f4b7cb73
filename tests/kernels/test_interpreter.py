"""The patches of Triton's interpreter: applied to the version they were made for, and to no other."""

import pytest

from tests.kernels.conftest import PATCHED_VERSION, is_known_interpreter


def test_another_version_of_triton_runs_unpatched_and_says_so():
    assert is_known_interpreter(f"{PATCHED_VERSION}0")
    for version in ("3.5.1", "3.60.0", "3.7.0", "4.0.0+git1234"):
        with pytest.warns(UserWarning, match="patched for"):
            assert not is_known_interpreter(version)
