"""Class prototypes, the mean representation of each class, which FedProto and FPL exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .functional import Params
from .local import Round
from .method import Answer

PROTOTYPES = "prototypes"
"""Key of the record with ``means`` (classes, d) and ``counts`` (classes,); a class may have a count of 0."""


def representations(params: Params, round: Round, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Representation and output of all of a client's rows, in evaluation mode."""
    rows = len(round.data["weight"])
    parts = [
        round.model.frozen.embed(params, {k: v[start : start + batch_size] for k, v in round.data.items()})
        for start in range(0, rows, batch_size)
    ]
    z, output = zip(*parts, strict=True)
    return torch.cat(z), torch.cat(output)


def class_means(params: Params, round: Round) -> Params:
    """A client's prototypes at ``params``: the record :data:`PROTOTYPES`."""
    z, output = representations(params, round)
    classes = torch.arange(output.shape[1], device=z.device)
    member = (round.data["y"] == classes[:, None]) * round.data["weight"].to(z.dtype)
    counts = member.sum(dim=1)
    return {"means": member @ z / counts.clamp(min=1)[:, None], "counts": counts}


def distance_to_class(z: Tensor, y: Tensor, means: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference of each row from the prototype of its class, 0 where there is none.

    The mean over dimensions, as in the published code of both methods, keeps the term's size apart from the
    width of the model.
    """
    return ((z - means[y]) ** 2).mean(dim=1) * known[y]


def of_clients(answers: list[Answer]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Prototypes (clients, classes, d) and counts (clients, classes) that clients sent."""
    records = [answer.extra[PROTOTYPES] for answer in answers]
    return np.stack([r["means"] for r in records]), np.stack([r["counts"] for r in records])
