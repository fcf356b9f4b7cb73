"""Workarounds that torch 2.11 needs for restarts by torchrun (`--max-restarts`).

Delete this file and its uses in `train` and `evaluate` when a torch version no longer needs them; `--resume` remains.
"""

import os

from torch import distributed

from dwtriton.core import ranks

REPORT_SECONDS = 10  # for the rank that failed to end before the others, as torchrun's report blames the first to end


def restart_store() -> distributed.Store | None:
    """Return the store for `ranks.process_group`, None for torchrun's own: a part that no earlier rank wrote to.

    Restarted ranks get the store of their predecessors, with the addresses of dead processes. torchrun counts restarts
    for each machine alone, so on several machines the count cannot name the part, and this raises UserError instead.
    """
    if not ranks.under_torchrun() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    machines, max_restarts = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["TORCHELASTIC_MAX_RESTARTS"])
    if machines > 1 and max_restarts:
        ranks.raise_on_main(
            "--max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment"
        )
    if not _restarts():
        return None
    store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return distributed.PrefixStore(f"restart {_restarts()}", store)


def restarted() -> bool:
    """Return whether torchrun restarted the job after a rank died.

    A machine's torchrun counts only if one of its own ranks died, so the counts of all ranks decide.
    """
    return ranks.any_across_ranks(_restarts() > 0)


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
