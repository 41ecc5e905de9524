"""What one process holds open: made once by the composition root and passed to the API and the workers."""

from dataclasses import dataclass

from service.artifacts import Artifacts, open_artifacts
from service.db import Database, make_engine
from service.embeddings.known_versions import KnownVersions
from service.embeddings.loaded_models import LoadedModels
from service.queue import JobQueue
from service.settings import Settings
from service.vectors.edge import EdgeEngine
from service.vectors.engine import VectorEngine
from service.vectors.server import ServerEngine

DEFAULT_PROJECT = "default"


@dataclass(frozen=True)
class Resources:
    """The outside systems and the loaded models of this process."""

    settings: Settings
    database: Database
    queue: JobQueue
    vectors: VectorEngine
    artifacts: Artifacts
    models: LoadedModels
    known_versions: KnownVersions

    def close(self) -> None:
        """Give everything back, in the reverse order of use."""
        self.vectors.close()
        self.models.close()
        self.database.close()


def open_resources(settings: Settings, queue: JobQueue) -> Resources:
    """Open what the settings name. Loads no encoder: the first text to encode does."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    artifacts = open_artifacts(settings)
    database = Database(make_engine(settings.sql_url))
    return Resources(
        settings=settings,
        database=database,
        queue=queue,
        vectors=_open_vectors(settings),
        artifacts=artifacts,
        models=LoadedModels(settings, artifacts),
        known_versions=KnownVersions(database),
    )


def _open_vectors(settings: Settings) -> VectorEngine:
    if settings.qdrant_url is None:
        return EdgeEngine(settings.data_dir / "vectors")
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return ServerEngine.connect(settings.qdrant_url, api_key=key)
