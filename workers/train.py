"""The way of one training job: encode, search and fit, weigh against the encoder, store, register."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zerogate
from service.artifacts import Workspace
from service.jobs.finishing import Live, TrainedVersion, finish_training, is_registered, live_version
from service.jobs.lifecycle import Claim, LeaseLost, add_event, held
from service.resources import Resources
from workers.supervision import Supervision
from workers.train_inputs import Encoded, Inputs, encode, read_guard, read_inputs, read_task
from workers.train_report import manifest_facts, result_of, scores_of, sentence_of, verdict_of
from workers.tune import tune, tuning_examples
from workers.workspace import saving
from zerogate.folded import FoldedHead
from zerogate.guard import Guard
from zerogate.head_files import DumpedHead
from zerogate.head_shapes import HeadShape
from zerogate.plan import Way
from zerogate.sides import evaluate_tuned
from zerogate.stacked import StackedHead
from zerogate.tasks import Task

if TYPE_CHECKING:
    from zerogate.learning import Judged, Learned  # loads torch, which a worker that only publishes never needs


@dataclass(frozen=True)
class _Outcome:
    learned: "Learned"
    judged: "Judged"
    evaluate_seconds: float


def run_training(resources: Resources, supervise: Supervision) -> None:
    """Train the next version and register it, with what follows from it, in one transaction.

    What was made is not thrown away because an outside system does not answer: reading, storing and registering wait for it.
    """
    mine = supervise.claim
    inputs = supervise.patiently(lambda: read_inputs(resources.database, mine.job_id))
    supervise("read the dataset", 0, 1)
    task, guard = supervise.patiently(lambda: (read_task(resources.artifacts, inputs), read_guard(resources.artifacts, inputs)))
    if inputs.tuning is not None:
        tuning_examples(task)  # raises for what cannot be tuned to: now, and not after everything else
    supervise("load the encoder", 0, 1)
    encoded = encode(resources.models.encoder(inputs.encoder), task, guard, supervise)
    _tell(resources, supervise, f"encoded {encoded.texts} texts ({encoded.encoded} of them anew) in {encoded.seconds:.1f} s")
    work = supervise.patiently(lambda: resources.artifacts.workspace(mine.job_id, mine.token))
    outcome = _learn(resources, inputs, task, guard, encoded, work, supervise)
    artifact_key = f"heads/{mine.job_id}/{mine.token}"
    trained = supervise.patiently(lambda: _store(resources, inputs, task, guard, encoded, outcome, artifact_key))
    if inputs.tuning is not None:
        tuned = tune(resources, inputs, task, guard, encoded, outcome.learned, work, supervise)
        said = f"tuned the encoder in {tuned.result['tune_seconds']:.1f} s"
        _tell(resources, supervise, said, {"losses": tuned.manifest["losses"]})
        trained = replace(trained, tuned=tuned)
    supervise.patiently(lambda: _register(resources, mine, inputs, trained, task, encoded))


def _learn(
    resources: Resources,
    inputs: Inputs,
    task: Task,
    guard: Guard,
    encoded: Encoded,
    work: Workspace,
    supervise: Supervision,
) -> _Outcome:
    """Search, fit, and weigh the version against the encoder on the same test and the same guard.

    What an earlier attempt finished stands in `work`, and is not done again.
    """
    learned = zerogate.learn(
        task,
        encoded.task,
        guard,
        encoded.guard,
        recipe=inputs.recipe,
        budget=inputs.budget,
        device=resources.models.encoder(inputs.encoder).encoder.device,
        work=work.folder / "learn",
        on_step=saving(work, supervise),
    )
    _tell_learned(resources, supervise, task, learned)
    supervise("evaluate", 0, 1)
    started = time.perf_counter()
    plan = learned.plan
    head = learned.head.at_strength(plan.strength)
    judged = zerogate.assess(task, encoded.task, guard, encoded.guard, head, query_only=plan.way.query_only, on_step=supervise)
    _tell(resources, supervise, sentence_of(judged))
    return _Outcome(learned, judged, time.perf_counter() - started)


def _tell_learned(resources: Resources, supervise: Supervision, task: Task, learned: "Learned") -> None:
    plan = learned.plan
    if plan.resumed_trials or learned.resumed_step:
        found = f"{plan.resumed_trials} trials and {learned.resumed_step} steps of fitting"
        _tell(resources, supervise, f"went on from an earlier attempt: {found} were there already")
    if plan.planned:
        winner = plan.way.to_dict()
        said = f"tried {plan.finished} of {plan.planned} recipes in {plan.seconds:.1f} s; the best: {plan.way.name}"
        _tell(resources, supervise, f"{said} at strength {plan.strength:g}", {"way": winner, "candidates": plan.candidates})
    losses = [[round(loss, 5) for loss in one] for one in learned.losses]
    _tell(resources, supervise, f"fitted {len(task.train)} examples in {learned.fit_seconds:.1f} s", {"losses": losses})


def _store(
    resources: Resources, inputs: Inputs, task: Task, guard: Guard, encoded: Encoded, outcome: _Outcome, artifact_key: str
) -> TrainedVersion:
    """Write the head's two files."""
    learned, judged = outcome.learned, outcome.judged
    encoder = resources.models.encoder(inputs.encoder).encoder
    facts = manifest_facts(inputs, task, guard, encoded, learned, judged, encoder)
    dumped = dumped_head(
        learned.head, learned.plan.way, strength=learned.plan.strength, fingerprint=inputs.encoder.fingerprint, facts=facts
    )
    resources.artifacts.write(artifact_key, dumped.files)
    return TrainedVersion(
        artifact_key=artifact_key,
        strength=learned.plan.strength,
        manifest=dumped.manifest,
        scores=scores_of(judged),
        verdict=verdict_of(task, judged),
        result=result_of(task, encoded, learned, judged, budget=inputs.budget, evaluate_seconds=outcome.evaluate_seconds),
        metric=judged.tuned.primary,
        score=judged.tuned.value,
    )


def dumped_head(
    head: FoldedHead | StackedHead, way: Way, *, strength: float, fingerprint: str, facts: dict[str, Any]
) -> DumpedHead:
    """The files of a head that was made in this way; the weights depend on the head alone."""
    shape = way.recipes[0].shape if way.recipes else HeadShape("identity" if way.name == "identity" else "linear")
    return zerogate.dump_head(head, shape=shape, strength=strength, encoder_fingerprint=fingerprint, facts=facts)


def _register(resources: Resources, mine: Claim, inputs: Inputs, trained: TrainedVersion, task: Task, encoded: Encoded) -> None:
    is_done = False
    while not is_done:
        live = _weigh_live(resources, inputs, task, encoded) if inputs.promote == "if_better" else None
        try:
            with resources.database.write() as session:
                is_done = finish_training(session, resources.queue, mine, trained, live)
        except LeaseLost:
            # A commit whose answer was lost in an outage may have ended the job already, and this is the second time.
            with resources.database.read() as session:
                is_done = is_registered(session, trained)
            if not is_done:
                raise


def _weigh_live(resources: Resources, inputs: Inputs, task: Task, encoded: Encoded) -> Live:
    """What is live now, on the test of this job. It stands over the same encoder: its model always does."""
    with resources.database.read() as session:
        version = live_version(session, inputs.model_id)
    vectors, test = task.test.of(encoded.task), task.test.test
    if version.number == 0:
        return Live(version, test.evaluate(vectors).value)
    head = resources.models.head(version, version.strength)
    return Live(version, evaluate_tuned(test, vectors, head, query_only=version.query_only).value)


def _tell(resources: Resources, supervise: Supervision, message: str, data: dict[str, Any] | None = None) -> None:
    def tell() -> None:
        with held(resources.database, supervise.claim) as session:
            add_event(session, supervise.claim.job_id, message, data=data)

    supervise.patiently(tell)
