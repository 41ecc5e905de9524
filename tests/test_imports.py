"""The arrows between the packages (DESIGN: cli -> workers -> service -> zerogate), read from the imports themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("zerogate", "service", "workers", "cli", "migrations")

# What each package must never import, by the first part of the module's name.
FORBIDDEN = {
    "zerogate": {"service", "workers", "cli", "migrations", "fastapi", "starlette", "sqlalchemy", "celery", "kombu", "redis",
                 "qdrant_client", "qdrant_edge"},
    "service": {"workers", "cli", "migrations", "torch", "sentence_transformers"},
    "workers": {"cli", "migrations", "fastapi", "starlette", "sqlalchemy", "qdrant_client", "qdrant_edge"},
    "migrations": {"workers", "cli", "zerogate"},
    "cli": set(),
}  # fmt: skip

# Each outside system has one place in service/ that imports its client.
OWNERS = {
    "celery": ("service/queue.py",),
    "kombu": ("service/queue.py",),
    "obstore": ("service/artifacts/",),
    "qdrant_client": ("service/vectors/",),
    "qdrant_edge": ("service/vectors/",),
    "torch": ("service/embeddings/loaded_models.py",),
}


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def arrows(package: str) -> Iterator[tuple[Path, str]]:
    for file in sorted((ROOT / package).rglob("*.py")):
        for name in imported(ast.parse(file.read_text())):
            yield file.relative_to(ROOT), name


def wrong_arrows(package: str) -> list[str]:
    return [
        f"{file} imports {name}"
        for file, name in arrows(package)
        if name.partition(".")[0] in FORBIDDEN[package] and not str(file).startswith(OWNERS.get(name.partition(".")[0], ("-",)))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_points_the_wrong_way(package: str) -> None:
    assert wrong_arrows(package) == []


def test_workers_import_neither_endpoints_nor_schemas() -> None:
    assert [f"{file} imports {name}" for file, name in arrows("workers") if name.endswith((".endpoints", ".schemas"))] == []


@pytest.mark.parametrize(("client", "places"), OWNERS.items())
def test_a_client_library_is_imported_in_one_place_of_the_service(client: str, places: tuple[str, ...]) -> None:
    users = {str(file) for file, name in arrows("service") if name.partition(".")[0] == client}
    assert users
    assert all(user.startswith(places) for user in users)


def test_operations_and_queries_know_nothing_of_http() -> None:
    below = [
        (file, name)
        for file, name in arrows("service")
        if file.name in {"operations.py", "queries.py", "lifecycle.py", "writing.py"}
    ]
    assert [f"{file} imports {name}" for file, name in below if name.partition(".")[0] in {"fastapi", "starlette"}] == []
    assert [f"{file} imports {name}" for file, name in below if name.endswith(".endpoints")] == []


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import torch.nn as nn\nfrom fastapi import FastAPI\ndef f():\n    from service.db import Database\n"
    assert list(imported(ast.parse(source))) == ["torch.nn", "fastapi", "service.db"]


@pytest.mark.parametrize("module", ["service.main", "workers.tasks", "cli.main", "zerogate"])
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'sentence_transformers', 'transformers'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
