"""What every error that this package raises on purpose says of itself. No torch, no transformers."""


class BackboneError(Exception):
    """The sentence names the remedy. Another try with the same input would meet it too, unless `retriable`.

    `status` is the name of the status that a cell gets whose training it ends.
    """

    status = "FAILED"
    retriable = False


class InvalidReferenceError(BackboneError, ValueError):
    """An `hf:` or `fused:` reference names nothing that can be trained here."""

    status = "INFEASIBLE"
