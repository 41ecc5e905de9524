"""The loop that tunes an encoder: sentence-transformers' own trainer, with our losses and our checkpoints.

The trainer's own checkpoints hold pickles (optimizer.pt, rng_state.pth). Ours hold the same, in safetensors and JSON:

    weights.safetensors      what learns, by name
    optimizer.safetensors    AdamW's moments and steps of it
    randomness.safetensors   the states of the random generators
    trainer_state.json       the trainer's own: where it stood
    progress.json            what the run is, its losses, its seconds, its learning rates
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import GroupByLabelBatchSampler
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zerogate.encoder_files import EncoderFiles
from zerogate.errors import TrainingDiverged
from zerogate.tuning_model import TuningModel
from zerogate.tuning_objective import Objective, ShuffledBatches, dataset_of
from zerogate.tuning_recipe import TuningExamples, TuningKind, TuningRecipe

OnStep = Callable[[int, int, float], None]

# A checkpoint of the whole all-MiniLM-L6-v2 has 270 MB. A larger encoder's may take a tenth of the time, not more.
_CHECKPOINT_SECONDS: Final = 45.0
_WRITING_SHARE: Final = 0.1


class EncoderTrainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer that prints nothing, writes no pickle, and can be stopped at any step.

    losses: of every step so far, those before a resumed checkpoint too.
    """

    def __init__(
        self,
        model: TuningModel,
        files: EncoderFiles,
        examples: TuningExamples,
        recipe: TuningRecipe,
        *,
        work: Path,
        identity: str,
        on_step: OnStep | None,
    ) -> None:
        """work: where checkpoints stand. identity: of everything that decides the result; others' checkpoints are not its own."""
        dataset = dataset_of(examples)
        super().__init__(
            model=model,
            args=_arguments(model, files, examples.kind, dataset.column_names, recipe, work),
            train_dataset=dataset,
            loss=Objective(model, examples.kind, recipe.temperature),
            callbacks=[_EveryStep(self, on_step)],
        )
        self.remove_callback(PrinterCallback)
        self.processing_class = None  # else the trainer changes the encoder's configuration to its tokenizer's special tokens
        self._kind = examples.kind
        self._work = work
        self._identity = identity
        self.losses: list[float] = []
        self._started = self._written = time.monotonic()
        self._writing = 0.0

    @property
    def seconds(self) -> float:
        """Spent on training so far, before a resumed checkpoint too."""
        return time.monotonic() - self._started

    def epoch_losses(self) -> list[float]:
        """The mean loss of every epoch."""
        size = self.state.max_steps // int(self.args.num_train_epochs)
        return [sum(self.losses[start : start + size]) / size for start in range(0, len(self.losses), size)]

    def last_checkpoint(self) -> Path | None:
        """The last checkpoint of this very run in the work folder, if there is one."""
        found = sorted(self._checkpoints(), key=lambda folder: int(folder.name.rpartition("-")[2]))
        own = [folder for folder in found if _progress(folder)["identity"] == self._identity]
        return own[-1] if own else None

    def remove_checkpoints(self, *, but: Path | None = None) -> None:
        """Remove all checkpoints but one, and what a killed run left of one that it was writing."""
        for folder in (*self._checkpoints(), *self._work.glob(".unfinished-*")):
            if folder != but:
                shutil.rmtree(folder)

    def write_checkpoint(self) -> None:
        """Write what is needed to go on from here. The folder appears whole, then older ones are removed."""
        began = time.monotonic()
        folder = self._work / f"checkpoint-{self.state.global_step}"
        unfinished = self._work / f".unfinished-{uuid4().hex}"
        unfinished.mkdir(parents=True)
        learning = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        moments = self._moments()
        flat = {f"{key}/{name}": value.contiguous() for name, one in learning.items() for key, value in moments[one].items()}
        save_file({name: one.detach().contiguous() for name, one in learning.items()}, unfinished / "weights.safetensors")
        save_file(flat, unfinished / "optimizer.safetensors")
        save_file(_randomness(), unfinished / "randomness.safetensors")
        self.state.save_to_json(str(unfinished / "trainer_state.json"))
        rates = [group["lr"] for group in self._optimizer().param_groups]
        progress = {"identity": self._identity, "losses": self.losses, "seconds": self.seconds, "rates": rates}
        (unfinished / "progress.json").write_text(json.dumps(progress))
        if folder.exists():  # another run's: this one writes a step once
            shutil.rmtree(folder)
        unfinished.rename(folder)
        self.remove_checkpoints(but=folder)
        self._written = time.monotonic()
        self._writing = self._written - began

    def checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._written > max(_CHECKPOINT_SECONDS, self._writing / _WRITING_SHARE)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: a model card would look things up."""

    def get_batch_sampler(self, *args: Any, **options: Any) -> Any:
        return (GroupByLabelBatchSampler if self._kind == "groups" else ShuffledBatches)(*args, **options)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **options)
        self.losses.append(float(loss))
        if not torch.isfinite(loss):
            raise TrainingDiverged(self.state.global_step + 1, self.losses[-1])
        return loss

    # What the trainer calls to write a checkpoint, and to go on from one.

    def _save_checkpoint(self, *_: Any) -> None:
        self.write_checkpoint()

    def _load_from_checkpoint(self, checkpoint: str, *_: Any) -> None:
        progress = _progress(checkpoint)
        self.losses = progress["losses"]
        self._started = time.monotonic() - progress["seconds"]
        saved = load_file(Path(checkpoint) / "weights.safetensors")
        with torch.no_grad():
            for name, one in self.model.named_parameters():
                if one.requires_grad:
                    one.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        moments, parameters = self._moments(), dict(self.model.named_parameters())
        for place, value in load_file(Path(checkpoint) / "optimizer.safetensors").items():
            key, _, name = place.partition("/")
            moments[parameters[name]][key] = value.to(parameters[name].device)
        rates = _progress(checkpoint)["rates"]
        for group, rate in zip(self._optimizer().param_groups, rates, strict=True):
            group["lr"] = rate
        schedule: Any = self.lr_scheduler
        done = self.state.global_step
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": done, "_step_count": done + 1, "_last_lr": rates})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = load_file(Path(checkpoint) / "randomness.safetensors")
        torch.set_rng_state(saved["cpu"])
        if "cuda" in saved:
            torch.cuda.set_rng_state(saved["cuda"])

    def _checkpoints(self) -> list[Path]:
        return list(self._work.glob("checkpoint-*"))

    def _optimizer(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        return self.optimizer

    def _moments(self) -> Any:
        """AdamW's state, a dictionary for every parameter."""
        return self._optimizer().state


class _EveryStep(TrainerCallback):
    """Tells `on_step`, and has checkpoints written: in between, and when `on_step` stops the training."""

    def __init__(self, trainer: EncoderTrainer, on_step: OnStep | None) -> None:
        self._trainer = trainer
        self._on_step = on_step

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 (passed by name)
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        if self._on_step is not None:
            try:
                self._on_step(state.global_step, state.max_steps, self._trainer.losses[-1])
            except BaseException:
                self._trainer.write_checkpoint()
                raise
        control.should_save = self._trainer.checkpoint_is_due()
        return control


def _arguments(
    model: TuningModel, files: EncoderFiles, kind: TuningKind, columns: list[str], recipe: TuningRecipe, work: Path
) -> SentenceTransformerTrainingArguments:
    cpu = model.device.type == "cpu"
    symmetric = kind in ("scored", "groups")  # their texts are queries all
    prompts = {name: files.prompts.get("query" if symmetric or name == "anchor" else "document") for name in columns}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=recipe.epochs,
        # Texts of a group come in twos.
        per_device_train_batch_size=recipe.batch_size // 2 * 2 if kind == "groups" else recipe.batch_size,
        learning_rate=recipe.learning_rate,
        learning_rate_mapping={rf"^model\.{len(model) - 2}\.linear\.": recipe.head_learning_rate},
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_ratio,
        prompts={name: prompt for name, prompt in prompts.items() if prompt},
        seed=recipe.seed,
        use_cpu=cpu,
        optim="adamw_torch_fused",
        dataloader_pin_memory=not cpu,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # noqa: SLF001 (several would be wrapped in DataParallel)
    return arguments


def _progress(checkpoint: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(checkpoint) / "progress.json").read_text())
    return found


def _randomness() -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
