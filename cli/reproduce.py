"""`zerogate reproduce faq@3`: make a version's head again from its dataset and the cached vectors, and compare the bytes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.embedded import exclusive
from cli.migrate import check_migrated
from service.artifacts import Artifacts, open_artifacts
from service.db import Database, make_engine
from service.embeddings.loaded_models import LoadedModels, VersionFacts
from service.errors import Conflict, InvalidRequest, NotFound
from service.models.queries import get_model, get_version, version_facts
from service.names import parse_ref
from service.resources import DEFAULT_PROJECT
from service.settings import Settings
from service.tables import EncoderRow
from workers.train import dumped_head
from workers.train_inputs import (
    Inputs,
    encode,
    guard_facts,
    guard_matrix_sha256,
    matrix_sha256,
    read_guard,
    read_inputs,
    read_task,
)
from workers.train_report import computer_facts, library_versions, way_of
from zerogate.strength import choosing_texts

_DECIDING = ("training matrix", "head")
_DIGEST = 64  # digits of a SHA-256
_SHOWN = 16  # of them, in the table


@dataclass(frozen=True)
class Line:
    """One fact, as the manifest records it and as it is now. decides: whether another value alone means failure."""

    name: str
    recorded: str
    found: str
    decides: bool

    @property
    def is_same(self) -> bool:
        return self.recorded == self.found


@dataclass(frozen=True)
class _Stored:
    """The parts of a service that a replay needs; neither workers nor Qdrant."""

    database: Database
    artifacts: Artifacts
    models: LoadedModels


def reproduce(settings: Settings, ref: str) -> bool:
    """Replay how the version was made and print what is the same; true when the head has the same bytes.

    Raises Conflict while a service uses the data folder, NotFound for an unknown version or a dataset whose file is gone,
    InvalidRequest for a version that was not trained.
    """
    if not settings.data_dir.is_dir():
        raise NotFound(f"there is no data folder '{settings.data_dir.absolute()}'; name it with --data-dir")
    with _stored(settings) as stored:
        version, inputs = _recorded(stored, ref)
        lines = compare(stored.artifacts, stored.models, version, inputs)
    console = Console()
    table = Table("", "recorded", "now", "", title=f"{version.model}@{version.number}")
    for line in lines:
        table.add_row(
            line.name, _shown(line.recorded), _shown(line.found), "[green]same[/]" if line.is_same else "[red]differs[/]"
        )
    console.print(table)
    is_same = all(line.is_same for line in lines if line.decides)
    others = ", ".join(line.name for line in lines if not line.is_same)
    console.print("The same bytes." if is_same else f"[red]Not reproduced.[/] What differs: {others}.", soft_wrap=True)
    return is_same


def _shown(value: str) -> str:
    return value[:_SHOWN] if len(value) == _DIGEST else value


def compare(artifacts: Artifacts, models: LoadedModels, version: VersionFacts, inputs: Inputs) -> list[Line]:
    """Make the head again in the recorded way; every fact beside its record."""
    from zerogate.learning import make  # loads torch: not before the arguments are known to be right

    manifest = version.manifest
    encoder = models.encoder(inputs.encoder)
    task, guard = read_task(artifacts, inputs), read_guard(artifacts, inputs)
    encoded = encode(encoder, task, guard, lambda _stage, _done, _total: None)
    way = way_of(manifest)
    near = choosing_texts(guard, encoded.guard)
    made = make(way, encoded.task, task.train, near=near, device=encoder.encoder.device)
    dumped = dumped_head(made.head, way, strength=version.strength, fingerprint=inputs.encoder.fingerprint, facts={})
    digests = {
        "dataset": (manifest["dataset_sha256"], inputs.dataset.sha256),
        "guard": (manifest["guard"]["sha256"], guard_facts(inputs)["sha256"]),
        "training matrix": (manifest["training_matrix_sha256"], matrix_sha256(encoded.task, task.train)),
        "guard's matrix": (manifest["guard_matrix_sha256"], guard_matrix_sha256(guard, encoded.guard)),
        "head": (manifest["head_sha256"], dumped.manifest["head_sha256"]),
    }
    now = computer_facts(encoder.encoder)
    recorded = {**manifest["libraries"], **{name: manifest[name] for name in now}}
    return [
        *_facts(recorded, {**library_versions(), **now}),
        Line("vectors not in the cache", "0", str(encoded.encoded), decides=False),
        *(Line(name, *both, decides=name in _DECIDING) for name, both in digests.items()),
    ]


def _facts(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Line]:
    for name, found in now.items():
        yield Line(name.replace("_", " "), str(recorded.get(name, "not recorded")), str(found), decides=False)


def _recorded(stored: _Stored, text: str) -> tuple[VersionFacts, Inputs]:
    ref = parse_ref(text)
    with stored.database.read() as session:
        model = get_model(session, DEFAULT_PROJECT, ref.name)
        row = get_version(session, model, model.live_version if ref.version is None else ref.version)
        version = version_facts(row, model, session.get_one(EncoderRow, model.encoder_id))
    if row.job_id is None or "way" not in row.manifest:
        reason = "it is the encoder itself" if row.number == 0 else "it was made before versions recorded how they were made"
        raise InvalidRequest(f"{model.name}@{row.number} cannot be made again: {reason}")
    return version, read_inputs(stored.database, row.job_id)


@contextmanager
def _stored(settings: Settings) -> Iterator[_Stored]:
    try:
        with exclusive(settings.data_dir):
            database, artifacts = Database(make_engine(settings.sql_url)), open_artifacts(settings)
            check_migrated(database.engine)
            models = LoadedModels(settings, artifacts)
            try:
                yield _Stored(database, artifacts, models)
            finally:
                models.close()
                database.close()
    except Conflict as error:
        if error.code != "folder_in_use":
            raise
        raise Conflict(f"{error.message}. `reproduce` needs the service to be stopped.", code=error.code) from None
