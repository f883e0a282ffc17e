"""Gaussian noise in place of an update.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, arXiv 1703.02757: the "Gaussian" Byzantine workers of its experiments propose vectors
drawn around 0, with a standard deviation of 200, in place of gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from strategies.local import Round, Upload

from .base import Attack


class GaussianNoise(Attack):
    r"""Uploads :math:`x + N(0, \sigma^2 I)` for the received :math:`x`: nothing of the training is in it.

    As in the paper, the noise stands in place of the update and is not added to it.

    Parameters
    ----------
    std : float
        The deviation :math:`\sigma` of each number, above 0. The paper's 200 is that of a gradient, which a
        learning rate follows; here nothing follows.
    """

    def __init__(self, std: float = 1.0) -> None:
        if not std > 0:
            raise ValueError(f"std: must be above 0, got {std}")
        self.std = std

    def corrupt(self, upload: Upload, round: Round) -> Upload:
        """The received model with noise on all parameters that training moves."""
        arrays = dict(upload.arrays)
        for k in sorted(arrays.keys() & round.trainable):
            x = round.received[k]
            # Drawn on the CPU, so that a GPU run has the same noise.
            noise = torch.randn(x.shape, generator=round.generator, dtype=x.dtype)
            arrays[k] = x + self.std * noise.to(x.device)
        return replace(upload, arrays=arrays)
