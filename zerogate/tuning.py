"""Tune an encoder: the head is fitted already, now the encoder behind it learns as well. The result is a new encoder.

The encoder is loaded afresh, so that one that serves is never touched.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from zerogate.encoder_files import EncoderFiles
from zerogate.folded import FoldedHead
from zerogate.tuning_model import load_model, merge_adapters, save_model, unfreeze
from zerogate.tuning_recipe import TuningExamples, TuningRecipe
from zerogate.tuning_trainer import EncoderTrainer, OnStep


@dataclass(frozen=True)
class TunedEncoder:
    """A tuned encoder, a sentence-transformers folder at `path`.

    seconds: what the training took, over all runs. losses: the mean loss of every epoch. steps: of all epochs.
    resumed_from_step: 0 where this run began at the beginning.
    """

    path: Path
    seconds: float
    losses: list[float]
    steps: int
    resumed_from_step: int


def tune_encoder(
    files: EncoderFiles,
    head: FoldedHead,
    examples: TuningExamples,
    *,
    recipe: TuningRecipe | None = None,
    folder: Path,
    work: Path,
    device: str | None = None,
    on_step: OnStep | None = None,
) -> TunedEncoder:
    """Train the encoder with the head behind it, and save both as one encoder in `folder`, which must not exist yet.

    head: the version's, at its strength. Vectors of the result have `head.out_dim` numbers.
    work: a folder for checkpoints, one every 45 seconds and one where the run is stopped. A run with the same arguments and
        the same `work` goes on from the last one. They are removed at the end.
    device: `cpu` or `cuda`; by default a CUDA device where there is one. The same arguments on the same machine with the same
        number of threads give the same bytes, whether the run was stopped in between or not.
    on_step: called after every step with (step, steps, loss); it may raise to stop.
    Raises FileExistsError, TrainingDiverged, ZerogateError for a recipe that does not go with the encoder.
    """
    recipe = recipe or TuningRecipe()
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # The trainer seeds the process's generators.
    with torch.random.fork_rng(devices=[torch.device(chosen)] if torch.device(chosen).type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        model = load_model(files, head, chosen)
        unfreeze(model, recipe)
        identity = _identity(files, head, examples, recipe)
        trainer = EncoderTrainer(model, files, examples, recipe, work=work, identity=identity, on_step=on_step)
        checkpoint = trainer.last_checkpoint()
        resumed = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = trainer.seconds
    if recipe.mode == "lora":
        merge_adapters(model)
    save_model(model, folder)
    trainer.remove_checkpoints()
    return TunedEncoder(folder, seconds, trainer.epoch_losses(), trainer.state.max_steps, resumed)


def export_encoder(files: EncoderFiles, head: FoldedHead, folder: Path) -> None:
    """Save the encoder with the head behind it as one encoder in `folder`, untrained. Raises FileExistsError."""
    save_model(load_model(files, head, "cpu"), folder)


def _identity(files: EncoderFiles, head: FoldedHead, examples: TuningExamples, recipe: TuningRecipe) -> str:
    """Digest of everything that decides the result."""
    facts = {"encoder": files.fingerprint, "examples": examples.digest(), "recipe": recipe.to_dict()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(head.matrix.tobytes())
    if head.offset is not None:
        digest.update(head.offset.tobytes())
    return digest.hexdigest()
