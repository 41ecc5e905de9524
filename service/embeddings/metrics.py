"""What `/metrics` tells of the encoders' passes in this process."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.embeddings.loaded_models import LoadedModels


class EncoderMetrics(Collector):
    """What waits for a pass, how many there were, and how many texts shared them."""

    def __init__(self, models: LoadedModels) -> None:
        self._models = models

    def describe(self) -> Iterator[Metric]:
        """Nothing: the models need not be there yet when this is registered."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now, of all encoders together."""
        batchers = self._models.batchers()
        yield GaugeMetricFamily(
            "zerogate_encoder_waiting_tokens",
            "Tokens of requests that wait for the encoder",
            value=sum(batcher.waiting_tokens for batcher in batchers),
        )
        yield CounterMetricFamily(
            "zerogate_encoder_passes", "Passes of encoders for requests", value=sum(batcher.passes for batcher in batchers)
        )
        yield CounterMetricFamily(
            "zerogate_encoder_texts", "Texts in those passes", value=sum(batcher.texts for batcher in batchers)
        )
