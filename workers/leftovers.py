"""Removing what killed processes left: files that no row knows, and never will.

What a running attempt has made is not known either until it registers it, so a file is judged by the row of its job: attempts
that no longer hold their job register nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from service.artifacts import Unit
from service.datasets.queries import artifact_keys as dataset_files
from service.encoders.queries import stored_keys
from service.errors import Unavailable
from service.jobs.queries import unfinished_tokens
from service.models.queries import artifact_keys as version_files
from service.resources import Resources

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_OF_ATTEMPTS: Final = ("heads", "encoders", "work")
# An upload is written, stored, and only then gets its row.
_UPLOAD_SECONDS: Final = 6 * 3600.0


@dataclass(frozen=True)
class _Rows:
    """What the database says, read after the files were listed: whatever they knew by then is in it."""

    known: set[str]
    tokens: dict[str, int]  # of the unfinished jobs


def tidy(resources: Resources, *, alone: bool = False) -> list[str]:
    """Remove all that is left over; gives the keys. alone: no other process uses the files, so nobody is uploading."""
    return _remove(resources, list(resources.artifacts.units()), alone=alone)


def forget_leftovers(resources: Resources, job_id: str) -> None:
    """Remove what earlier attempts at the job left, and when it has ended its checkpoints. An outage leaves it to `tidy`."""
    try:
        units = [unit for folder in _OF_ATTEMPTS for unit in resources.artifacts.units(f"{folder}/{job_id}")]
        _remove(resources, units, alone=False)
    except Unavailable as error:
        log.warning("leftovers.kept", job_id=job_id, reason=error.message)


def _remove(resources: Resources, units: Iterable[Unit], *, alone: bool) -> list[str]:
    with resources.database.read() as session:
        known = dataset_files(session) | version_files(session) | stored_keys(session)
        rows = _Rows(known, unfinished_tokens(session))
    keys = list(_left_over(units, rows, alone=alone))
    for key in keys:
        resources.artifacts.delete(key)
    if keys:
        log.info("leftovers.removed", keys=keys)
    return keys


def _left_over(units: Iterable[Unit], rows: _Rows, *, alone: bool) -> Iterator[str]:
    for unit in units:
        match unit.key.split("/"):
            case _ if unit.key in rows.known:
                continue
            case ["heads" | "encoders", job_id, attempt, *_]:
                is_left_over = _is_over(rows, job_id, attempt)
            case ["work", job_id, *_]:
                is_left_over = job_id not in rows.tokens  # the next attempt goes on from an earlier one's
            case ["scratch", name, *_] if name.startswith("job_"):
                is_left_over = _is_over(rows, *name.partition(".")[0].rpartition("-")[::2])
            case ["scratch" | "datasets", *_]:
                is_left_over = alone or unit.age_seconds > _UPLOAD_SECONDS
            case _:
                continue  # not ours
        if is_left_over:
            yield unit.key


def _is_over(rows: _Rows, job_id: str, attempt: str) -> bool:
    return job_id not in rows.tokens or not attempt.isdecimal() or int(attempt) != rows.tokens[job_id]
