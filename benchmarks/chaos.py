"""Jobs under seeded faults, with real processes: is every job done once, and is nothing left over?

    python -m benchmarks.chaos [--json] [--seed N] [--rounds K]

PostgreSQL, Valkey, a stand-in for Qdrant, an API and two workers. Each round asks for trainings, publishes and deletions, kills
workers or trainers at boundaries of commits (all that are found, one after the other, then random ones), and does one more fault
of `chaos_faults`. Then everything is left in peace, swept once, and looked at from outside (`chaos_invariants`). Exit code 1 when
something is not as it must be. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.chaos_facts import Facts, read_facts
from benchmarks.chaos_faults import Boundaries, Faults
from benchmarks.chaos_invariants import (
    Finding,
    check_documents,
    check_events,
    check_files,
    check_jobs,
    check_names,
    check_numbers,
    check_vectors,
    check_versions,
)
from benchmarks.chaos_load import COLLECTION, Load, all_texts
from benchmarks.chaos_processes import Installation, running
from benchmarks.chaos_rounds import Chaos
from benchmarks.chaos_takeovers import takeovers
from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder

_TAKEOVER_SECONDS = 15.0  # at most, where nothing is away
_OLD_SECONDS = 7 * 3600.0  # older than any upload that a sweep still waits for


def run(folder: Path, *, rounds: int, seed: int, encoder: Encoder) -> dict[str, Any]:
    """All rounds in an empty folder with a short path; gives the report. Progress goes to stderr."""
    started = time.monotonic()
    rng = random.Random(seed)
    _warm(folder / "cache", encoder, rounds)
    with running(folder) as installation:
        installation.start()
        boundaries = Boundaries(installation.journal, rng)
        chaos = Chaos(installation, Load(installation.http, rng), Faults(installation, rng), boundaries, rng)
        chaos.warm_up()
        _tell(f"everything runs, and one training was done, after {time.monotonic() - started:.1f} s")
        done = 0
        while done < rounds and chaos.has_room():
            done, began = done + 1, time.monotonic()
            happened = chaos.round(done)
            _tell(f"round {done}, {time.monotonic() - began:.1f} s: {happened}")
        if chaos.has_room():
            chaos.last_kill()
        settling = time.monotonic()
        chaos.settle()
        _tell(f"in peace: jobs ended after {time.monotonic() - settling:.1f} s")
        codes = installation.stop_workers()
        _make_old(installation.data / "files")
        installation.command("sweep", "--once")
        facts = read_facts(installation)
        (folder / "tables.json").write_text(json.dumps(facts.tables, default=str, indent=1))
        findings = [*_check(facts, chaos, encoder), *_check_exits(installation, codes, chaos)]
        return {
            **_report(facts, chaos, findings),
            "rounds": done,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
        }


def _warm(folder: Path, encoder: Encoder, rounds: int) -> None:
    """Fill the embedding cache, so that no process of the service has to load the encoder for its work."""
    cache = EmbeddingCache(folder)
    queries, documents = all_texts(rounds)
    cached = CachedEncoder(encoder, cache)
    cached.encode(queries, role="query")
    cached.encode(documents, role="document")
    cache.close()


def _make_old(files: Path) -> None:
    """An upload may take hours, so a sweep lets young files be that no row knows: turn the clock."""
    old = time.time() - _OLD_SECONDS
    for path in [*files.rglob("*"), files]:
        os.utime(path, (old, old))


def _check(facts: Facts, chaos: Chaos, encoder: Encoder) -> list[Finding]:
    load = chaos.load
    return [
        *check_jobs(facts, accepted=load.accepted, cancelled=load.cancelled),
        *check_events(facts),
        *check_versions(facts),
        *check_numbers(facts),
        *check_files(facts),
        *check_names(facts),
        *check_documents(facts, collection=COLLECTION, expected=load.expected()),
        *check_vectors(facts, collection=COLLECTION, base=lambda texts: encoder.encode(texts, role="document")),
    ]


def _check_exits(installation: Installation, codes: list[int], chaos: Chaos) -> list[Finding]:
    """Workers end when they are asked to or killed, or when they start without a database."""
    away = [outage for outage in chaos.faults.outages if outage.what == "database"]
    found = [
        Finding("wrong", f"{one.name} ended by itself with exit code {one.code}")
        for one in installation.exits
        if not any(outage.start <= one.time <= outage.end + 1.0 for outage in away)
    ]
    return found + [Finding("wrong", f"a worker that was asked to end did so with exit code {code}") for code in codes if code]


def _report(facts: Facts, chaos: Chaos, findings: list[Finding]) -> dict[str, Any]:
    kills = [*chaos.boundaries.kills(), *chaos.faults.kills]
    passed = chaos.boundaries.passed()
    found = takeovers(kills, passed, facts.tables["events"], chaos.faults.outages)
    seen, visited = chaos.boundaries.seen(), chaos.boundaries.visited()
    kinds = Counter(finding.kind for finding in findings)
    alone = [one.seconds for one in found if not one.disturbed]
    disturbed = [one.seconds for one in found if one.disturbed]
    for one in found:
        if one.seconds > _TAKEOVER_SECONDS:
            reason = "other things happened meanwhile" if one.disturbed else "too late"
            _tell(f"{one.job_id} was claimed again after {one.seconds:.1f} s: {reason}")
    return {
        "jobs": len(facts.tables["jobs"]),
        "states": dict(Counter(row["state"] for row in facts.tables["jobs"])),
        "versions": sum(row["job_id"] is not None for row in facts.tables["versions"]),
        "kills": len(kills),
        "kills_of": dict(Counter(kill.victim for kill in kills)),
        "faults": chaos.faults.counts,
        "boundaries": {
            kind: {"found": sum(one[0] == kind for one in seen), "visited": sum(one[0] == kind for one in visited)}
            for kind in sorted({one[0] for one in seen})
        },
        "not_visited": sorted(" ".join(one) for one in seen - visited),
        "lost": kinds["lost"],
        "doubled": kinds["doubled"],
        "orphans": kinds["orphan"],
        "wrong": kinds["wrong"],
        "findings": [f"{finding.kind}: {finding.said}" for finding in findings],
        "takeovers": len(alone),
        "takeover_seconds_max": round(max(alone, default=0.0), 2),
        "disturbed_takeovers": len(disturbed),
        "disturbed_takeover_seconds_max": round(max(disturbed, default=0.0), 2),
    }


def _tell(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


def main() -> None:
    """Run, and print what was found."""
    parser = argparse.ArgumentParser(description="Jobs under seeded faults, with real processes.")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    encoder = Encoder("all-MiniLM-L6-v2", dtype="float32", device="cpu")
    report = run(folder, rounds=given.rounds, seed=given.seed, encoder=encoder)
    for finding in report["findings"]:
        _tell(finding)
    is_bad = any(report[kind] for kind in ("lost", "doubled", "orphans", "wrong"))
    if is_bad or report["takeover_seconds_max"] > _TAKEOVER_SECONDS:
        _tell(f"logs and tables are in {folder}")
    else:
        shutil.rmtree(folder)
    if given.json:
        print(json.dumps(report))
    sys.exit(1 if is_bad else 0)


if __name__ == "__main__":
    main()
