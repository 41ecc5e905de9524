"""Identifiers that sort by the time they were made: `job_0193...` (UUID version 7, RFC 9562, in hexadecimal)."""

import secrets
import time
from typing import Literal

Prefix = Literal["ds", "enc", "mdl", "ver", "prm", "job", "col", "req"]


def new_id(prefix: Prefix) -> str:
    """A new identifier; later ones sort after earlier ones, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = (value & ~(0xF << 76)) | (0x7 << 76)  # version
    value = (value & ~(0x3 << 62)) | (0x2 << 62)  # variant
    return f"{prefix}_{value:032x}"
