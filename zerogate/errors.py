"""Every error the library raises. No HTTP in here: the service maps them to status codes.

    ZerogateError
      InvalidRow            a row of a dataset is wrong; knows its line and field
      InvalidFile           a dataset file as a whole cannot be read
      TooFewExamples        not enough rows to train or to evaluate
      UnknownDocument       a query names a document that is not there
      EncoderNotFound       no encoder at that path or under that hub id
      EncoderMismatch       the encoder's files are not the ones that were expected
      InvalidHead           a head file is damaged, of an unknown kind, or of another dimension
      CannotFold            a head with a norm or an activation is asked for its one matrix
      TrainingDiverged      the loss is no longer a finite number

A callback stops long work by raising whatever it likes: the library lets it pass through untouched.
"""


class ZerogateError(Exception):
    """The root of all errors of this library; `str(error)` is a sentence for the person who caused it."""


class InvalidRow(ZerogateError):
    """A row of a dataset is wrong. `line` counts from 1; `field` is None when the whole row is at fault.

    `problem` says what was found and what is allowed, without the place.
    """

    def __init__(self, line: int, field: str | None, problem: str) -> None:
        place = f"line {line}" if field is None else f"line {line}, field '{field}'"
        super().__init__(f"{place}: {problem}")
        self.line = line
        self.field = field
        self.problem = problem


class InvalidFile(ZerogateError):
    """A dataset file cannot be read as a whole: it is empty, has another format, or lacks a column.

    `field` names the column at fault, or is None.
    """

    def __init__(self, problem: str, *, field: str | None = None) -> None:
        super().__init__(problem)
        self.field = field


class TooFewExamples(ZerogateError):
    """There are not enough rows for what was asked."""

    def __init__(self, what: str, *, found: int, needed: int) -> None:
        super().__init__(f"{what}: found {found}, at least {needed} are needed")
        self.found = found
        self.needed = needed


class UnknownDocument(ZerogateError):
    """A query names a document that its dataset of documents does not have."""

    def __init__(self, document: str, query: str) -> None:
        super().__init__(
            f"the query {query[:60]!r} names the document {document[:60]!r}, which is not in the dataset of documents that the "
            "queries were uploaded for"
        )


class EncoderNotFound(ZerogateError):
    """No sentence-transformers model stands at that path or under that hub id."""


class EncoderMismatch(ZerogateError):
    """The encoder's files have another digest, dimension or format than expected."""


class InvalidHead(ZerogateError):
    """A head file is damaged, of an unknown kind, or does not fit the encoder."""


class CannotFold(ZerogateError):
    """A head with a norm or an activation inside its blocks is no one matrix; the message names them and says why."""


class TrainingDiverged(ZerogateError):
    """The loss stopped being a finite number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} at step {step}; lower the learning rate or raise the temperature")
        self.step = step
        self.loss = loss
