"""docs/operations.md says what is true: its settings, metrics, times and commands are held against the code."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from alembic.script import ScriptDirectory
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from pydantic_core import to_json
from typer.exceptions import TyperException

from cli.main import app
from cli.migrate import alembic_config
from service.jobs.lifecycle import LEASE, MAX_ATTEMPTS
from service.settings import EncoderSpec, Settings
from tests.conftest import Client
from workers.sweep import EVERY_SECONDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()

# Up to what ends a command for a shell, or for Markdown.
COMMAND = re.compile(r"(?:^|[\s`])(zerogate (?:api|worker|sweep|migrate|serve|demo|reproduce)\b[^`#|\n]*)", re.MULTILINE)
NAME_IN_QUERY = re.compile(r"\b(?:zerogate|process)_\w+")


def table(header: str, text: str) -> list[list[str]]:
    """The cells of the table with this header, row by row."""
    body = text.split(f"\n{header}\n", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.splitlines()[1:]]


def shown(default: Any) -> str:
    """A setting's default as the table writes it: what one would set the variable to."""
    match default:
        case None:
            return "none"
        case tuple():
            encoders = TypeAdapter(tuple[EncoderSpec, ...]).dump_python(default, exclude_none=True)
            return f"`{to_json(encoders).decode()}`"
        case _:
            return f"`{default}`"


def settings_in(text: str) -> dict[str, str]:
    """Defaults by variable."""
    return {row[0].strip("`"): row[1] for row in table("| variable | default | unit, meaning |", text)}


def refused_commands(text: str) -> list[str]:
    """The `zerogate ...` commands of the text that the command line would refuse."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    refused = []
    for found in COMMAND.findall(text):
        _, name, *rest = found.split()
        try:
            known[name].make_context(name, rest)  # reads the arguments, and runs nothing
        except TyperException:
            refused.append(found.strip())
    return refused


def test_the_table_of_settings_names_every_setting_with_its_default() -> None:
    expected = {f"ZEROGATE_{name.upper()}": shown(field.default) for name, field in Settings.model_fields.items()}
    assert settings_in(TEXT) == expected


def test_a_default_as_the_table_writes_it_is_one_that_the_settings_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ZEROGATE_")]:
        monkeypatch.delenv(name)
    plain = Settings()
    for variable, default in settings_in(TEXT).items():
        if default != "none":
            monkeypatch.setenv(variable, default.strip("`"))
    assert Settings() == plain


def test_no_other_variable_of_ours_is_named() -> None:
    assert set(re.findall(r"\bZEROGATE_\w+", TEXT)) == set(settings_in(TEXT))


def test_every_command_can_be_typed_as_it_stands() -> None:
    below_the_drawing = TEXT[TEXT.index("## Starting") :]
    assert len(COMMAND.findall(below_the_drawing)) >= 6
    assert refused_commands(below_the_drawing) == []
    assert refused_commands("`zerogate migrate --down 3`, then zerogate api --workers 4") == [
        "zerogate migrate --down 3",
        "zerogate api --workers 4",
    ]


def test_the_revision_to_go_down_to_is_one() -> None:
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    named = re.findall(r"--to (\w+)", TEXT) + re.findall(r"[Rr]evision (\d{4})", TEXT)
    assert named
    assert set(named) <= known


def test_the_times_are_those_of_the_code() -> None:
    times = dict(table("| what | how long |", TEXT))
    lease = LEASE.total_seconds()
    assert times["a worker's lease on its job"] == f"{lease:g} s, renewed every {lease / 3:g} s"
    assert times["the sweep"].startswith(f"every {EVERY_SECONDS:g} s")
    assert lease + EVERY_SECONDS < 15  # "somebody else's within 15 s"
    assert MAX_ATTEMPTS == 5  # "Five attempts"


@pytest.fixture(scope="module")
def families(client: Client) -> Mapping[str, Any]:
    """What a running service tells at /metrics, after some requests and a job that has ended."""
    client.upload([{"anchor": "a question", "positive": "an answer"}], kind="pairs", name="operations")
    job = client.post("/v1/jobs", {"model": "operations", "dataset": "operations"})
    client.wait(job["id"])
    found = text_string_to_metric_families(client.http.get("/metrics").text)
    # A gauge beside every counter and histogram, of the time when it was made: the client library's own.
    return {family.name: family for family in found if not family.name.endswith("_created")}


def test_the_table_of_metrics_is_what_a_running_service_tells(families: Mapping[str, Any]) -> None:
    told = {}
    for family in families.values():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told[name] = (family.type, labels)
    documented = {
        name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in table("| metric | type | labels | meaning |", TEXT)
    }
    assert documented == told


@pytest.mark.parametrize("header", ["| panel | PromQL |", "| alert | PromQL | for |"])
def test_the_queries_ask_for_what_there_is(header: str, families: Mapping[str, Any]) -> None:
    samples = {sample.name for family in families.values() for sample in family.samples}
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    for row in table(header, TEXT):
        query = row[1].strip("`")
        assert set(NAME_IN_QUERY.findall(query)), query
        assert set(NAME_IN_QUERY.findall(query)) <= samples, query
        grouped = re.findall(r"by \(([\w, ]+)\)", query)
        selected = re.findall(r"(\w+)=~?\"", query)
        assert {name.strip() for one in grouped for name in one.split(",")} | set(selected) <= labels, query
        assert query.count("(") == query.count(")"), query


def test_the_order_of_a_backup_is_the_order_of_its_commands() -> None:
    block = TEXT.split("```sh\n# backup", 1)[1].split("```", 1)[0]
    assert block.index("pg_dump") < block.index("tar ")
