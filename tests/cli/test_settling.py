"""What a service loads when it starts is not looked through for garbage for ever."""

import subprocess
import sys

PROGRAM = """
import gc, threading
from cli.encoders import settle

class Kept: ...

loaded = []

def load():
    loaded.extend(Kept() for _ in range(10_000))

thread = threading.Thread(target=load)
thread.start()
settle(thread)
assert len(loaded) == 10_000
assert gc.get_freeze_count() > 10_000
assert not any(isinstance(one, Kept) for one in gc.get_objects())
"""


def test_what_is_loaded_is_left_out_of_the_search_for_garbage() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
