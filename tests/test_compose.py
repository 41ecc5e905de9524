"""What can be known of docker-compose.yml without a Docker engine: its form, and that it agrees with the rest.

Its containers have not been started by these tests; its commands have, and the workers' health check.
"""

import importlib.resources
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.exceptions import TyperException

from cli.main import app
from service.queue import QUEUES
from service.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE_TEXT = (ROOT / "Dockerfile").read_text()
EXAMPLE_TEXT = (ROOT / ".env.example").read_text()

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|API_KEY|_AUTH$|requirepass$", re.IGNORECASE)
FROM_OUTSIDE = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")  # ${NAME:?message}: refuses to start without a value
USER_INFO = re.compile(r"://[^:@/]*:(?P<password>.+)@")

Compose = dict[str, Any]


@pytest.fixture
def compose() -> Compose:
    # By way of JSON: what anchors share must not change in two places when a test changes one.
    content: Compose = json.loads(json.dumps(yaml.safe_load(COMPOSE_TEXT)))
    return content


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    """The Compose specification's own schema, as check-jsonschema carries it."""
    schema = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return jsonschema.Draft202012Validator(json.loads(schema.read_text()))


def is_one_shot(compose: Compose, name: str) -> bool:
    conditions = [
        service["depends_on"][name]["condition"]
        for service in compose["services"].values()
        if name in service.get("depends_on", {})
    ]
    return "service_completed_successfully" in conditions and compose["services"][name].get("restart") == "no"


def has_health_check(service: Compose) -> bool:
    check = service.get("healthcheck", {})
    return bool(check.get("test")) and not check.get("disable")


def unchecked_services(compose: Compose) -> list[str]:
    """Services of which nobody would notice that they hang."""
    services = compose["services"]
    return [name for name in services if not has_health_check(services[name]) and not is_one_shot(compose, name)]


def unmet_dependencies(compose: Compose) -> list[tuple[str, str]]:
    """Dependencies on a service that is missing, or whose awaited state never comes."""
    services = compose["services"]
    unmet = []
    for name, service in services.items():
        for other, wish in service.get("depends_on", {}).items():
            reachable = {
                "service_started": other in services,
                "service_healthy": has_health_check(services.get(other, {})),
                "service_completed_successfully": other in services and is_one_shot(compose, other),
            }
            if not reachable[wish["condition"]]:
                unmet.append((name, other))
    return unmet


def mounted(compose: Compose, kind: str) -> set[str]:
    """Names of the `volumes` or `networks` that services use."""
    return {entry.split(":")[0] for service in compose["services"].values() for entry in service.get(kind, [])}


def literal_secrets(compose: Compose) -> list[str]:
    """Places where a secret is written down, or has a default, instead of coming from the environment."""
    found = []
    for name, service in compose["services"].items():
        command = service.get("command", [])
        values = [*service.get("environment", {}).items(), *itertools.pairwise(command)]
        for key, value in values:
            inside = USER_INFO.search(str(value))
            secrets = [str(value)] if SECRET_NAME.search(key) else [inside["password"]] if inside else []
            found += [f"{name}: {key}" for secret in secrets if not FROM_OUTSIDE.fullmatch(secret)]
    return found


def filled_in(text: str) -> str:
    """The text with the defaults of its variables: ${NAME:-default}."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def our_commands(compose: Compose) -> dict[str, list[str]]:
    """What the services of our own image run, by service, with the defaults of variables."""
    services = compose["services"]
    ours = {name: service for name, service in services.items() if service["image"].startswith("zerogate:")}
    return {name: [filled_in(word) for word in service["command"]] for name, service in ours.items()}


def consumed_queues(compose: Compose) -> dict[str, list[str]]:
    """The queues that each worker takes jobs from."""
    commands = our_commands(compose)
    return {name: words[words.index("--queues") + 1].split(",") for name, words in commands.items() if words[0] == "worker"}


def refused_commands(compose: Compose) -> list[str]:
    """Services whose command the `zerogate` command line would refuse."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    refused = []
    for service, (name, *rest) in our_commands(compose).items():
        try:
            known[name].make_context(name, rest)  # reads the arguments, and runs nothing
        except (KeyError, TyperException):
            refused.append(service)
    return refused


def unknown_settings(text: str) -> set[str]:
    """ZEROGATE_ variables that the service would silently ignore; A__B sets the part B of the setting A."""
    named = {name: name.removeprefix("ZEROGATE_").split("__")[0] for name in re.findall(r"\bZEROGATE_\w+", text)}
    return {name for name, field in named.items() if field.lower() not in Settings.model_fields}


def test_the_file_is_valid_compose(compose: Compose, validator: jsonschema.protocols.Validator) -> None:
    assert [error.message for error in validator.iter_errors(compose)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version2", "3"),
        ("services.api.helthcheck", {"test": ["CMD", "true"]}),
        ("services.api.healthcheck.interval", ["10s"]),
        ("services.api.depends_on.redis.condition", "service_ready"),
        ("services.api.ports", {"8000": "8000"}),
        ("services.worker-gpu.deploy.resources.reservations.devices", [{"driver": "nvidia", "count": 1}]),
        ("volumes.files", "a text"),
    ],
)
def test_a_broken_copy_is_refused(path: str, value: object, compose: Compose, validator: jsonschema.protocols.Validator) -> None:
    *parents, last = path.split(".")
    place = compose
    for key in parents:
        place = place[key]
    place[last] = value

    assert not validator.is_valid(compose)


def test_every_service_is_checked_or_runs_once(compose: Compose) -> None:
    assert unchecked_services(compose) == []

    compose["services"]["redis"]["healthcheck"] = {"disable": True}
    compose["services"]["migrate"]["restart"] = "always"
    assert unchecked_services(compose) == ["migrate", "redis"]


def test_every_dependency_can_be_met(compose: Compose) -> None:
    assert unmet_dependencies(compose) == []

    del compose["services"]["qdrant"]["healthcheck"]
    assert ("api", "qdrant") in unmet_dependencies(compose)
    compose["services"]["migrate"]["restart"] = "always"
    assert ("worker-cpu", "migrate") in unmet_dependencies(compose)


@pytest.mark.parametrize("kind", ["volumes", "networks"])
def test_what_is_used_is_declared_and_what_is_declared_is_used(kind: str, compose: Compose) -> None:
    assert mounted(compose, kind) - {"default"} == set(compose[kind])

    compose["services"]["redis"][kind] = ["elsewhere:/data"]
    assert "elsewhere" in mounted(compose, kind) - set(compose[kind])


def test_everything_long_running_restarts_and_may_finish_its_work(compose: Compose) -> None:
    for name, service in compose["services"].items():
        if not is_one_shot(compose, name):
            assert service["restart"] == "unless-stopped", name
            assert service["stop_grace_period"], name


def test_no_secret_is_written_down(compose: Compose) -> None:
    assert literal_secrets(compose) == []


@pytest.mark.parametrize(
    ("service", "changes"),
    [
        ("postgres", {"environment": {"POSTGRES_PASSWORD": "postgres"}}),
        ("postgres", {"environment": {"POSTGRES_PASSWORD": "${POSTGRES_PASSWORD:-postgres}"}}),
        ("postgres", {"environment": {"POSTGRES_PASSWORD": "${POSTGRES_PASSWORD}"}}),
        ("qdrant", {"environment": {"QDRANT__SERVICE__API_KEY": "key"}}),
        ("api", {"environment": {"ZEROGATE_BROKER_URL": "redis://:secret@redis:6379/0"}}),
        ("redis", {"command": ["redis-server", "--requirepass", "secret"]}),
    ],
)
def test_a_written_secret_is_found(service: str, changes: Compose, compose: Compose) -> None:
    compose["services"][service].update(changes)
    assert [place.split(":")[0] for place in literal_secrets(compose)] == [service]


def test_the_example_names_every_variable_and_no_secret(compose: Compose) -> None:
    example = dict(line.split("=", 1) for line in EXAMPLE_TEXT.splitlines() if line and not line.startswith("#"))
    required = set(re.findall(r"\$\{([A-Z_]+):\?", COMPOSE_TEXT))
    optional = set(re.findall(r"\$\{([A-Z_]+):-", COMPOSE_TEXT))

    assert set(example) == required | optional
    assert {name for name in required if example[name]} == set()


def test_every_setting_exists() -> None:
    assert Settings.model_config["env_prefix"] == "ZEROGATE_"
    assert unknown_settings("ZEROGATE_NO_SUCH_THING: 1") == {"ZEROGATE_NO_SUCH_THING"}

    assert unknown_settings(COMPOSE_TEXT) == set()
    assert unknown_settings(DOCKERFILE_TEXT) == set()
    assert unknown_settings(EXAMPLE_TEXT) == set()


def test_every_command_is_one_that_zerogate_has(compose: Compose) -> None:
    assert refused_commands(compose) == []

    compose["services"]["api"]["command"] = ["apis"]
    compose["services"]["migrate"]["command"] = ["migrate", "--upwards"]
    assert refused_commands(compose) == ["migrate", "api"]


def test_every_queue_has_a_worker_and_every_worker_a_queue(compose: Compose) -> None:
    taken = consumed_queues(compose)
    assert {queue for queues in taken.values() for queue in queues} == set(QUEUES.values())

    for name, queues in taken.items():
        assert f'"{queues[0]}@$$HOSTNAME"' in compose["services"][name]["healthcheck"]["test"][1]


def test_the_schema_is_brought_up_to_date_before_anything_needs_it(compose: Compose) -> None:
    for name in our_commands(compose).keys() - {"migrate"}:
        wish = compose["services"][name]["depends_on"]["migrate"]
        assert wish == {"condition": "service_completed_successfully"}, name


def test_a_worker_is_healthy_while_it_answers_and_not_when_it_is_gone(compose: Compose, tmp_path: Path, valkey: str) -> None:
    # Neither database nor Qdrant is asked by a worker that has nothing to do; SQLite serves where no API runs beside it.
    environment = {
        **os.environ,
        "ZEROGATE_DATA_DIR": str(tmp_path),
        "ZEROGATE_BROKER_URL": valkey,
        "ZEROGATE_QDRANT_URL": "http://127.0.0.1:9",
        "HOSTNAME": socket.gethostname(),  # as Docker sets it
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    test, script = compose["services"]["worker-gpu"]["healthcheck"]["test"]
    assert test == "CMD-SHELL"
    check = ["/bin/sh", "-c", script.replace("$$", "$")]

    def is_healthy() -> bool:
        return subprocess.run(check, env=environment, cwd=tmp_path, capture_output=True, timeout=20, check=False).returncode == 0

    with running_worker(environment, our_commands(compose)["worker-gpu"]) as worker:
        deadline = time.monotonic() + 40
        while not is_healthy():
            assert worker.poll() is None
            assert time.monotonic() < deadline
    assert not is_healthy()


@contextmanager
def running_worker(environment: dict[str, str], words: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    zerogate = [sys.executable, "-c", "from cli.main import main; main()"]
    subprocess.run([*zerogate, "migrate"], env=environment, cwd=ROOT, check=True, capture_output=True, timeout=60)
    worker = subprocess.Popen([*zerogate, *words], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield worker
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
    assert worker.returncode == 0


def test_processes_in_different_containers_never_share_an_embedding_cache(compose: Compose) -> None:
    # LMDB tells processes apart by their id, and these repeat from container to container.
    services = compose["services"]
    folders = [services[name]["environment"]["ZEROGATE_CACHE_DIR"] for name in ("api", "worker-gpu", "worker-cpu")]
    assert len(set(folders)) == len(folders)


def test_the_image_and_the_compose_file_check_the_api_in_the_same_way(compose: Compose) -> None:
    check = re.search(r"HEALTHCHECK .*\\\n +CMD (\[.*\])", DOCKERFILE_TEXT)
    assert check
    assert ["CMD", *json.loads(check[1])] == compose["services"]["api"]["healthcheck"]["test"]


def test_a_folder_that_a_volume_covers_belongs_to_the_user_of_the_image(compose: Compose) -> None:
    made = re.search(r"install -d -o zerogate -g zerogate (.*)", DOCKERFILE_TEXT)
    assert made
    assert {volume.split(":")[1] for volume in compose["services"]["api"]["volumes"]} <= set(made[1].split())
