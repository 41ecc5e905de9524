"""What a list of collections tells is what looking at one collection after the other finds."""

import random

from sqlalchemy import select

from benchmarks.api_data import Sizes, fill
from service.collections.queries import list_collections, serving_version, vector_rows
from service.collections.standings import standings
from service.collections.targets import choose_target
from service.db import Database, now
from service.embeddings.operations import serving_name
from service.models.queries import get_version, version_facts
from service.names import vector_name
from service.resources import DEFAULT_PROJECT
from service.tables import CollectionVector, EncoderRow, Model, Version

SIZES = Sizes(jobs=400, versions=80, models=10, datasets=8, collections=40)


def filled(database: Database) -> None:
    """Models with versions that map queries only, that do not fold, and whose dial is 0; some were live, some are."""
    rng = random.Random(3)
    with database.write() as session:
        encoder = EncoderRow(
            id="enc", project_id=DEFAULT_PROJECT, name="small", source="small", dim=384, prompts={}, max_length=8,
            fingerprint="0" * 64, created_at=now(),
        )  # fmt: skip
        session.add(encoder)
        session.flush()
        fill(session, encoder.id, SIZES, rng)
        for version in session.scalars(select(Version).where(Version.number > 0)):
            kind = rng.choice(["plain", "query only", "stacked", "dial at 0"])
            version.query_only = kind == "query only"
            form = {"form": "stacked"} if kind == "stacked" else {}
            version.manifest = {**version.manifest, "query_only": version.query_only, **form}
            version.strength = 0.0 if kind == "dial at 0" else 0.9
        for collection in list_collections(session, DEFAULT_PROJECT):
            there = {row.version for row in vector_rows(session, collection.id)}
            for number in {1, 2, 3, 4} - there:
                state = rng.choice(["ready", "building", "dropping", None])
                if state is not None:
                    session.add(
                        CollectionVector(
                            collection_id=collection.id,
                            version=number,
                            vector_name=vector_name(number),
                            state=state,
                            created_at=now(),
                        )
                    )


def test_all_collections_stand_as_they_do_one_by_one(database: Database) -> None:
    filled(database)

    with database.read() as session:
        rows = list_collections(session, DEFAULT_PROJECT)
        found = standings(session, rows)
        expected = []
        for row in rows:
            model = session.get_one(Model, row.model_id)
            number = serving_version(session, row)
            facts = version_facts(get_version(session, model, number), model, session.get_one(EncoderRow, model.encoder_id))
            target = choose_target(session, DEFAULT_PROJECT, row.name, version=None, strength=None, by_text=True)
            versions = [vector.version for vector in vector_rows(session, row.id)]
            expected.append((row.name, model.name, versions, number, serving_name(facts), target.version.number, target.path))

    assert [
        (
            one.collection.name,
            one.model,
            [vector.version for vector in one.vectors],
            one.serving,
            "base" if one.serves_base else vector_name(one.serving),
            one.by_text,
            one.path,
        )
        for one in found
    ] == expected
    assert {one.path for one in found} == {"indexed", "instant"}
    assert any(one.serving not in {0, one.by_text} for one in found)
    assert any(one.serves_base and one.serving > 0 for one in found)
