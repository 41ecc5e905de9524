"""What both engines promise of reads and refusals."""

import json
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


class TestReads:
    def test_vectors_are_stored_bit_for_bit(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.add_vector_name("docs", "v2", dim=DIM)
        awkward = unit_rows(4)
        awkward[0] = [1e-45, -0.0, 0.1, 1 / 3, 3e38, -1e-30, 1 - 2**-24, 1 + 2**-23]

        docs.upsert("docs", Points(points(4).ids, {"base": awkward, "v1": awkward}, [{}] * 4))
        docs.set_vectors("docs", "v2", points(4).ids, awkward)

        for found in (stored(docs, "base"), stored(docs, "v1"), stored(docs, "v2")):
            assert all(found[point_id(n)].dtype == np.float32 for n in range(4))
            assert all(found[point_id(n)].tobytes() == awkward[n].tobytes() for n in range(4))

    @pytest.mark.parametrize("batch_size", [1, 7, 25, 100])
    def test_scroll_gives_every_point_once_in_order_of_ids(self, docs: VectorEngine, batch_size: int) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(25, names=("base", "v1")))
        docs.upsert("docs", points(10, first=25))

        pages = list(docs.scroll("docs", "v1", batch_size=batch_size))

        assert [i for page in pages for i in page.ids] == sorted(point_id(n) for n in range(25))
        assert all(0 < len(page.ids) <= batch_size for page in pages)
        assert all(page.matrix.shape == (len(page.ids), DIM) for page in pages)

    def test_scroll_of_those_that_lack_a_name_gives_them_alone(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(25))
        having = {point_id(n) for n in range(0, 25, 3)}
        docs.set_vectors("docs", "v1", sorted(having), unit_rows(len(having)))

        pages = list(docs.scroll("docs", "base", lacking="v1", batch_size=7))

        assert [i for page in pages for i in page.ids] == sorted({point_id(n) for n in range(25)} - having)
        found = {i: row.tobytes() for page in pages for i, row in zip(page.ids, page.matrix, strict=True)}
        assert all(found[point_id(n)] == unit_rows(25)[n].tobytes() for n in range(25) if n % 3)
        assert len(next(docs.scroll("docs", "base", lacking="v2")).ids) == 25

    def test_points_may_be_given_the_name_while_those_that_lack_it_are_read(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(25))
        seen: list[str] = []

        for page in docs.scroll("docs", "base", lacking="v1", batch_size=4):
            docs.set_vectors("docs", "v1", page.ids, -page.matrix)
            seen += page.ids

        assert seen == sorted(point_id(n) for n in range(25))
        assert list(docs.scroll("docs", "base", lacking="v1")) == []
        assert stored(docs, "v1")[point_id(3)].tobytes() == (-unit_rows(25)[3]).tobytes()

    def test_scroll_of_an_empty_name_gives_no_page(self, docs: VectorEngine) -> None:
        assert list(docs.scroll("docs", "base")) == []

    def test_scores_are_inner_products_and_best_comes_first(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(60))
        query = unit_rows(1, seed=77)[0]

        hits = docs.search("docs", "base", query, limit=10)

        scores = unit_rows(60).astype(np.float64) @ query
        best = np.argsort(-scores)[:10]
        assert [hit.id for hit in hits] == [point_id(int(n)) for n in best]
        assert [hit.payload for hit in hits] == [{"number": int(n)} for n in best]
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-6, rtol=0)

    def test_search_finds_only_points_that_have_the_name(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=DIM)
        docs.upsert("docs", points(20))
        docs.set_vectors("docs", "v1", points(3).ids, unit_rows(3))

        hits = docs.search("docs", "v1", unit_rows(1)[0], limit=20)

        assert {hit.id for hit in hits} == set(points(3).ids)

    def test_search_keeps_to_the_filter(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(50))

        hits = docs.search("docs", "base", unit_rows(1)[0], limit=50, where={"must": [{"key": "number", "range": {"lt": 7}}]})

        assert {hit.id for hit in hits} == {point_id(n) for n in range(7)}

    def test_candidates_are_the_hits_of_a_search_with_their_stored_vectors(self, docs: VectorEngine) -> None:
        docs.add_vector_name("docs", "v1", dim=3)
        docs.upsert("docs", points(60))
        docs.set_vectors("docs", "v1", points(20).ids, unit_rows(20)[:, :3].copy())
        query = unit_rows(1, seed=78)[0]
        where = {"must": [{"key": "number", "range": {"gte": 10}}]}

        for name, asked, condition in (("base", query, None), ("base", query, where), ("v1", query[:3].copy(), where)):
            found = docs.candidates("docs", name, asked, limit=15, where=condition)

            hits = docs.search("docs", name, asked, limit=15, where=condition)
            assert list(found.ids) == [hit.id for hit in hits]
            written = stored(docs, name)
            assert [row.tobytes() for row in found.matrix] == [written[hit.id].tobytes() for hit in hits]
            assert len(found.ids) == (10 if name == "v1" else 15)

    def test_where_nothing_matches_there_are_no_candidates(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(3))
        nothing = {"must": [{"key": "number", "range": {"gt": 10}}]}

        found = docs.candidates("docs", "base", unit_rows(1)[0], limit=5, where=nothing)

        assert (list(found.ids), found.matrix.shape, found.matrix.dtype) == ([], (0, DIM), np.float32)

    def test_payloads_gives_those_that_exist(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(250))

        found = docs.payloads("docs", [point_id(n) for n in range(240, 400)])

        assert found == {point_id(n): {"number": n} for n in range(240, 250)}

    def test_payloads_come_back_exactly(self, docs: VectorEngine) -> None:
        payload = {
            "yes": True, "no": False, "one": 1, "zero": 0, "one_float": 1.0, "null": None, "text": "é \n \U0001f600",
            "empty": {}, "none": [], "list": [True, 1, "true", None, [False, {"deep": [True]}]],
            "big": 2**64 - 1, "small": -(2**63), "tiny": 5e-324, "minus_zero": -0.0, "": "empty key",
            "nul": "\x00", "nul_one": "\x00\x01", "nul_two": "\x00\x02", "nuls": "\x00\x00\x01",
            "a.b[]": {"c d": False}, "true": "true",
        }  # fmt: skip

        docs.upsert("docs", Points([point_id(0)], {"base": unit_rows(1)}, [payload]))

        read = docs.payloads("docs", [point_id(0)])[point_id(0)]
        found = docs.search("docs", "base", unit_rows(1)[0], limit=1)[0].payload
        # As JSON, because Python holds True and 1 for equal.
        assert json.dumps(read, sort_keys=True) == json.dumps(payload, sort_keys=True)
        assert json.dumps(found, sort_keys=True) == json.dumps(payload, sort_keys=True)


class TestRefusals:
    @pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
    def test_number_that_is_not_finite_writes_nothing(self, docs: VectorEngine, number: float) -> None:
        bad = unit_rows(150)
        bad[149, 3] = number

        with pytest.raises(InvalidRequest, match="NaN or infinity"):
            docs.upsert("docs", Points(points(150).ids, {"base": bad}, points(150).payloads))

        assert docs.count("docs") == 0

    def test_other_dimension_writes_nothing(self, docs: VectorEngine) -> None:
        bad = Points([point_id(0)], {"base": np.ones((1, DIM + 1), dtype=np.float32)}, [{}])

        with pytest.raises(InvalidRequest, match="has dimension 8, found 9"):
            docs.upsert("docs", bad)

        assert docs.count("docs") == 0

    def test_set_vectors_refuses_the_same_and_keeps_the_old(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(2))

        with pytest.raises(InvalidRequest, match="NaN or infinity"):
            docs.set_vectors("docs", "base", points(2).ids, np.full((2, DIM), np.nan, dtype=np.float32))
        with pytest.raises(InvalidRequest, match="has dimension 8, found 9"):
            docs.set_vectors("docs", "base", points(2).ids, np.ones((2, DIM + 1), dtype=np.float32))

        assert stored(docs, "base")[point_id(1)].tobytes() == unit_rows(2)[1].tobytes()

    def test_unknown_name_writes_nothing_and_the_message_lists_the_names(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(1))

        with pytest.raises(NotFound, match="has no vector 'v9'; it has base"):
            docs.upsert("docs", points(2, names=("base", "v9"), seed=4))
        with pytest.raises(NotFound, match="v9"):
            docs.set_vectors("docs", "v9", [point_id(0)], unit_rows(1))
        with pytest.raises(NotFound, match="v9"):
            docs.scroll("docs", "v9")
        with pytest.raises(NotFound, match="v9"):
            docs.search("docs", "v9", unit_rows(1)[0], limit=1)
        with pytest.raises(NotFound, match="v9"):
            docs.candidates("docs", "v9", unit_rows(1)[0], limit=1)

        assert docs.count("docs") == 1

    @pytest.mark.parametrize("bad_id", ["7", "abc", "{00000000-0000-0000-0000-00000000000a}", point_id(0).upper()])
    def test_id_that_is_no_uuid_is_refused(self, docs: VectorEngine, bad_id: str) -> None:
        with pytest.raises(InvalidRequest, match="not a UUID"):
            docs.upsert("docs", Points([bad_id], {"base": unit_rows(1)}, [{}]))
        with pytest.raises(InvalidRequest, match="not a UUID"):
            docs.delete("docs", ids=[bad_id])

    @pytest.mark.parametrize(
        "value", [float("nan"), float("inf"), 2**64, -(2**63) - 1, "\ud800", {1: 2}, (1,), b"x", np.float32(1), {"\udfff": 1}]
    )
    def test_payload_that_would_not_come_back_is_refused(self, docs: VectorEngine, value: object) -> None:
        with pytest.raises(InvalidRequest, match="The payload") as caught:
            docs.upsert("docs", Points([point_id(0)], {"base": unit_rows(1)}, [{"a": {"b": value}}]))

        assert caught.value.param == "payload.a.b"
        assert docs.count("docs") == 0

    def test_payload_that_is_nested_too_deep_is_refused(self, docs: VectorEngine) -> None:
        deep = json.loads("[" * 90 + "]" * 90)

        with pytest.raises(InvalidRequest, match="deeper than 64"):
            docs.upsert("docs", Points([point_id(0)], {"base": unit_rows(1)}, [{"a": deep}]))

    def test_query_that_is_wrong_is_refused(self, docs: VectorEngine) -> None:
        docs.upsert("docs", points(3))

        for query in (np.ones(DIM + 1, dtype=np.float32), np.full(DIM, np.nan, dtype=np.float32), unit_rows(1)):
            with pytest.raises(InvalidRequest):
                docs.search("docs", "base", query, limit=1)
            with pytest.raises(InvalidRequest):
                docs.candidates("docs", "base", query, limit=1)
        with pytest.raises(InvalidRequest, match="at least 1"):
            docs.search("docs", "base", unit_rows(1)[0], limit=0)
