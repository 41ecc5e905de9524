"""Celery's workers as threads of one process, on a real Valkey."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cli.celery_workers
from service.queue import CeleryQueue, make_celery
from service.resources import open_resources
from service.settings import Settings
from tests.service.jobs.job_rows import wait_until


def test_workers_in_one_process_have_an_event_loop_each_and_both_get_their_messages(
    tmp_path: Path, valkey: str, monkeypatch: Any
) -> None:
    got: list[tuple[str, str]] = []
    monkeypatch.setattr("workers.tasks.run_job", lambda _resources, job_id, _stopping, run: got.append((run, job_id)))
    loops = []

    class Watched(cli.celery_workers.WorkController):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            loops.append(self.hub)

    monkeypatch.setattr(cli.celery_workers, "WorkController", Watched)
    settings = Settings(data_dir=tmp_path, broker_url=valkey)
    queue = CeleryQueue(make_celery(valkey))
    resources = open_resources(settings, queue)
    runs = cast("Any", {"gpu": "by the gpu worker", "cpu": "by the cpu worker"})
    with cli.celery_workers.celery_workers(replace(resources), queue, threading.Event(), runs):
        for n in range(20):
            queue.send(f"job_{n}", "train" if n % 2 else "publish")
        wait_until(lambda: len(got) == 20)
    resources.close()

    assert len(set(map(id, loops))) == 2
    assert sorted(got) == sorted((f"by the {'gpu' if n % 2 else 'cpu'} worker", f"job_{n}") for n in range(20))
