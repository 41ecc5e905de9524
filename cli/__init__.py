"""The composition root: the `zerogate` command, and the processes that it starts."""

import os

# Read by the matrix libraries when they are loaded, so before anything that loads them. Their threads wait for each other by
# spinning: on a core that somebody else needs (HTTP, another job) a product that they share then takes ten times as long. Told to
# sleep at once, a pass of 16 texts in two threads takes 17 ms instead of 10 on free cores, because waking takes long; so they
# spin for some microseconds first (13 ms, and 19 instead of 15 on a busy core).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
