"""Entering the encoders that the settings name, when an API starts."""

import gc
import threading

from service.db import AlreadyThere
from service.embeddings.loaded_models import EncoderFacts
from service.encoders.operations import describe, ensure_project, register_encoder
from service.encoders.queries import facts_of
from service.resources import DEFAULT_PROJECT, Resources
from service.settings import EncoderSpec
from zerogate.encoder_files import EncoderFiles


def register_encoders(resources: Resources) -> list[EncoderFacts]:
    """Make the rows that are missing. Raises Conflict where an encoder's files have changed."""
    found = [(spec, describe(spec)) for spec in resources.settings.encoders]  # reads 90 MB each: not inside a transaction
    try:
        return _register(resources, found)
    except AlreadyThere:  # another API started at the same moment, and was faster
        return _register(resources, found)


def start_loading(resources: Resources, encoder: EncoderFacts) -> threading.Thread:
    """Load the encoder in a thread: its first import takes some seconds, better now than in the first request, which waits."""
    thread = threading.Thread(target=resources.models.encoder(encoder).encoder.count_tokens, args=[[]], daemon=True)
    thread.start()
    return thread


def settle(loading: threading.Thread) -> None:
    """Wait until the encoder is loaded, then leave all that is there out of the search for garbage.

    torch and transformers are 700,000 objects that stay; each full search through them holds all threads for 0.3 to 0.5 s.
    """
    loading.join()
    gc.collect()
    gc.freeze()


def _register(resources: Resources, found: list[tuple[EncoderSpec, EncoderFiles]]) -> list[EncoderFacts]:
    with resources.database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        return [facts_of(register_encoder(session, DEFAULT_PROJECT, spec, files)) for spec, files in found]
