"""The composition root: the `zerogate` command, and the processes that it starts."""

import os

# Read by the matrix libraries when they are loaded, so before anything that loads them. Their threads wait for each other by
# turning in circles: on a core that somebody else needs (HTTP, another job) a pass of one text then takes 100 to 300 ms
# instead of 4, and one over many documents ten times as long. Told to sleep at once, a pass of 16 texts takes 17 ms instead of 10
# on free cores, because waking takes long; so they turn for some microseconds first (13 ms, and 19 instead of 15 on a busy core).
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000", "OPENBLAS_THREAD_TIMEOUT": "4"}
for _name, _value in _WAITING.items():
    os.environ.setdefault(_name, _value)
