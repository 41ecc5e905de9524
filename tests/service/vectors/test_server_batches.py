"""How points are cut into requests: nothing is lost, and no request is longer than it may be."""

import json
from collections import Counter

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.qdrant_standin import Standin
from service.vectors.engine import Matrix, Points
from service.vectors.server import ServerEngine
from service.vectors.server_batches import BYTES, POINTS, batches, point_sizes, vector_size


def unit_rows(count: int, dim: int) -> Matrix:
    matrix = np.random.default_rng(0).normal(size=(count, dim))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def ids(count: int) -> list[str]:
    return [f"00000000-0000-0000-0000-{number:012}" for number in range(count)]


def bodies(server: Standin, path: str) -> list[bytes]:
    return [request.body for request in server.requests if (request.method, request.path) == ("PUT", path)]


@settings(deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=2 * BYTES) | st.integers(min_value=0, max_value=20_000), max_size=900))
def test_batches_are_all_rows_in_order_each_as_full_as_it_may_be(sizes: list[int]) -> None:
    cut = list(batches(sizes))

    assert [row for rows in cut for row in range(rows.start, rows.stop)] == list(range(len(sizes)))
    for rows in cut:
        length = rows.stop - rows.start
        assert length == 1 or (length <= POINTS and sum(sizes[rows]) <= BYTES)
        assert rows.stop == len(sizes) or length == POINTS or sum(sizes[rows]) + sizes[rows.stop] > BYTES


@pytest.mark.parametrize("text", ["", "x" * 5000, 'é"\n' * 1000])
def test_size_of_a_point_is_about_that_of_its_json(text: str) -> None:
    points = Points(ids(1), {"base": unit_rows(1, 384), "v1": unit_rows(1, 128)}, [{"text": text}])

    vectors = [matrix[0] for matrix in points.vectors.values()]
    real = len(orjson.dumps([points.ids[0], vectors, points.payloads[0]], option=orjson.OPT_SERIALIZE_NUMPY))

    assert next(point_sizes(points)) == pytest.approx(real, rel=0.12)
    assert vector_size(384) == pytest.approx(len(orjson.dumps(unit_rows(1, 384)[0], option=orjson.OPT_SERIALIZE_NUMPY)), rel=0.12)


def test_shortest_digits_of_any_float32_come_back_as_the_same_bits() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, size=200_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]

    read = json.loads(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY))  # as double precision, as a server may

    assert np.array(read, dtype=np.float32).tobytes() == numbers.tobytes()


def test_upsert_asks_for_the_names_once_and_sends_no_long_request(server: Standin) -> None:
    engine = ServerEngine.connect(server.url)
    engine.create_collection("docs", dim=8, indexes={}, owner="col_1")
    asked = Counter((request.method, request.path) for request in server.requests)["GET", "/collections/docs"]
    long = [{"text": "x" * 30_000}] * 300 + [{"text": "x"}] * 600

    engine.upsert("docs", Points(ids(900), {"base": unit_rows(900, 8)}, long))

    found = bodies(server, "/collections/docs/points")
    assert max(map(len, found)) <= BYTES * 1.05
    assert [len(json.loads(body)["batch"]["ids"]) for body in found] == [132, 132, 256, 256, 124]
    assert Counter((request.method, request.path) for request in server.requests)["GET", "/collections/docs"] == asked + 1
    assert engine.count("docs") == 900
    engine.close()


def test_vectors_are_set_in_requests_that_are_not_long_either(server: Standin) -> None:
    engine = ServerEngine.connect(server.url)
    engine.create_collection("docs", dim=4000, indexes={}, owner="col_1")
    engine.upsert("docs", Points(ids(150), {"base": unit_rows(150, 4000)}, [{}] * 150))

    engine.set_vectors("docs", "base", ids(150), -unit_rows(150, 4000))

    for path in ("/collections/docs/points", "/collections/docs/points/vectors"):
        found = bodies(server, path)
        assert len(found) == 2
        assert max(map(len, found)) <= BYTES * 1.05
    page = next(engine.scroll("docs", "base"))
    assert page.matrix.tobytes() == (-unit_rows(150, 4000)).tobytes()
    engine.close()
