"""How the threads of numeric libraries wait for each other: set for our own processes, never for what is timed."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

# libgomp's threads spin at every barrier for as long as the machine is thought to be theirs. Beside other busy programs
# the thread that is waited for may not be running at all, and the others burn the time that it needs. So many turns
# bridge the gap between two parallel regions of a network and end long before the scheduler would end them:
# benchmarks/busy.py compares both. OpenBLAS is called with small matrices only, which its threads make slower.
SHARED = {"GOMP_SPINCOUNT": "10000", "OPENBLAS_NUM_THREADS": "1"}

# A user who has said anything of how threads wait, or how many, is left alone in that.
SAID_BY = {"GOMP_SPINCOUNT": ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"), "OPENBLAS_NUM_THREADS": ("OPENBLAS_NUM_THREADS",)}

OURS = "NAS_SET_FOR_THREADS"  # names of the variables above that we have set, for the children that must not have them


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process and its children share the machine; call it before torch or numpy are loaded.

    Libraries read these variables once, when they are loaded; afterwards the call changes nothing for this process.
    """
    if OURS in environment:
        return
    missing = [name for name, words in SAID_BY.items() if not any(word in environment for word in words)]
    environment.update({name: SHARED[name] for name in missing})
    environment[OURS] = " ".join(missing)


def as_given(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment as the user gave it: for a process whose time is taken, as a user's own program would run."""
    ours = environment.get(OURS, "").split()
    return {name: value for name, value in environment.items() if name != OURS and name not in ours}
