"""Which version a request means, also while the database is away: then it is the version that it was when last asked."""

import threading
import time
from collections import OrderedDict

import structlog
from sqlalchemy import Integer, bindparam, func, select

from service.db import Database
from service.embeddings.loaded_models import VersionFacts
from service.embeddings.operations import choose_version
from service.errors import Unavailable
from service.names import parse_ref
from service.tables import EncoderRow, Model, Version

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_KEPT = 4096  # of about 5 kB, the manifest
# To ask a database that is silent can take seconds, and many requests would wait for it at once.
_ASK_AGAIN_SECONDS = 1.0

# Which version a name means now, and where its encoder's files are: all that may change. A version itself never does, so one that
# is remembered need not be read again: a fifth of the time.
_MEANT = (
    select(Version.id, EncoderRow.source, EncoderRow.revision)
    .join(Model, Version.model_id == Model.id)
    .join(EncoderRow, Model.encoder_id == EncoderRow.id)
    .where(
        Model.project_id == bindparam("project_id"),
        Model.name == bindparam("name"),
        Version.number == func.coalesce(bindparam("number", type_=Integer), Model.live_version),
    )
)


class KnownVersions:
    """Remembers what requests meant. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[tuple[str, str, str | None], VersionFacts] = OrderedDict()
        self._lock = threading.Lock()
        self._away_until = 0.0

    def choose(self, project_id: str, model: str, *, collection: str | None = None) -> VersionFacts:
        """See `choose_version`. Raises Unavailable only for what was never asked for before."""
        key = (project_id, model, collection)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                if time.monotonic() < self._away_until:
                    return known
                if self._away_until:  # one asks whether the database is back; the others need not wait for the answer
                    self._away_until = time.monotonic() + _ASK_AGAIN_SECONDS
        try:
            if known is not None and collection is None and self._is_meant(project_id, model, known):
                found = known
            else:
                with self._database.read() as session:
                    found = choose_version(session, project_id, model, collection=collection)
        except Unavailable:
            self._away_until = time.monotonic() + _ASK_AGAIN_SECONDS
            if known is None:
                raise
            log.warning("versions.from_memory", model=known.model, version=known.number)
            return known
        with self._lock:
            self._away_until = 0.0
            self._known[key] = found
            self._known.move_to_end(key)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def _is_meant(self, project_id: str, model: str, known: VersionFacts) -> bool:
        ref = parse_ref(model)
        meant = self._database.first(_MEANT, {"project_id": project_id, "name": ref.name, "number": ref.version})
        return meant is not None and tuple(meant) == (known.version_id, known.encoder.source, known.encoder.revision)
