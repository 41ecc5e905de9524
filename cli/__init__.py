"""The composition root: the `zerogate` command, and the processes that it starts."""

import os

# Read by the matrix libraries when they are loaded, so before anything that loads them. Their threads wait for each other by
# turning in circles: on a core that somebody else needs (HTTP, another job) a pass of one text then takes 100 to 300 ms
# instead of 4, and one over many documents ten times as long. Told to sleep, they cost some percent where every core is free.
for _name, _value in {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}.items():
    os.environ.setdefault(_name, _value)
