"""BERT in bf16 on a CPU, in fewer and larger operations: a third faster than the same layers out of transformers.

Rows lie behind each other without padding, query, key and value are one product, weights are packed once in the order in which
the processor's matrix units read them, and GELU and the residual sums happen inside of the products.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from torch.nn.functional import embedding, pad, scaled_dot_product_attention
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from zerogate.precision import best_dtype

# The operators of torch's own compiler have no public name (SLF001). Where another torch declares them otherwise, or on another
# processor lacks them, they are left alone.
_ops = torch.ops.mkldnn
_SCHEMAS = {
    "mkldnn::_reorder_linear_weight(Tensor self, int? batch_size=None) -> Tensor Y",
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y",
    "mkldnn::_linear_pointwise.binary(Tensor X, Tensor other, Tensor W, Tensor? B, str attr) -> Tensor Y",
}
_LAST_LAYER = {"method": "forward", "method_output_name": "last_hidden_state"}
_LEAST_STEP, _LARGEST_STEP = 16, 64  # tokens; the processor multiplies 16 rows at a time
_TOKENS = 1024  # that the packing is made for; other numbers work as well


@dataclass(frozen=True)
class _Linear:
    weight: Tensor  # packed
    bias: Tensor

    @classmethod
    def of(cls, *layers: torch.nn.Linear) -> "_Linear":
        """Several become one, whose outputs stand side by side."""
        weight = torch.cat([layer.weight.data for layer in layers])
        order = _ops._reorder_linear_weight  # noqa: SLF001
        return cls(order(weight, _TOKENS), torch.cat([layer.bias.data for layer in layers]))

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        made: Tensor = _ops._linear_pointwise(x, self.weight, self.bias, activation, [], "none")  # noqa: SLF001
        return made

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        made: Tensor = _ops._linear_pointwise.binary(x, other, self.weight, self.bias, "add")  # noqa: SLF001
        return made


class _Layer:
    def __init__(self, layer: BertLayer) -> None:
        attention = layer.attention
        self._qkv = _Linear.of(attention.self.query, attention.self.key, attention.self.value)
        self._mixed = _Linear.of(attention.output.dense)
        self._attended = attention.output.LayerNorm
        self._up = _Linear.of(layer.intermediate.dense)
        self._down = _Linear.of(layer.output.dense)
        self._done = layer.output.LayerNorm
        self._heads = attention.self.num_attention_heads

    def __call__(self, x: Tensor, runs: list[tuple[int, int]]) -> Tensor:
        """x: (tokens and some spare, width). runs: how many rows of how many tokens lie behind each other."""
        width = x.shape[1]
        mixed = torch.zeros_like(x)
        start = 0
        qkv = self._qkv(x)  # (tokens, 3 width)
        for rows, length in runs:
            part = slice(start, start + rows * length)
            q, k, v = qkv[part].view(rows, length, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
            attended = scaled_dot_product_attention(q, k, v)  # (rows, heads, length, width / heads)
            mixed[part].view(rows, length, self._heads, -1).copy_(attended.transpose(1, 2))
            start = part.stop
        x = self._attended(self._mixed.plus(mixed, x))
        return self._done(self._down.plus(self._up(x, "gelu"), x))  # type: ignore[no-any-return]  # a module's call


class PackedBert:
    """Gives what the model gives in bf16, but for rounding. Its weights are a second copy."""

    def __init__(self, model: BertModel) -> None:
        self._embeddings = model.embeddings
        self._layers = [_Layer(cast("BertLayer", layer)) for layer in model.encoder.layer]

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token embeddings of ids (rows, longest): (rows, longest, width) float32, zero where the mask, (rows, longest), is."""
        there = mask.bool()
        lengths = there.sum(dim=1).tolist()
        runs = [(len(list(run)), length) for length, run in groupby(lengths)]
        count = sum(lengths)
        spare = (0, _rounded(count) - count)
        parts = self._embeddings
        positions = torch.arange(ids.shape[1]).expand_as(ids)[there]
        x = embedding(pad(ids[there], spare), parts.word_embeddings.weight) + parts.token_type_embeddings.weight[0]
        x = parts.LayerNorm(x + embedding(pad(positions, spare), parts.position_embeddings.weight))  # (tokens and spare, width)
        for layer in self._layers:
            x = layer(x, runs)
        tokens = torch.zeros(*ids.shape, x.shape[1])
        tokens[there] = x[:count].float()
        return tokens


def _rounded(tokens: int) -> int:
    """A few more, so that few numbers occur: for each new one the matrix library first compiles its products, for 25 ms."""
    step = min(max(1 << max((tokens - 1).bit_length() - 4, 0), _LEAST_STEP), _LARGEST_STEP)
    return -(-tokens // step) * step


def packed(module: torch.nn.Module) -> PackedBert | None:
    """The first module of an encoder in its faster form.

    None where that is not to be had: another kind of model, output, number, device or processor, or another torch.
    """
    if not isinstance(module, Transformer) or not isinstance(model := module.auto_model, BertModel):
        return None
    config = model.config
    is_plain = config.hidden_act == "gelu" and not config.is_decoder and not config.output_hidden_states
    gives_tokens = module.modality_config.get("text") == _LAST_LAYER and module.module_output_name == "token_embeddings"
    # Adapters and quantised layers come from elsewhere.
    is_untouched = all(type(part).__module__.startswith(("torch.nn.", "transformers.")) for part in model.modules())
    if not (is_plain and gives_tokens and is_untouched):
        return None
    if model.dtype != torch.bfloat16 or model.device.type != "cpu" or best_dtype(model.device) != "bfloat16":
        return None
    return PackedBert(model) if _declared() >= _SCHEMAS else None


def _declared() -> set[str]:
    names = ("mkldnn::_reorder_linear_weight", "mkldnn::_linear_pointwise")
    return {str(schema) for name in names for schema in torch._C._jit_get_schemas_for_operator(name)}  # noqa: SLF001
