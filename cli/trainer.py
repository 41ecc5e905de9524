"""`python -m cli.trainer PID JOB KIND TOKEN ATTEMPTS`: one claimed job in a process of its own, started by a worker."""

import sys

from cli.production import run_claimed
from service.logging import configure_logging
from service.settings import Settings

if __name__ == "__main__":
    configure_logging(json=not sys.stderr.isatty())
    run_claimed(Settings(), sys.argv[1:])
