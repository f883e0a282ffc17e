"""Sign flipping: the negative of an honest update, scaled.

Li, Xu, Chen, Giannakis and Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed
Learning from Heterogeneous Datasets", AAAI 2019, arXiv 1811.03761, among the attacks of its experiments.
"""

from __future__ import annotations

from strategies.local import Round, Upload

from .base import Attack, steered


class SignFlip(Attack):
    r"""Uploads :math:`x - s (y - x)` for the received :math:`x`, the honestly trained :math:`y` and a scale.

    The mean over clients of equal weight of which a share :math:`a` attacks goes backwards where
    :math:`s > (1 - a) / a`, if honest updates agree.

    Parameters
    ----------
    scale : float
        The factor :math:`s`, above 0.
    """

    def __init__(self, scale: float = 4.0) -> None:
        if not scale > 0:
            raise ValueError(f"scale: must be above 0, got {scale}")
        self.scale = scale

    def corrupt(self, upload: Upload, round: Round) -> Upload:
        """The model as far on the other side of the received one."""
        return steered(upload, round, -self.scale)
