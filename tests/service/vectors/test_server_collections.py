"""Whose a collection is on a server that others use too, how it is indexed, and loading without an index."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from benchmarks.qdrant_standin import Standin
from benchmarks.qdrant_standin_answers import Refusal, no_collection
from service.errors import Conflict, InvalidRequest, NotFound, Unavailable
from service.vectors.engine import IndexSettings, Points
from service.vectors.server import ServerEngine

POINT = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def engine(server: Standin) -> Iterator[ServerEngine]:
    """The engine under test, connected to the stand-in."""
    made = ServerEngine.connect(server.url)
    yield made
    made.close()


@pytest.fixture
def client(server: Standin) -> Iterator[QdrantClient]:
    """Another program that uses the same server."""
    made = QdrantClient(url=server.url, check_compatibility=False)
    yield made
    made.close()


def make(engine: ServerEngine, *, owner: str = "col_1", **others: Any) -> None:
    engine.create_collection("docs", **{"dim": 4, "indexes": {}, "owner": owner, **others})


def bodies(server: Standin, method: str, path: str) -> list[Any]:
    return [json.loads(one.body) for one in server.requests if (one.method, one.path) == (method, path)]


def threshold(client: QdrantClient) -> int | None:
    return client.get_collection("docs").config.optimizer_config.indexing_threshold


class TestOwners:
    def test_owner_stands_in_the_metadata(self, engine: ServerEngine, client: QdrantClient) -> None:
        make(engine)

        assert client.get_collection("docs").config.metadata == {"zerogate_collection": "col_1"}

    @pytest.mark.parametrize("metadata", [None, {"zerogate_collection": "col_2"}, {"owner": "col_1"}])
    def test_collection_of_somebody_else_is_a_conflict_and_stays(
        self, engine: ServerEngine, client: QdrantClient, metadata: dict[str, str] | None
    ) -> None:
        vectors = {"base": models.VectorParams(size=4, distance=models.Distance.DOT)}
        client.create_collection("docs", vectors, metadata=metadata)

        with pytest.raises(Conflict, match="'docs' that is not this one's") as caught:
            make(engine, indexes={"lang": "keyword"})
        engine.drop_collection("docs", owner="col_1")

        assert caught.value.code == "qdrant_name_taken"
        info = client.get_collection("docs")
        assert (info.config.metadata or None, info.payload_schema) == (metadata, {})

    def test_collection_with_one_nameless_vector_is_a_conflict_too(self, engine: ServerEngine, client: QdrantClient) -> None:
        client.create_collection("docs", models.VectorParams(size=4, distance=models.Distance.DOT))

        with pytest.raises(Conflict):
            make(engine)
        with pytest.raises(InvalidRequest, match="without named vectors"):
            engine.vector_names("docs")

    def test_creator_that_another_process_overtakes_has_its_collection(self, engine: ServerEngine, server: Standin) -> None:
        make(engine)
        server.refusals.append(no_collection("docs"))  # to the look before, and then it is there

        make(engine)

        assert len(bodies(server, "PUT", "/collections/docs")) == 2

    def test_creator_that_a_stranger_overtakes_meets_a_conflict(self, engine: ServerEngine, server: Standin) -> None:
        make(engine, owner="col_2")
        server.refusals.append(no_collection("docs"))

        with pytest.raises(Conflict):
            make(engine)

    def test_refusal_to_make_a_collection_comes_out(self, engine: ServerEngine, server: Standin) -> None:
        server.refusals += [no_collection("docs"), Refusal(400, "Bad request: too many collections")]

        with pytest.raises(InvalidRequest, match="too many collections"):
            make(engine)

    def test_only_the_missing_indexes_are_made(self, engine: ServerEngine, server: Standin, client: QdrantClient) -> None:
        make(engine, indexes={"lang": "keyword"})
        make(engine, indexes={"year": "integer", "lang": "keyword", "live": "bool"})

        made = [body["field_name"] for body in bodies(server, "PUT", "/collections/docs/index")]
        assert made == ["lang", "live", "year"]
        schema = client.get_collection("docs").payload_schema
        assert {field: info.data_type.value for field, info in schema.items()} == {
            "lang": "keyword", "live": "bool", "year": "integer",
        }  # fmt: skip


class TestIndexSettings:
    def test_settings_stand_at_the_collection_so_that_later_names_have_them(self, engine: ServerEngine, server: Standin) -> None:
        make(engine, settings=IndexSettings(quantization="scalar", hnsw_m=32, hnsw_ef_construct=200))

        assert bodies(server, "PUT", "/collections/docs") == [
            {
                "vectors": {"base": {"size": 4, "distance": "Dot"}},
                "hnsw_config": {"m": 32, "ef_construct": 200},
                "optimizers_config": {"indexing_threshold": 10_000},
                "quantization_config": {"scalar": {"type": "int8"}},
                "metadata": {"zerogate_collection": "col_1"},
            }
        ]

    def test_turbo_takes_four_bits(self, engine: ServerEngine, client: QdrantClient) -> None:
        make(engine, settings=IndexSettings(quantization="turbo"))

        assert client.get_collection("docs").config.quantization_config == models.TurboQuantization(
            turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4)
        )

    def test_default_leaves_the_server_its_own(self, engine: ServerEngine, client: QdrantClient) -> None:
        make(engine)

        config = client.get_collection("docs").config
        assert (config.quantization_config, config.hnsw_config.m, config.hnsw_config.ef_construct) == (None, 16, 100)

    def test_search_scores_with_the_stored_vectors(self, engine: ServerEngine, server: Standin) -> None:
        make(engine, settings=IndexSettings(quantization="turbo"))

        engine.search("docs", "base", np.ones(4, dtype=np.float32), limit=1)

        (body,) = bodies(server, "POST", "/collections/docs/points/query")
        assert body["params"] == {"quantization": {"rescore": True, "oversampling": 2.0}}


class TestBulkLoad:
    def test_no_index_is_built_inside_and_one_is_afterwards(self, engine: ServerEngine, client: QdrantClient) -> None:
        make(engine)
        before = threshold(client)

        with engine.bulk_load("docs"):
            inside = threshold(client)

        assert (before, inside, threshold(client)) == (10_000, 0, 10_000)

    def test_index_comes_back_when_the_block_raises(self, engine: ServerEngine, client: QdrantClient) -> None:
        make(engine)

        with pytest.raises(ZeroDivisionError), engine.bulk_load("docs"):
            raise ZeroDivisionError

        assert threshold(client) == 10_000

    def test_index_comes_back_at_the_next_time_after_a_kill(self, engine: ServerEngine, client: QdrantClient) -> None:
        make(engine)
        killed = engine.bulk_load("docs")
        killed.__enter__()
        assert threshold(client) == 0

        with engine.bulk_load("docs"):
            pass

        assert threshold(client) == 10_000

    def test_why_the_block_failed_is_what_comes_out(self, engine: ServerEngine, server: Standin) -> None:
        make(engine)
        server.refusals += [None, Refusal(503, "shutting down")]  # entering works, leaving does not

        with pytest.raises(ZeroDivisionError), engine.bulk_load("docs"):
            raise ZeroDivisionError

        assert server.refusals == []

    def test_index_that_does_not_come_back_is_told(self, engine: ServerEngine, server: Standin) -> None:
        make(engine)

        with pytest.raises(Unavailable, match="shutting down"), engine.bulk_load("docs"):
            server.refusals.append(Refusal(503, "shutting down"))

    def test_collection_that_was_dropped_inside_is_not_found(self, engine: ServerEngine) -> None:
        make(engine)

        with pytest.raises(NotFound), engine.bulk_load("docs"):
            engine.drop_collection("docs", owner="col_1")


class TestSettingVectors:
    """The server refuses a whole request for one point that somebody else has deleted since we looked."""

    gone = Refusal(404, f"Not found: No point with id {POINT} found")

    def test_it_looks_again_when_a_point_has_gone_meanwhile(self, engine: ServerEngine, server: Standin) -> None:
        make(engine)
        engine.upsert("docs", Points([POINT], {"base": np.ones((1, 4), dtype=np.float32)}, [{}]))
        server.refusals += [None, None, self.gone]  # to the write, after the names and the look

        engine.set_vectors("docs", "base", [POINT], np.full((1, 4), 2, dtype=np.float32))

        assert len(bodies(server, "PUT", "/collections/docs/points/vectors")) == 2
        assert next(engine.scroll("docs", "base")).matrix.tolist() == [[2, 2, 2, 2]]

    def test_it_does_not_look_for_ever(self, engine: ServerEngine, server: Standin) -> None:
        make(engine)
        engine.upsert("docs", Points([POINT], {"base": np.ones((1, 4), dtype=np.float32)}, [{}]))
        server.refusals += [None, None, self.gone, None, self.gone, None, self.gone]

        with pytest.raises(NotFound, match=POINT):
            engine.set_vectors("docs", "base", [POINT], np.full((1, 4), 2, dtype=np.float32))

        assert len(bodies(server, "PUT", "/collections/docs/points/vectors")) == 3
