"""The network that tuning trains: an encoder, loaded afresh, with a head behind it as stock sentence-transformers modules.

    Transformer, Pooling, ..., Normalize, Dense (A and c, no activation), Normalize

The first Normalize makes the base vector x, so that Dense and the last Normalize give exactly the version's vectors
normalise(A x + c). Only stock modules: whoever loads the saved folder needs nothing of ours.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from zerogate.encoder_files import EncoderFiles
from zerogate.errors import ZerogateError
from zerogate.folded import FoldedHead
from zerogate.precision import best_dtype
from zerogate.tuning_recipe import TuningRecipe

# Names under which a folder's configuration may keep the prompts of the two roles.
_ROLE_PROMPTS: Final = ("query", "document", "passage", "corpus")
# How many tokens of padding a part of a batch may hold. On a CPU padding costs more than another pass (measured on nl2bash:
# batches of 64 are two thirds padding); a GPU wants one large pass.
_PADDING_ALLOWED: Final = {"cpu": 512, "cuda": 1 << 40}


class TuningModel(SentenceTransformer):
    """A sentence-transformers model whose batches are encoded in parts of about equal length.

    The transformer runs in bf16 where the hardware has it, all that follows in fp32. The encoder's own dropout is off: three
    epochs are too few to need it (nl2bash, 2,000 pairs: MRR 0.677 without, 0.669 with it), and it costs a quarter of the time.
    """

    def train(self, mode: bool = True) -> "TuningModel":
        super().train(mode)
        self[0].eval()  # dropout is all that differs; some attentions ask for the mode instead of having a module for it
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def vectors(self, columns: Sequence[dict[str, Any]]) -> list[Tensor]:
        """The vectors of each column of a batch, (n, out_dim) float32 with unit rows.

        columns: what the tokenizer made of each column's texts: `input_ids` and others of shape (n, tokens).
        All columns are encoded together where nothing but their texts differs.
        """
        plain = [{name: value for name, value in column.items() if not isinstance(value, Tensor)} for column in columns]
        if any(other != plain[0] for other in plain[1:]):
            return [self._encode(column) for column in columns]
        names = [name for name, value in columns[0].items() if isinstance(value, Tensor)]
        joined = {name: self._joined([column[name] for column in columns]) for name in names}
        counts = [len(column["attention_mask"]) for column in columns]
        return list(torch.split(self._encode({**joined, **plain[0]}), counts))

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        """Arrays (n, tokens) one below the other, with zeros on the padding's side; the attention mask's zeros hide them."""
        width = max(value.shape[1] for value in values)
        padding = [width - value.shape[1] for value in values]
        sides = [(more, 0) if self._pads_left else (0, more) for more in padding]
        return torch.cat([nn.functional.pad(value, side) for value, side in zip(values, sides, strict=True)])

    @property
    def _pads_left(self) -> bool:
        return bool(self.tokenizer.padding_side == "left")

    def _encode(self, features: dict[str, Any]) -> Tensor:
        lengths = features["attention_mask"].sum(dim=1).cpu()  # (n,)
        order = torch.argsort(lengths, stable=True)
        parts = [self._encode_part(features, rows, width) for rows, width in _parts(lengths, order, self.device)]
        return torch.cat(parts)[torch.argsort(order).to(self.device)]

    def _encode_part(self, features: dict[str, Any], rows: Tensor, width: int) -> Tensor:
        columns = slice(-width, None) if self._pads_left else slice(width)
        rows = rows.to(self.device)
        part = {name: value[rows, columns] if isinstance(value, Tensor) else value for name, value in features.items()}
        half = best_dtype(self.device) == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            part = self[0](part)
        part["token_embeddings"] = part["token_embeddings"].float()
        for module in list(self)[1:]:
            part = module(part)
        found: Tensor = part["sentence_embedding"]
        return found


def load_model(files: EncoderFiles, head: FoldedHead, device: torch.device | str) -> TuningModel:
    """Load the encoder afresh, in fp32, and put the head behind it. Raises ZerogateError for one without a transformer."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it would draw over our own
    options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
    if torch.device(device).type == "cpu":
        options["attn_implementation"] = "eager"  # the fused one takes more than twice as long to train, at 20 tokens a text
    loaded = SentenceTransformer(str(files.path), device=str(device), local_files_only=True, model_kwargs=options)
    if not isinstance(loaded[0], Transformer):
        raise ZerogateError(f"only transformers can be tuned; the encoder in {files.path} starts with {type(loaded[0]).__name__}")
    loaded.max_seq_length = files.max_length
    others: dict[str, str] = {name: text or "" for name, text in loaded.prompts.items() if name not in _ROLE_PROMPTS}
    roles = {role: files.prompts.get(role, "") for role in ("query", "document")}
    first = [] if isinstance(loaded[-1], Normalize) else [Normalize()]
    modules = [*loaded, *first, _dense(head), Normalize()]
    return TuningModel(modules=modules, prompts={**others, **roles}, device=str(device))


def unfreeze(model: TuningModel, recipe: TuningRecipe) -> None:
    """Let the recipe's part of the encoder learn, and the head. With mode lora, put adapters in.

    Raises ZerogateError where the encoder has fewer layers than `last_layers`.
    """
    if recipe.mode == "full" and not recipe.last_layers:
        return  # everything learns when it is loaded
    transformer = _transformer(model)
    layers = _layers(transformer)
    if recipe.last_layers > len(layers):
        raise ZerogateError(f"tuning.last_layers must be at most {len(layers)}, the encoder's, found {recipe.last_layers}")
    chosen = layers[-recipe.last_layers :] if recipe.last_layers else layers
    transformer.requires_grad_(requires_grad=False)
    if recipe.mode == "full":
        for _, layer in chosen:
            layer.requires_grad_(requires_grad=True)
    else:
        _add_adapters(transformer, chosen, recipe)


def merge_adapters(model: TuningModel) -> None:
    """Add the adapters, if there are any, to the weights that they adapt, and take them out."""
    from peft.tuners.lora import LoraLayer  # 1 s to import, and only mode lora needs it

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            module.merge()
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())


def save_model(model: TuningModel, folder: Path) -> None:
    """Save as a plain sentence-transformers folder, safetensors only. The folder appears whole. Raises FileExistsError."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*.unfinished"):
        shutil.rmtree(left)
    unfinished = folder.with_name(f".{folder.name}-{uuid4().hex}.unfinished")
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:  # else the file tells how the last batch was cut and padded
        backend.no_truncation()
        backend.no_padding()
    prompts = {name: text or "" for name, text in model.prompts.items()}
    plain = SentenceTransformer(modules=list(model), prompts=prompts, device=str(model.device))
    plain.save(str(unfinished), create_model_card=False)
    unfinished.rename(folder)


def _dense(head: FoldedHead) -> Dense:
    dense = Dense(head.dim, head.out_dim, bias=head.offset is not None, activation_function=nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(torch.from_numpy(head.matrix))
        if head.offset is not None:
            dense.linear.bias.copy_(torch.from_numpy(head.offset))
    return dense


def _add_adapters(transformer: nn.Module, layers: Sequence[tuple[str, nn.Module]], recipe: TuningRecipe) -> None:
    from peft import LoraConfig  # 1 s to import, and only mode lora needs it
    from peft.tuners.lora import LoraModel

    linear = [
        f"{layer}.{name}" for layer, module in layers for name, part in module.named_modules() if isinstance(part, nn.Linear)
    ]
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank: any number does
        lora_dropout=recipe.lora_dropout,
        target_modules=linear,
        bias="none",
    )
    LoraModel(transformer, config, "default")  # puts the adapters into the transformer itself


def _transformer(model: TuningModel) -> nn.Module:
    first = model[0]
    assert isinstance(first, Transformer)
    found: nn.Module = first.auto_model
    return found


def _layers(transformer: nn.Module) -> list[tuple[str, nn.Module]]:
    """The transformer's layers and their names, in order: the first list of as many modules as the configuration declares."""
    wanted = getattr(transformer.config, "num_hidden_layers", None)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return [(f"{name}.{number}", layer) for number, layer in enumerate(module)]
    raise ZerogateError(f"no layers were found in {type(transformer).__name__}; it cannot be tuned")


def _parts(lengths: Tensor, order: Tensor, device: torch.device) -> list[tuple[Tensor, int]]:
    """Rows of about equal length with their greatest length, shortest first. Their padding stays in the allowed limit."""
    allowed = _PADDING_ALLOWED.get(device.type, _PADDING_ALLOWED["cuda"])
    ascending = lengths[order].tolist()
    parts, start, tokens = [], 0, 0
    for end, length in enumerate(ascending):
        if (end - start + 1) * length - (tokens + length) > allowed:
            parts.append((order[start:end], ascending[end - 1]))
            start, tokens = end, 0
        tokens += length
    parts.append((order[start:], ascending[-1]))
    return parts
