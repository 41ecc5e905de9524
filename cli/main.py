"""The `zerogate` command."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from service.errors import ServiceError
from service.settings import Settings
from zerogate.errors import ZerogateError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fine-tune text embeddings without breaking them.")

DataDir = Annotated[Path | None, typer.Option(help="Folder for everything that is kept. (default: ./zerogate-data)")]


@app.command()
def serve(
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. (default: 8000)")] = None,
) -> None:
    """Start the whole service in this process: API, workers, database and vectors. Nothing else is needed."""
    from cli.serve import serve as run  # after the options are read: `--help` should not wait for FastAPI and Celery
    from service.logging import configure_logging

    configure_logging(json=not sys.stderr.isatty())
    settings = _settings(data_dir=data_dir, host=host, port=port)
    Console(stderr=True).print(
        f"Zerogate keeps its data in [bold]{settings.data_dir.absolute()}[/] and listens on "
        f"[bold]http://{settings.host}:{settings.port}[/] (API docs at /docs). Stop it with Ctrl-C."
    )
    run(settings)


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. (default: 8000)")] = None,
) -> None:
    """Start the API of the production profile. PostgreSQL, Redis and Qdrant are named by ZEROGATE_... (docs/operations.md)."""
    from cli.production import api as run
    from service.logging import configure_logging

    configure_logging(json=not sys.stderr.isatty())
    run(_settings(host=host, port=port))


@app.command()
def worker(
    queues: Annotated[str, typer.Option(help="gpu (trainings), cpu (publishing and re-heading), or gpu,cpu.")] = "gpu,cpu",
) -> None:
    """Start a worker of the production profile: one job a queue at a time. It sweeps as well."""
    from cli.production import work
    from service.logging import configure_logging

    configure_logging(json=not sys.stderr.isatty())
    work(_settings(), queues.split(","))


@app.command()
def sweep(once: Annotated[bool, typer.Option("--once", help="Sweep one time, and end.")] = False) -> None:
    """Send lost messages again, give dead workers' jobs away, remove what is left over. Every worker does that too."""
    from cli.production import sweep_alone
    from service.logging import configure_logging

    configure_logging(json=not sys.stderr.isatty())
    sweep_alone(_settings(), once=once)


@app.command()
def demo(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's data in this new folder, to serve it afterwards.")] = None,
) -> None:
    """Train a head on the Python standard library's docstrings, and look at what it changes. Takes a minute or two."""
    from cli.demo import run_demo

    run_demo(as_json=json, keep=keep)


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(help="faq@3, or faq for the live version.")], data_dir: DataDir = None
) -> None:
    """Make a version's head again from its dataset and the cached vectors: the same bytes? The service must be stopped."""
    from cli.reproduce import reproduce as run

    if not run(_settings(data_dir=data_dir), version):
        sys.exit(1)


@app.command()
def migrate(
    data_dir: DataDir = None,
    to: Annotated[
        str, typer.Option(help="Revision to go to, up or down; down drops what newer ones added. (default: the newest)")
    ] = "head",
) -> None:
    """Bring the database's schema to the newest revision."""
    from cli.migrate import migrate as run
    from service.db import make_engine

    settings = _settings(data_dir=data_dir)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    typer.echo(str(run(make_engine(settings.sql_url), revision=to)))


def main() -> None:
    """Run the command; an error that a person can mend is told in one line, without a traceback."""
    try:
        app()
    except (ServiceError, ZerogateError) as error:
        _tell(str(error))
    except ValidationError as error:  # of the settings: from the environment or the command line
        _tell("; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()))


def _tell(problem: str) -> None:
    Console(stderr=True).print(f"[red]zerogate:[/] {escape(problem)}", soft_wrap=True)
    sys.exit(1)


def _settings(**given: object) -> Settings:
    """The environment's settings, and over them what the command line gives."""
    return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
