"""How the process logs: JSON lines for machines, columns for a terminal; structlog and the standard library through one handler.

An event is a constant `noun.verb`, data are keywords, ids instead of objects, and never a text of a user or a vector. Tracebacks
follow that rule as well: no local variables, and of an exception's message the first line only, because the lines below are where
pydantic puts the value it refused and SQLAlchemy the statement's parameters.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

import structlog
from structlog.typing import ExcInfo, Processor

_QUIET = (
    "alembic",
    "filelock",
    "fsspec",
    "httpcore",
    "httpcore2",
    "httpx",  # one line for each request to Qdrant
    "httpx2",
    "huggingface_hub",
    "qdrant_client",
    "sentence_transformers",
    "sqlalchemy",  # its INFO shows statements with their parameters
    "transformers",
    "urllib3",
)
_LONGEST_MESSAGE = 500


def configure_logging(*, json: bool) -> None:
    """Send everything from INFO on to stderr. Call it once, before uvicorn and Celery start; they get `log_config=None`.

    Uvicorn's access log is off: it shows query strings. `service/http/middleware.py` writes ours.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(json=json)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        _only_propagate(logging.getLogger(name), propagate=True)
    _only_propagate(logging.getLogger("uvicorn.access"), propagate=False)


def _renderers(*, json: bool) -> list[Processor]:
    if json:
        return [structlog.processors.ExceptionRenderer(_traceback_text), structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)]


def _only_propagate(logger: logging.Logger, *, propagate: bool) -> None:
    logger.handlers = []
    logger.propagate = propagate


def _write_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    stream.write("\n" + _traceback_text(exc_info))


def _traceback_text(exc_info: ExcInfo) -> str:
    """As Python prints it, with the first line of each exception's message."""
    return "".join(_traceback_lines(exc_info[1])).rstrip()


def _traceback_lines(error: BaseException, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    seen |= {id(error)}
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in seen:  # an error may be its own cause
        yield from _traceback_lines(earlier, seen)
        yield "\nwhich led to:\n\n"
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _traceback_lines(member, seen)
            yield "\nwhich is in the group:\n\n"
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(error.__traceback__)
    first_line = str(error).partition("\n")[0][:_LONGEST_MESSAGE]
    module = type(error).__module__
    name = type(error).__qualname__ if module == "builtins" else f"{module}.{type(error).__qualname__}"
    yield f"{name}: {first_line}\n"
