"""The host's side of the loss, with launches that do nothing."""

import pytest

pytest.importorskip("triton")

from benchmarks.host import host_ms, main
from dwtriton.kernels import launch

LAUNCHES = 11  # of a call: eight forward, three backward


def test_every_launch_of_a_call_is_counted_and_nothing_stays_stubbed(capsys):
    kept = launch._kept
    ms, launches = host_ms(calls=2)
    assert ms > 0
    assert launches == LAUNCHES
    assert launch._kept is kept
    main(["--calls", "2"])
    assert f"for {LAUNCHES} launches" in capsys.readouterr().out
