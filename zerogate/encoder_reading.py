"""What an encoder reads: texts as rows of token ids, rows as the tensors of one pass, and which rows share a pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer

# Characters of a single text. The tokenizer's own threads take longer to wake up than to read it; but without them it keeps the
# interpreter's lock, for a millisecond at this length.
_READ_HERE = 2_000
# Read by us and by sentence-transformers when an encoder is loaded: a pair of lengths, cases, scripts, and nothing at all.
_PROBES = ("one", "Two words, and ÜBER 日本 🙂", "")


class TokenReader:
    """Reads for a model that wants ids and masks and nothing else, as nearly all do.

    Safe to use from several threads at once, which then run at once: nobody changes the tokenizer after `__init__`.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, max_length: int) -> None:
        """tokenizer: the one inside of the transformer's; becomes this reader's own."""
        outer: Any = transformer.tokenizer
        self._pad = int(outer.pad_token_id or 0)
        self._pads_left = outer.padding_side == "left"
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, direction=outer.truncation_side)
        self._has_types = False
        self._prompt_lengths: dict[str, int] = {}

    def rows(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """The ids of each text behind the prompt: special tokens included, cut at the encoder's maximum length."""
        if len(texts) == 1 and len(texts[0]) <= _READ_HERE:
            return [self._tokenizer.encode(prompt + texts[0]).ids]
        return [read.ids for read in self._tokenizer.encode_batch_fast([prompt + text for text in texts])]

    def features(self, rows: Sequence[Sequence[int]], prompt: str) -> dict[str, Any]:
        """The tensors of one pass, (rows, longest row) int64, and how long the prompt is where the pooling leaves it out."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), None) if self._pads_left else slice(len(row))
            ids[number, place] = row
            mask[number, place] = 1
        features: dict[str, Any] = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if self._has_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        if prompt in self._prompt_lengths:
            features["prompt_length"] = self._prompt_lengths[prompt]
        return features

    def learn(self, told: Mapping[str, Mapping[str, Any]], texts: Sequence[str]) -> bool:
        """Whether these are the features that sentence-transformers makes of the texts behind each prompt; takes on what it adds.

        told: its features for every prompt.
        """
        self._prompt_lengths = {prompt: one["prompt_length"] for prompt, one in told.items() if "prompt_length" in one}
        self._has_types = any("token_type_ids" in one for one in told.values())
        return all(_equal(self.features(self.rows(texts, prompt), prompt), expected) for prompt, expected in told.items())


class TextRow(list[int]):
    """The ids of a text that are not all that its model reads of it: the text stays beside them, for the pass."""

    def __init__(self, ids: Iterable[int], text: str) -> None:
        super().__init__(ids)
        self.text = text


class TextReader:
    """Reads for every other model (chat templates, token types, bags of words) by the model's own `preprocess`.

    Safe to use from several threads, one at a time.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._lock = Lock()  # a tokenizer of which two threads change the padding raises "Already borrowed"

    def rows(self, texts: Sequence[str], prompt: str) -> list[TextRow]:
        """As `TokenReader.rows`. A row is empty where the model has no ids."""
        return [TextRow(self._ids(text, prompt), text) for text in texts]

    def features(self, rows: Sequence[Sequence[int]], prompt: str) -> dict[str, Any]:
        """What `preprocess` makes of the texts behind the rows, which must be those that `rows` gave."""
        return self._preprocess([row.text for row in cast("Sequence[TextRow]", rows)], prompt)

    def _ids(self, text: str, prompt: str) -> list[int]:
        ids = self._preprocess([text], prompt).get("input_ids")
        found: list[int] = [] if ids is None else ids.flatten().tolist()
        return found

    def _preprocess(self, texts: list[str], prompt: str) -> dict[str, Any]:
        with self._lock:
            return dict(self._model.preprocess(texts, prompt=prompt or None))


def reader_of(model: SentenceTransformer, prompts: Iterable[str], max_length: int) -> TokenReader | TextReader:
    """A TokenReader where it makes the very tensors that sentence-transformers makes of some texts, else a TextReader."""
    transformer = model[0]
    tokenizer = getattr(getattr(transformer, "tokenizer", None), "backend_tokenizer", None)
    if isinstance(transformer, Transformer) and isinstance(tokenizer, Tokenizer):
        texts = [*_PROBES, "word " * max_length]  # the last one is cut
        told = {prompt: model.preprocess(texts, prompt=prompt or None) for prompt in {"", *prompts}}
        reader = TokenReader(transformer, tokenizer, max_length)
        if reader.learn(told, texts):
            return reader
    return TextReader(model)


def passes(lengths: Sequence[int], tokens_per_pass: int) -> Iterator[list[int]]:
    """Positions of the rows that share a pass, longest first: rows of about one length, so that little of it is padding.

    A pass holds `tokens_per_pass` with padding, or one row. It ends early where its padding would cost more than another pass.
    """
    batch: list[int] = []
    padding = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        longest = lengths[batch[0]] if batch else lengths[position]
        padding += longest - lengths[position]
        if batch and (longest * (len(batch) + 1) > tokens_per_pass or padding > tokens_per_pass // 8):
            yield batch
            batch, padding = [], 0
        batch.append(position)
    if batch:
        yield batch


def _equal(made: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether both hold the same tensors and numbers; "modality" is what a model takes a text for if nothing is said."""
    if {*made, "modality"} != {*expected, "modality"} or expected.get("modality", "text") != "text":
        return False
    return all(
        torch.equal(value, expected[name]) if isinstance(value, torch.Tensor) else value == expected[name]
        for name, value in made.items()
    )
