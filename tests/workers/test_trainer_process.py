"""A job in a process of its own, with small stand-ins for the trainer: how it ends, and what becomes of the job."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.db import Database
from service.jobs.lifecycle import MAX_ATTEMPTS, Claim, LeaseLost, cancel, succeed
from service.resources import Resources
from service.tables import Job
from tests.service.jobs.job_rows import claimed, look, messages, new_job, set_columns, wait_until
from workers import supervision, trainer_process
from workers.supervision import Supervision
from workers.trainer_process import TrainerProcess


@pytest.fixture
def mine(database: Database) -> Claim:
    return claimed(database, new_job(database, "train"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "_GRACE_SECONDS", 1.0)
    monkeypatch.setattr(trainer_process, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(supervision, "_RENEW_SECONDS", 0.2)


def trainer(code: str, **environment: str) -> TrainerProcess:
    """A trainer that runs this program."""
    return TrainerProcess([sys.executable, "-c", code], environment)


def run(resources: Resources, mine: Claim, process: TrainerProcess, stopping: threading.Event | None = None) -> None:
    with Supervision(resources.database, mine, stopping or threading.Event()) as supervise:
        process(resources, supervise)


# It tells its pid, and waits.
WAITS = "import os, sys, time; open(os.environ['PID'], 'w').write(str(os.getpid()))\nwhile True: time.sleep(0.01)"


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    """Where a process writes its pid; it is killed in the end, should it still be there."""
    file = tmp_path / "pid"
    yield file
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(pid_in(file), signal.SIGKILL)


def pid_in(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


def is_gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_a_trainer_that_settled_the_job_is_believed(resources: Resources, mine: Claim, tmp_path: Path) -> None:
    file = tmp_path / "told"
    code = "import json, os, sys; told = [os.environ['EXTRA'], os.getppid(), *sys.argv[1:]]\n"
    code += "open(os.environ['TOLD'], 'w').write(json.dumps(told))"

    run(resources, mine, trainer(code, TOLD=str(file), EXTRA="more"))

    assert look(resources.database, mine.job_id).state == "running"  # this one settled nothing: the row is not touched
    own = str(os.getpid())
    assert json.loads(file.read_text()) == ["more", os.getpid(), own, mine.job_id, "train", str(mine.token), "1"]


ENDS = {
    "exit code": ("raise SystemExit(3)", "the training process ended with exit code 3; the worker's log has more"),
    "SIGKILL": (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "the training process was ended by SIGKILL; was there too little memory?",
    ),
    "SIGSEGV": (
        "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), signal.SIGSEGV)",
        "the training process was ended by SIGSEGV",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_trainer_that_crashes_costs_an_attempt_and_its_end_is_told(resources: Resources, mine: Claim, end: str) -> None:
    code, failure = ENDS[end]

    run(resources, mine, trainer(code))

    job = look(resources.database, mine.job_id)
    assert (job.state, job.attempts, job.last_failure) == ("queued", 1, failure)
    assert messages(resources.database, mine.job_id)[-1] == f"put back: {failure}"


def test_the_last_attempt_that_crashes_fails_the_job(resources: Resources) -> None:
    job_id = new_job(resources.database, "train", attempts=MAX_ATTEMPTS - 1)
    mine = claimed(resources.database, job_id)

    run(resources, mine, trainer("raise SystemExit(1)"))

    job = look(resources.database, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert "in the last, the training process ended with exit code 1" in job.error["message"]


def stopped_after(pid_file: Path) -> threading.Event:
    """An event that is set as soon as the trainer has told its pid."""
    stopping = threading.Event()

    def stop() -> None:
        pid_in(pid_file)
        stopping.set()

    threading.Thread(target=stop).start()
    return stopping


def test_a_worker_that_is_being_stopped_ends_its_trainer_and_puts_the_job_back(
    resources: Resources, mine: Claim, pid_file: Path
) -> None:
    started = time.monotonic()

    run(resources, mine, trainer(WAITS, PID=str(pid_file)), stopped_after(pid_file))

    assert is_gone(pid_in(pid_file))
    assert time.monotonic() - started < 8
    job = look(resources.database, mine.job_id)
    assert (job.state, job.attempts, job.last_failure) == ("queued", 0, None)


def test_a_trainer_that_puts_the_job_back_itself_when_it_is_stopped_is_believed(
    resources: Resources, mine: Claim, pid_file: Path
) -> None:
    code = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n" + WAITS

    run(resources, mine, trainer(code, PID=str(pid_file)), stopped_after(pid_file))

    assert look(resources.database, mine.job_id).state == "running"  # this one did not; the worker leaves it to the trainer


def test_a_trainer_that_does_not_listen_is_killed_after_the_grace(resources: Resources, mine: Claim, pid_file: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS
    started = time.monotonic()

    run(resources, mine, trainer(code, PID=str(pid_file)), stopped_after(pid_file))

    assert time.monotonic() - started >= 1.0
    assert is_gone(pid_in(pid_file))
    job = look(resources.database, mine.job_id)
    assert (job.state, job.attempts) == ("queued", 0)


@pytest.mark.parametrize("end", ["exits", "is stopped"])
def test_what_a_trainer_started_ends_with_it(resources: Resources, mine: Claim, pid_file: Path, end: str) -> None:
    child = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS
    wait = "" if end == "exits" else "time.sleep(600)"
    code = (
        f"import os, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not (os.path.exists(os.environ['PID']) and open(os.environ['PID']).read()): time.sleep(0.01)\n{wait}"
    )
    stopping = threading.Event() if end == "exits" else stopped_after(pid_file)

    run(resources, mine, trainer(code, PID=str(pid_file)), stopping)

    wait_until(lambda: is_gone(pid_in(pid_file)))


@pytest.mark.parametrize("loss", ["cancel", "takeover"])
def test_a_trainer_whose_job_is_lost_is_ended_and_the_row_is_left_alone(
    resources: Resources, mine: Claim, pid_file: Path, loss: str
) -> None:
    def lose() -> None:
        pid_in(pid_file)
        if loss == "cancel":
            with resources.database.write() as session:
                cancel(session, session.get_one(Job, mine.job_id))
        else:
            set_columns(resources.database, mine.job_id, token=mine.token + 1)

    losing = threading.Thread(target=lose)
    losing.start()

    with pytest.raises(LeaseLost):
        run(resources, mine, trainer(WAITS, PID=str(pid_file)))

    losing.join()
    assert is_gone(pid_in(pid_file))
    job = look(resources.database, mine.job_id)
    assert (job.state, job.token) == ("cancelled" if loss == "cancel" else "running", mine.token + 1)


def test_a_trainer_that_has_just_settled_the_job_itself_is_no_loss(resources: Resources, mine: Claim, pid_file: Path) -> None:
    # It ends in order when it is asked to, as ours does.
    settles = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
    process = trainer(f"import sys\n{settles}\n{WAITS}", PID=str(pid_file))

    def settle() -> None:
        wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
        with resources.database.write() as session:
            succeed(session, mine, {})

    settling = threading.Thread(target=settle)
    settling.start()
    run(resources, mine, process)  # does not raise LeaseLost
    settling.join()

    assert look(resources.database, mine.job_id).state == "succeeded"


def test_a_trainer_dies_with_a_worker_that_is_killed(pid_file: Path) -> None:
    trains = "from workers.trainer_process import claim_of\nclaim_of(sys.argv[1:])\n"
    trains = "import os, sys, time\n" + trains + WAITS
    started = f"[sys.executable, '-c', {trains!r}, str(os.getpid()), 'job_1', 'train', '1', '1']"
    worker = f"import os, subprocess, sys; subprocess.Popen({started}).wait()"
    process = subprocess.Popen([sys.executable, "-c", worker], env={**os.environ, "PID": str(pid_file)}, start_new_session=True)
    pid = wait_for_pid(pid_file, process)

    process.kill()
    process.wait()

    wait_until(lambda: is_gone(pid))


def wait_for_pid(file: Path, process: "subprocess.Popen[bytes]") -> int:
    wait_until(lambda: process.poll() is not None or (file.exists() and file.read_text() != ""), seconds=60)
    assert process.poll() is None
    return pid_in(file)


def test_a_trainer_whose_worker_is_gone_before_it_begins_ends_at_once() -> None:
    code = "import os, sys; from workers.trainer_process import claim_of; claim_of(sys.argv[1:]); print('went on')"
    arguments = ["1", "job_1", "train", "1", "1"]  # process 1 did not start it
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the worker that started this trainer is gone" in ended.stderr


def test_a_claim_comes_through_the_arguments_as_it_was() -> None:
    code = "import sys; from workers.trainer_process import claim_of; print(claim_of(sys.argv[1:]))"
    arguments = [str(os.getpid()), "job_1", "train", "7", "3"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == str(Claim("job_1", "train", 7, 3))
