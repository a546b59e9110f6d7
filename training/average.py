"""`average`: one encoder from several of the same kind, the mean of their weights (model soup, arXiv 2203.05482)."""

from collections.abc import Sequence

import torch

from lsr.encoder import Encoder
from lsr.errors import InputError, MismatchError
from lsr.heads import module_of
from lsr.training.train import forget_fingerprints


def average(encoders: Sequence[Encoder]) -> Encoder:
    """The first encoder, its document side's weights replaced by the mean of all; for encoders that share a start.

    Raises:
        InputError: fewer than two, or one whose documents run no transformer.
        MismatchError: the sides differ in anything but the weights of the documents' transformer.
    """
    if len(encoders) < 2:
        raise InputError("an average needs two encoders at least")
    first = encoders[0]
    for number, other in enumerate(encoders[1:], start=2):
        alike = (
            other.documents.config() == first.documents.config()
            and other.documents.vocabulary_hash == first.documents.vocabulary_hash
            and (other.queries.kind, other.queries.config()) == (first.queries.kind, first.queries.config())
            and (not first.queries.light or other.queries.fingerprint == first.queries.fingerprint)
        )
        if not alike:
            raise MismatchError(f"encoder {number} is of another kind than the first, or has another query table")
    states = [module_of(encoder.documents).state_dict() for encoder in encoders]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise MismatchError("the encoders' transformers have other shapes: their weights have no mean")
    floats = [name for name, tensor in states[0].items() if tensor.is_floating_point()]
    with torch.no_grad():  # all means before any is set: tied weights have two names
        means = {name: torch.stack([state[name] for state in states]).mean(0) for name in floats}
        for name, mean in means.items():
            states[0][name].copy_(mean)
    forget_fingerprints(first)
    return first
