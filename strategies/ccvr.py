"""CCVR: after the last round, the last layer is trained anew on features drawn from class statistics.

Luo, Chen, Hu, Zhang, Liang and Feng, "No Fear of Heterogeneity: Classifier Calibration for Federated Learning
with Non-IID Data", NeurIPS 2021, arXiv 2106.05001, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch.nn import functional

from .arrays import Arrays, numpy_of, record
from .errors import StrategyError
from .functional import Params, backpropagate
from .ggeur.moments import ClassMoments, class_moments, merge, pack_triangle, unpack_triangle
from .local import LocalRule, Round, Upload
from .method import Method
from .optim import SGD
from .prototypes import representations
from .seeding import generator

Matrix = npt.NDArray[Any]

STATISTICS = "ccvr-statistics"
"""Key of the record with ``labels``, ``counts``, ``means`` and packed ``covs`` of the classes of a client."""
QUERY = "ccvr_statistics"
"""Action with which the server asks for them."""


class CCVRRule(LocalRule):
    """Client half: trains as FedAvg does; after the last round it describes its representations."""

    cuts_model = True
    needs_classes = True
    needs_all_rows = True

    def queries(self) -> Mapping[str, Callable[[Round], Upload]]:
        """The action that gives the statistics."""
        return {QUERY: self.statistics}

    def statistics(self, round: Round) -> Upload:
        """Count, mean and covariance of the received model's representations of each class."""
        z, _ = representations(round.received, round)
        real = round.data["weight"] > 0
        x, y = z[real].cpu().numpy(), round.data["y"][real].cpu().numpy()
        moments = class_moments(x, y)
        described = {
            "labels": np.array(list(moments), np.int64),
            "counts": np.array([m.count for m in moments.values()], np.int64),
            "means": np.array([m.mean for m in moments.values()], x.dtype),
            "covs": np.array([pack_triangle(m.cov, x.dtype) for m in moments.values()]),
        }
        return Upload(arrays={}, extra={STATISTICS: {k: torch.from_numpy(v) for k, v in described.items()}})


class CCVR(Method):
    r"""Server half: FedAvg, and calibration of the model's ``head`` once the rounds are over.

    The clients' statistics are pooled exactly into a mean :math:`\mu_c` and an unbiased covariance
    :math:`\Sigma_c` (divisor :math:`N_c - 1`) of each class. ``virtual`` features of each class are drawn
    from :math:`N(\mu_c, \Sigma_c)`, and the head is trained on them with cross-entropy, from where it was.

    The paper's experiments also pass features through ReLU and Tukey's transformation, which the model would
    then have to apply when it predicts; here the model stays as it is. Classes that no client has get no
    virtual features.

    Parameters
    ----------
    virtual : int
        Features drawn for each class, the paper's :math:`M_c`, which it sets to hundreds up to a thousand by
        data set.
    epochs : int
        Passes over the virtual features. This, like the rest of how the head is trained, is our choice.
    lr, momentum : float
        Of SGD.
    batch_size : int
        Virtual features a step.
    seed : int
        Of the draws.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends; once, the final model down and ``d + d(d+1)/2`` numbers a class up. Clients keep
    nothing. The statistics expose class means, which are single rows' representations where a client has one
    row of a class.
    """

    client_half = CCVRRule
    only_averages = True

    def __init__(
        self,
        *,
        virtual: int = 500,
        epochs: int = 10,
        lr: float = 0.01,
        momentum: float = 0.9,
        batch_size: int = 64,
        seed: int = 0,
        **flower: Any,
    ) -> None:
        super().__init__(**flower)
        for name, count, least in (
            ("virtual", virtual, 1),
            ("epochs", epochs, 0),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if count < least:
                raise ValueError(f"{name}: must be {least} or more, got {count}")
        if not lr > 0:
            raise ValueError(f"lr: must be above 0, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: must be 0 or more and below 1, got {momentum}")
        self.virtual, self.epochs, self.batch_size, self.seed = virtual, epochs, batch_size, seed
        self.lr, self.optimizer = lr, SGD(momentum=momentum)

    def finish(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Calibrate the head."""
        model = numpy_of(arrays)
        head = _linear_head(model)
        pooled = pool(self._ask(grid, arrays))
        width = head["weight"].shape[1]
        if any(len(m.mean) != width for m in pooled.values()):
            raise StrategyError(f"CCVR: the head takes {width} features, but clients described others")
        calibrated = self._calibrate(head, *self._virtual_features(pooled))
        return record(model | {f"head.{k}": v.numpy() for k, v in calibrated.items()})

    def _ask(self, grid: Grid, arrays: ArrayRecord) -> list[Arrays]:
        """Statistics of all clients that answer."""
        question = RecordDict({self.arrayrecord_key: arrays})
        nodes = sorted(grid.get_node_ids())
        replies = list(grid.send_and_receive([Message(question, n, f"query.{QUERY}") for n in nodes]))
        given = [r.content.array_records for r in replies if r.has_content()]
        if not any(STATISTICS in records for records in given):
            reason = (
                str(replies[0].error.reason).strip().splitlines()[-1] if replies and not given else "none"
            )
            raise StrategyError(
                f"CCVR: none of {len(replies)} clients gave statistics for 'query.{QUERY}' ({reason}); their "
                "ClientApp must answer the queries of strategies.CCVRRule"
            )
        return [numpy_of(records[STATISTICS]) for records in given if STATISTICS in records]

    def _virtual_features(self, pooled: dict[int, ClassMoments]) -> tuple[Matrix, Matrix]:
        """Draws from each class's Gaussian, and their labels."""
        draws = [
            m.mean
            + generator(self.seed, "ccvr features", label).standard_normal((self.virtual, len(m.mean)))
            @ symmetric_root(unbiased(m))
            for label, m in pooled.items()
        ]
        return np.concatenate(draws), np.repeat(list(pooled), self.virtual)

    def _calibrate(self, head: Params, x: Matrix, y: Matrix) -> Params:
        """The head after SGD on the virtual features."""
        features, labels = torch.from_numpy(x).to(head["weight"].dtype), torch.from_numpy(y)
        rng = generator(self.seed, "ccvr batches")
        state = self.optimizer.init(head)
        for _ in range(self.epochs):
            order = torch.from_numpy(rng.permutation(len(labels)))
            for rows in order.split(self.batch_size):

                def loss(p: Params, rows: torch.Tensor = rows) -> torch.Tensor:
                    logits = functional.linear(features[rows], p["weight"], p.get("bias"))
                    return functional.cross_entropy(logits, labels[rows])

                grads, _ = backpropagate(loss, head)
                head, state = self.optimizer.step(head, grads, state, self.lr)
        return head


def pool(described: list[Arrays]) -> dict[int, ClassMoments]:
    """Moments of each class over all clients, in ascending order of class."""
    parts: dict[int, list[ClassMoments]] = {}
    for r in described:
        for label, count, mean, cov in zip(r["labels"], r["counts"], r["means"], r["covs"], strict=True):
            mean = mean.astype(np.float64)
            moments = ClassMoments(int(count), mean, unpack_triangle(cov.astype(np.float64), len(mean)))
            parts.setdefault(int(label), []).append(moments)
    return {label: merge(parts[label]) for label in sorted(parts)}


def unbiased(moments: ClassMoments) -> Matrix:
    """Covariance with divisor ``n - 1``; zero for a single row."""
    return moments.cov * (moments.count / max(moments.count - 1, 1))


def symmetric_root(cov: Matrix) -> Matrix:
    """The root that is itself symmetric: unlike others, it does not hang on the signs of eigenvectors."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _linear_head(model: Arrays) -> Params:
    """Copies of ``weight`` and ``bias`` of the last layer; raises StrategyError if it is no linear one."""
    head = {k.removeprefix("head."): v for k, v in model.items() if k.startswith("head.")}
    if not head.keys() <= {"weight", "bias"} or "weight" not in head or head["weight"].ndim != 2:
        shapes = ", ".join(f"head.{k} {v.shape}" for k, v in head.items()) or "nothing under 'head'"
        raise StrategyError(f"CCVR: calibrates a 'head' that is one linear layer, but the model has {shapes}")
    return {k: torch.tensor(v) for k, v in head.items()}
