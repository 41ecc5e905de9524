"""The end of a training: everything at once or nothing, and never twice."""

from typing import Any

import pytest
from sqlalchemy import func, select

from service.db import Database
from service.jobs.finishing import Live, TrainedVersion, finish_training, is_registered, live_version
from service.jobs.lifecycle import Claim, LeaseLost, cancel
from service.models.operations import promote
from service.tables import Job, Model, Promotion, Version
from tests.service.jobs.job_rows import (
    DIM,
    RecordingQueue,
    at_once,
    claimed,
    let_lease_expire,
    look,
    messages,
    new_job,
    new_model,
)

REQUEST = {"promote": "always", "publish": None}


def trained_by(mine: Claim, *, score: float = 0.9) -> TrainedVersion:
    return TrainedVersion(
        artifact_key=f"heads/{mine.job_id}/{mine.token}",
        strength=1.0,
        manifest={"dim": DIM, "query_only": False, "forgetting_budget": 0.1},
        scores={},
        verdict={"outcome": "better"},
        result={"seconds": 1},
        metric="ndcg",
        score=score,
    )


def finish(database: Database, mine: Claim, live: Live | None = None) -> bool:
    with database.write() as session:
        return finish_training(session, RecordingQueue(), mine, trained_by(mine), live)


def counts(database: Database) -> tuple[int, int]:
    """How many versions and promotions there are."""
    with database.read() as session:
        found = [session.scalar(select(func.count()).select_from(table)) for table in (Version, Promotion)]
    return int(found[0] or 0), int(found[1] or 0)


def test_what_a_training_made_is_registered_promoted_and_told_at_once(database: Database) -> None:
    model_id = new_model(database)
    mine = claimed(database, new_job(database, "train", model_id=model_id, request=REQUEST))

    assert finish(database, mine)

    job = look(database, mine.job_id)
    assert (job.state, messages(database, mine.job_id)[-1]) == ("succeeded", "succeeded")
    assert job.result is not None
    assert job.result["version"] == "faq@1"
    assert job.result["promoted"] is True
    with database.read() as session:
        assert session.get_one(Model, model_id).live_version == 1
        assert is_registered(session, trained_by(mine))


@pytest.mark.parametrize("promoted", ["always", "never"])
def test_whoever_finishes_again_because_no_answer_came_is_told_that_the_job_is_not_running(
    database: Database, promoted: str
) -> None:
    model_id = new_model(database)
    mine = claimed(database, new_job(database, "train", model_id=model_id, request={**REQUEST, "promote": promoted}))
    finish(database, mine)
    before = counts(database)

    with pytest.raises(LeaseLost):
        finish(database, mine)

    assert counts(database) == before
    with database.read() as session:  # by which the worker sees that it was done
        assert is_registered(session, trained_by(mine))


def test_a_cancelled_training_leaves_nothing(database: Database) -> None:
    mine = claimed(database, new_job(database, "train", model_id=new_model(database), request=REQUEST))
    with database.write() as session:
        cancel(session, session.get_one(Job, mine.job_id))
    before = counts(database)

    with pytest.raises(LeaseLost):
        finish(database, mine)

    assert counts(database) == before


def test_of_two_attempts_that_finish_at_once_only_the_one_that_has_the_job_registers(shared_database: Database) -> None:
    database = shared_database
    model_id = new_model(database)
    for _ in range(4):
        job_id = new_job(database, "train", model_id=model_id, request=REQUEST)
        old = claimed(database, job_id)
        let_lease_expire(database, job_id)
        new = claimed(database, job_id)
        before = counts(database)[0]

        def attempt(mine: Claim) -> bool:
            try:
                return finish(database, mine)
            except LeaseLost:
                return False

        assert at_once([lambda old=old: attempt(old), lambda new=new: attempt(new)]) == [False, True]  # type: ignore[misc]
        assert counts(database)[0] == before + 1


def test_jobs_of_one_model_that_finish_at_once_get_numbers_one_after_the_other(shared_database: Database) -> None:
    database = shared_database
    model_id = new_model(database)
    jobs = [claimed(database, new_job(database, "train", model_id=model_id, request=REQUEST)) for _ in range(8)]

    assert all(at_once([lambda mine=mine: finish(database, mine) for mine in jobs]))  # type: ignore[misc]

    with database.read() as session:
        numbers = session.scalars(select(Version.number).filter_by(model_id=model_id).order_by(Version.number)).all()
        lines = session.scalars(select(Promotion).filter_by(model_id=model_id)).all()
        model = session.get_one(Model, model_id)
    assert list(numbers) == list(range(9))
    # The history is one chain, from the first line to the one that is in force.
    by_id: dict[str | None, Any] = {line.id: line for line in lines}
    line, length = by_id[model.promotion_id], 1
    assert line.to_version == model.live_version
    while line.previous_id is not None:
        earlier = by_id[line.previous_id]
        assert line.from_version == earlier.to_version
        line, length = earlier, length + 1
    assert length == 9


def test_a_version_is_weighed_again_when_another_went_live_meanwhile(database: Database) -> None:
    model_id = new_model(database, versions=1)
    mine = claimed(database, new_job(database, "train", model_id=model_id, request={**REQUEST, "promote": "if_better"}))
    with database.read() as session:
        weighed = Live(live_version(session, model_id), 0.5)
    with database.write() as session:
        promote(session, RecordingQueue(), session.get_one(Model, model_id), 1, force=True)
    before = counts(database)

    assert not finish(database, mine, weighed)

    assert counts(database) == before
    assert look(database, mine.job_id).state == "running"
    with database.read() as session:
        weighed = Live(live_version(session, model_id), 0.95)
    assert finish(database, mine, weighed)
    result = look(database, mine.job_id).result
    assert result is not None
    assert result["promoted"] is False
    assert "faq@1, which is live, is better" in result["not_promoted_because"]
