"""More writing requests at once than the service has threads: each waits for its turn, and gets it."""

import httpx

from tests.conftest import Client
from tests.service.jobs.job_rows import at_once

REQUESTS = 80  # endpoints run in 40 threads


def test_a_burst_of_writes_is_answered_and_not_stuck(client: Client) -> None:
    def cancel_nothing() -> tuple[int, str]:
        answer = httpx.post(f"{client.http.base_url}/v1/jobs/job_of_nobody/cancel", timeout=60.0)
        return answer.status_code, answer.json()["error"]["code"]

    # Not 503: that was the answer when waiting writers held all threads, and the one whose turn it was got none to commit in.
    assert at_once([cancel_nothing] * REQUESTS) == [(404, "job_not_found")] * REQUESTS
