"""BERT in bf16 on a CPU, in fewer and larger operations: half as fast again as the same layers out of transformers.

Rows lie behind each other without padding (for attention in slots, encoder_slots.py), query, key and value are one product,
weights are packed once in the order in which the processor's matrix units read them, and GELU and the residual sums happen inside
of the products. All layers are one call of torch: beside a thread that runs Python, each of 80 calls would wait for the
interpreter's lock (94 ms for a pass of one text instead of 17).
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from torch.nn.functional import embedding, layer_norm, pad, scaled_dot_product_attention
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from zerogate.encoder_slots import slots_of
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
_TOKENS = 1024  # that the packing is made for; other numbers work as well

_LEAST_STEP, _LARGEST_STEP = 16, 64  # tokens; the processor multiplies 16 rows at a time

_Forward = Callable[..., Tensor]


class PackedBert:
    """Gives what the model gives in bf16, but for rounding. The weights of its products are a second copy.

    multiplications: for each token, those of attention left out.
    """

    def __init__(self, model: BertModel, forward: _Forward) -> None:
        """forward: `_forward`, compiled."""
        parts, config = model.embeddings, model.config
        tables = (parts.word_embeddings, parts.position_embeddings, parts.token_type_embeddings, parts.LayerNorm)
        self._embeddings = [*(table.weight.data for table in tables), parts.LayerNorm.bias.data]
        self._layers = [_weights(cast("BertLayer", layer)) for layer in model.encoder.layer]
        self.multiplications = sum(
            part.weight.numel() for part in model.encoder.layer.modules() if isinstance(part, torch.nn.Linear)
        )
        self._heads, self._eps = config.num_attention_heads, config.layer_norm_eps
        self._forward = forward

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token embeddings of ids (rows, longest): (rows, longest, width) float32, zero where the mask, (rows, longest), is."""
        there = mask.bool()
        lengths = there.sum(dim=1).tolist()
        spare = _rounded(sum(lengths)) - sum(lengths)
        slots = slots_of(lengths, spare=spare, dtype=self._embeddings[0].dtype)
        places = slots.source, slots.back, slots.runs, slots.masks
        return self._forward(ids, there, spare, *places, self._embeddings, self._layers, self._heads, self._eps)


def _weights(layer: BertLayer) -> list[Tensor]:
    """Of query, key and value together, of the output behind them, up, down: packed weight and bias. Then the two norms'."""
    attention = layer.attention
    of_self = attention.self
    packed_weights = [
        part
        for layers in (
            (of_self.query, of_self.key, of_self.value),
            (attention.output.dense,),
            (layer.intermediate.dense,),
            (layer.output.dense,),
        )
        for part in _packed_linear(*layers)
    ]
    norms = attention.output.LayerNorm, layer.output.LayerNorm
    return [*packed_weights, *(part.data for norm in norms for part in (norm.weight, norm.bias))]


def _packed_linear(*layers: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias; several layers become one, whose outputs stand side by side."""
    weight = torch.cat([layer.weight.data for layer in layers])
    return _ops._reorder_linear_weight(weight, _TOKENS), torch.cat([layer.bias.data for layer in layers])  # noqa: SLF001


# Read by torch's script compiler, which knows a part of Python only. Run by Python itself, each `torch.ops` call would look for
# its overload again, and a pass take seven times as long.
def _forward(
    ids: Tensor,
    there: Tensor,
    spare: int,
    source: Tensor,
    back: Tensor,
    runs: list[tuple[int, int]],
    masks: list[Tensor],
    embeddings: list[Tensor],
    layers: list[list[Tensor]],
    heads: int,
    eps: float,
) -> Tensor:
    """Token embeddings of a pass; see `PackedBert` and `Slots`.

    spare: how many tokens more than there are. embeddings: the tables of words, positions and types, and the norm's weight and
    bias. layers: of each, what `_weights` gives.
    """
    positions = torch.arange(ids.shape[1]).expand_as(ids)[there]
    count = positions.shape[0]
    words, places, types, scale, shift = embeddings
    width = words.shape[1]
    x = embedding(pad(ids[there], [0, spare]), words) + types[0] + embedding(pad(positions, [0, spare]), places)
    x = layer_norm(x, [width], scale, shift, eps)  # (tokens and spare, width)
    for qkv, qkv_bias, mix, mix_bias, up, up_bias, down, down_bias, scale, shift, last_scale, last_shift in layers:
        made = torch.ops.mkldnn._linear_pointwise(x, qkv, qkv_bias, "none", [], "none").index_select(0, source)  # noqa: SLF001
        mixed = torch.empty([source.shape[0], width], dtype=x.dtype)
        start = 0
        for run in range(len(runs)):
            slots, length = runs[run]
            end = start + slots * length
            q, k, v = made[start:end].view(slots, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
            attended = scaled_dot_product_attention(q, k, v, attn_mask=masks[run])  # (slots, heads, length, width / heads)
            mixed[start:end].view(slots, length, heads, width // heads).copy_(attended.transpose(1, 2))
            start = end
        x = torch.ops.mkldnn._linear_pointwise(mixed.index_select(0, back), x, mix, mix_bias, "add")  # noqa: SLF001
        x = layer_norm(x, [width], scale, shift, eps)
        wide = torch.ops.mkldnn._linear_pointwise(x, up, up_bias, "gelu", [], "none")  # noqa: SLF001
        x = torch.ops.mkldnn._linear_pointwise(wide, x, down, down_bias, "add")  # noqa: SLF001
        x = layer_norm(x, [width], last_scale, last_shift, eps)
    tokens = torch.zeros(ids.shape[0], ids.shape[1], width)
    tokens[there] = x[:count].to(torch.float32)
    return tokens


def _rounded(tokens: int) -> int:
    """A few more, so that few numbers occur: for each new one the matrix library first compiles its products, for 25 ms."""
    step = min(max(1 << max((tokens - 1).bit_length() - 4, 0), _LEAST_STEP), _LARGEST_STEP)
    return max(1, -(-tokens // step)) * step


@cache
def _compiled() -> _Forward | None:
    """`_forward` as one call of torch; None where torch lacks an operator, or the script compiler, which is to go one day."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return cast("_Forward", torch.jit.script(_forward))
    except (AttributeError, OSError, RuntimeError):  # OSError: it cannot read this file's text
        return None


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
    forward = _compiled() if _declared() >= _SCHEMAS else None
    return None if forward is None else PackedBert(model, forward)


def _declared() -> set[str]:
    names = ("mkldnn::_reorder_linear_weight", "mkldnn::_linear_pointwise")
    return {str(schema) for name in names for schema in torch._C._jit_get_schemas_for_operator(name)}  # noqa: SLF001
