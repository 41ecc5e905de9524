"""Which version a request means, with a real database: what changes is seen at once, what cannot change is read once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, update

from cli.migrate import migrate
from service.db import Database, make_engine, now
from service.embeddings.known_versions import KnownVersions
from service.encoders.operations import ensure_project
from service.errors import NotFound
from service.ids import new_id
from service.models.operations import add_model
from service.resources import DEFAULT_PROJECT
from service.tables import EncoderRow, Model, Version


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """With the model `faq`: version 0 is live, version 1 is there."""
    found = Database(make_engine(f"sqlite:///{tmp_path / 'facts.db'}"))
    migrate(found.engine)
    with found.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        facts: dict[str, Any] = {"dim": 4, "prompts": {}, "max_length": 16, "fingerprint": "f" * 64, "created_at": now()}
        encoder = EncoderRow(id=new_id("enc"), project_id=DEFAULT_PROJECT, name="encoder", source="/old", **facts)
        session.add(encoder)
        session.flush()
        model = add_model(session, DEFAULT_PROJECT, "faq", encoder)
        session.add(Version(id=new_id("ver"), model_id=model.id, number=1, manifest={}, scores={}, created_at=now()))
    yield found
    found.close()


def meant(known: KnownVersions, model: str) -> tuple[int, str]:
    version = known.choose(DEFAULT_PROJECT, model)
    return version.number, version.encoder.source


def test_a_promotion_is_seen_at_once_and_a_number_stays_what_it_is(database: Database) -> None:
    known = KnownVersions(database)
    assert [meant(known, name)[0] for name in ("faq", "faq@0", "faq@1", "faq")] == [0, 0, 1, 0]
    with database.write() as session:
        session.execute(update(Model).values(live_version=1))
    assert [meant(known, name)[0] for name in ("faq", "faq@0", "faq@1", "faq")] == [1, 0, 1, 1]


def test_an_encoder_whose_files_moved_is_seen_at_once(database: Database) -> None:
    known = KnownVersions(database)
    assert meant(known, "faq") == (0, "/old")
    with database.write() as session:
        session.execute(update(EncoderRow).values(source="/new"))
    assert meant(known, "faq") == (0, "/new")
    assert meant(known, "encoder") == (0, "/new")


def test_a_version_and_a_model_that_are_deleted_are_not_found(database: Database) -> None:
    known = KnownVersions(database)
    assert meant(known, "faq@1") == (1, "/old")
    with database.write() as session:
        session.execute(delete(Version).where(Version.number == 1))
    with pytest.raises(NotFound, match="there is no version 'faq@1'"):
        known.choose(DEFAULT_PROJECT, "faq@1")
    meant(known, "faq")
    with database.write() as session:
        session.execute(delete(Model))
    with pytest.raises(NotFound, match="there is no model or encoder 'faq'"):
        known.choose(DEFAULT_PROJECT, "faq")


def test_a_known_version_costs_one_select_that_reads_no_manifest(database: Database) -> None:
    known = KnownVersions(database)
    meant(known, "faq")
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    meant(known, "faq")
    selects = [one for one in statements if one.startswith("SELECT")]
    assert len(selects) == 1
    assert "manifest" not in selects[0]
