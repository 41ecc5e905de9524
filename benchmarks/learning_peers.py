"""Whole-encoder training with sentence-transformers, as its documentation has it: what the heads are compared with."""

import tempfile
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from zerogate.encoder_files import EncoderFiles

EPOCHS = 3
LEARNING_RATE = 5e-5
BATCH_SIZE = 64


def train_whole_encoder(files: EncoderFiles, anchors: list[str], positives: list[str], target: Path, *, seed: int = 0) -> float:
    """Train the whole encoder (MultipleNegativesRankingLoss, 3 epochs, 5e-5, fp32), save it in `target`, give the seconds."""
    model = SentenceTransformer(str(files.path), local_files_only=True)
    model.max_seq_length = files.max_length
    data = Dataset.from_dict({"anchor": anchors, "positive": positives})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            batch_sampler="no_duplicates",
            disable_tqdm=True,
            logging_strategy="no",
            seed=seed,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model)
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    model.save_pretrained(str(target), create_model_card=False)
    return seconds
