"""What both engines promise of collections, names and writes."""

from uuid import UUID, uuid5

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import InvalidRequest, NotFound
from service.vectors.engine import Matrix, Points, VectorEngine

DIM = 8

# Local mode has neither payload indexes nor quantized vectors and says so; a server has both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


@pytest.fixture
def docs(engine: VectorEngine) -> VectorEngine:
    """An engine with the empty collection `docs`."""
    engine.create_collection("docs", dim=DIM, indexes={"lang": "keyword"}, owner="col_1")
    return engine


def point_id(number: int) -> str:
    return str(uuid5(UUID(int=0), str(number)))


def unit_rows(count: int, *, seed: int = 0) -> Matrix:
    matrix = np.random.default_rng(seed).normal(size=(count, DIM))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def points(count: int, *, names: tuple[str, ...] = ("base",), first: int = 0, seed: int = 0) -> Points:
    """Points first, first + 1, ...; each name has its own vectors."""
    vectors = {name: unit_rows(count, seed=seed + place) for place, name in enumerate(names)}
    numbers = range(first, first + count)
    return Points([point_id(n) for n in numbers], vectors, [{"number": n} for n in numbers])


def stored(engine: VectorEngine, name: str) -> dict[str, NDArray[np.float32]]:
    pages = engine.scroll("docs", name)
    return {i: row for page in pages for i, row in zip(page.ids, page.matrix, strict=True)}


class TestVectorNames:
    def test_collection_starts_with_base_alone(self, docs: VectorEngine) -> None:
        assert docs.vector_names("docs") == {"base"}

    def test_names_are_added_and_dropped_while_points_are_there(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(5))

        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.add_vector_name("docs", "v2", dim=DIM)
        docs.set_vectors("docs", "v1", points(5).ids, unit_rows(5, seed=9))
        docs.drop_vector_name("docs", "v2")

        assert docs.vector_names("docs") == {"base", "v1"}
        assert docs.count("docs", having="v1") == 5
        assert docs.count("docs", having="v2") == 0
        assert docs.count("docs", having="base") == 5

    def test_name_that_is_dropped_and_added_again_is_empty(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(3, names=("base", "v1")))

        docs.drop_vector_name("docs", "v1")
        docs.add_vector_name("docs", "v1", dim=DIM)

        assert docs.count("docs", having="v1") == 0

    def test_adding_a_name_twice_keeps_its_vectors(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(3, names=("base", "v1")))

        docs.add_vector_name("docs", "v1", dim=DIM)

        assert docs.count("docs", having="v1") == 3

    def test_dropping_a_missing_name_is_fine(self, docs: VectorEngine) -> None:
        docs.drop_vector_name("docs", "v7")

    def test_name_with_another_dimension_is_refused(self, docs: VectorEngine) -> None:
        with pytest.raises(InvalidRequest, match="has dimension 8, not 9"):
            docs.add_vector_name("docs", "base", dim=9)

    @pytest.mark.parametrize("dim", [DIM, 2 * DIM])
    def test_dropped_name_may_come_back_with_any_dimension(self, docs: VectorEngine, dim: int) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.drop_vector_name("docs", "v1")

        docs.add_vector_name("docs", "v1", dim=dim)

        assert docs.vector_names("docs") == {"base", "v1"}


class TestCollections:
    def test_creating_twice_keeps_the_points(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(3))

        docs.create_collection("docs", dim=DIM, indexes={"lang": "keyword"}, owner="col_1")

        assert docs.count("docs") == 3

    def test_creating_again_with_another_dimension_is_refused(self, docs: VectorEngine) -> None:
        with pytest.raises(InvalidRequest, match="has dimension 8, not 9"):
            docs.create_collection("docs", dim=9, indexes={}, owner="col_1")

    def test_dropped_collection_is_gone_and_its_name_free(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(3))

        docs.drop_collection("docs", owner="col_1")
        docs.drop_collection("docs", owner="col_1")

        with pytest.raises(NotFound):
            docs.count("docs")
        docs.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
        assert docs.count("docs") == 0

    def test_collection_of_another_owner_is_not_dropped(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(3))

        docs.drop_collection("docs", owner="col_2")

        assert docs.count("docs") == 3

    @pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 201, "a b", "é"])
    def test_name_that_is_no_safe_folder_is_refused(self, engine: VectorEngine, name: str) -> None:
        with pytest.raises(InvalidRequest, match="not a name for a collection"):
            engine.create_collection(name, dim=DIM, indexes={}, owner="col_1")

    def test_unknown_collection_is_not_found(self, engine: VectorEngine) -> None:
        query = unit_rows(1)[0]
        ids = [point_id(0)]

        for ask in (
            lambda: engine.vector_names("nope"),
            lambda: engine.add_vector_name("nope", "v1", dim=DIM),
            lambda: engine.drop_vector_name("nope", "v1"),
            lambda: engine.upsert("nope", points(1)),
            lambda: engine.set_vectors("nope", "base", ids, unit_rows(1)),
            lambda: engine.payloads("nope", ids),
            lambda: engine.scroll("nope", "base"),
            lambda: engine.count("nope"),
            lambda: engine.delete("nope", ids=ids),
            lambda: engine.search("nope", "base", query, limit=1),
            lambda: engine.bulk_load("nope").__enter__(),
        ):
            with pytest.raises(NotFound, match="nope"):
                ask()

    def test_ping_returns(self, engine: VectorEngine) -> None:
        engine.ping()


class TestBulkLoad:
    def test_what_is_written_inside_is_found_inside_and_afterwards(self, docs: VectorEngine) -> None:
        with docs.bulk_load("docs"):
            docs.upsert("docs", points(20))
            inside = docs.search("docs", "base", unit_rows(20)[7], limit=1)

        assert [hit.id for hit in inside] == [point_id(7)]
        assert docs.count("docs") == 20

    def test_error_inside_comes_out_and_it_may_be_entered_again(self, docs: VectorEngine) -> None:
        with pytest.raises(ZeroDivisionError), docs.bulk_load("docs"):
            raise ZeroDivisionError
        with docs.bulk_load("docs"):
            docs.upsert("docs", points(1))

        assert docs.count("docs") == 1


class TestWrites:
    def test_upsert_with_all_names_keeps_all_and_replaces_the_payload(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(3, names=("base", "v1")))

        docs.upsert("docs", Points([point_id(0)], {"base": unit_rows(1), "v1": unit_rows(1)}, [{"other": 1}]))

        assert docs.count("docs", having="v1") == 3
        assert docs.payloads("docs", [point_id(0)]) == {point_id(0): {"other": 1}}

    def test_upsert_loses_a_name_that_is_left_out(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(3, names=("base", "v1")))

        docs.upsert("docs", points(1))

        assert docs.count("docs") == 3
        assert docs.count("docs", having="v1") == 2

    def test_set_vectors_keeps_payload_and_other_names(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(3))

        docs.set_vectors("docs", "v1", points(3).ids, unit_rows(3, seed=5))

        assert docs.count("docs", having="base") == 3
        assert docs.payloads("docs", [point_id(2)]) == {point_id(2): {"number": 2}}
        assert stored(docs, "v1")[point_id(2)].tobytes() == unit_rows(3, seed=5)[2].tobytes()
        assert stored(docs, "base")[point_id(2)].tobytes() == unit_rows(3)[2].tobytes()

    def test_set_vectors_passes_over_points_that_are_missing(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(250))
        docs.delete("docs", ids=[point_id(0), point_id(120), point_id(249)])

        docs.set_vectors("docs", "v1", points(250).ids, unit_rows(250, seed=5))

        assert docs.count("docs", having="v1") == docs.count("docs") == 247

    def test_set_vectors_of_missing_points_alone_does_nothing(self, docs: VectorEngine) -> None:
        docs.set_vectors("docs", "base", points(2).ids, unit_rows(2))

        assert docs.count("docs") == 0

    def test_delete_by_ids_passes_over_missing_ones(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(250))

        docs.delete("docs", ids=[point_id(n) for n in range(100, 300)])

        assert set(stored(docs, "base")) == {point_id(n) for n in range(100)}

    def test_delete_by_filter(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(450))

        docs.delete("docs", where={"must": [{"key": "number", "range": {"gte": 40}}]})

        assert set(stored(docs, "base")) == {point_id(n) for n in range(40)}

    def test_delete_by_ids_and_filter_deletes_both(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(10))

        docs.delete("docs", ids=[point_id(1)], where={"must": [{"key": "number", "match": {"value": 2}}]})

        assert docs.count("docs") == 8

    def test_delete_of_nothing_deletes_nothing(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(3))

        docs.delete("docs")

        assert docs.count("docs") == 3

    def test_empty_batches_are_fine(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(0))
        docs.set_vectors("docs", "base", [], unit_rows(0))

        assert docs.count("docs") == 0
        assert docs.payloads("docs", []) == {}
