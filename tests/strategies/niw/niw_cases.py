"""Priors and quadratic losses on which the NIW formulas are checked: the specification's and random ones."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Gamma, Wishart

from strategies.functional import Batch, Params
from strategies.niw import GGN, Prior, Quadratic
from strategies.niw.posterior import Family, from_scale

FAMILIES: tuple[Family, Family] = ("full", "diag")


def close(value: Any, expected: Any, tolerance: float = 1e-12) -> None:
    value, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (value, expected))
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden(family: Family) -> tuple[Prior, Quadratic]:
    """The inputs of the golden values, d = 2, as two tensors."""
    prior = from_scale(
        {"a": vector(0.0), "b": vector(0.5)}, {"a": vector(2.0), "b": vector(3.0)}, 6.0, 2.0, family
    )
    return prior, Quadratic({"a": vector(1.0), "b": vector(-2.0)}, {"a": vector(4.0), "b": vector(1.0)})


def flat(params: Params) -> Tensor:
    return torch.cat([v.flatten() for v in params.values()])


def random_case(seed: int, family: Family) -> tuple[Prior, Quadratic]:
    """A prior and a quadratic of d = 7, in a matrix and a vector."""
    g = torch.Generator().manual_seed(seed)

    def draw() -> Params:
        return {
            "w": torch.randn(2, 3, generator=g, dtype=torch.float64),
            "b": torch.randn(1, generator=g, dtype=torch.float64),
        }

    n0, l0 = 6.5 + 10 * float(torch.rand((), generator=g)), 0.5 + float(torch.rand((), generator=g))
    curvature = {k: (2 * v).exp() for k, v in draw().items()}
    return Prior(draw(), draw(), n0, l0, family), Quadratic(draw(), curvature)


def draws(prior: Prior, n: int) -> tuple[Tensor, Tensor]:
    """``n`` draws of ``mu`` (n, d) and ``Sigma`` (n, d, d)."""
    scale, d = flat(prior.scale), prior.d
    if prior.family == "full":
        precision = Wishart(torch.tensor(prior.n0, dtype=torch.float64), (1 / scale).diag()).sample((n,))
        sigma = torch.linalg.inv(precision)
    else:
        sigma = torch.diag_embed(1 / Gamma(prior.n0 / 2, scale / 2).sample((n,)))
    root = torch.linalg.cholesky(sigma) / prior.l0**0.5
    return flat(prior.m0) + (root @ torch.randn(n, d, 1, dtype=torch.float64))[..., 0], sigma


def gaussians(n: int, centres: Tensor, generator: torch.Generator, sigma: float = 1.0) -> Batch:
    """``n`` observations of each row of ``centres``, with standard deviation ``sigma``."""
    noise = torch.randn(len(centres), n, centres.shape[1], generator=generator, dtype=torch.float64)
    return {"x": centres[:, None] + sigma * noise}


def logits(params: Params, batch: Batch) -> Tensor:
    return batch["x"] @ params["weight"].T


def softmax_loss(params: Params, batch: Batch) -> Tensor:
    losses = torch.nn.functional.cross_entropy(logits(params, batch), batch["y"], reduction="none")
    return (losses * batch["weight"]).sum() if "weight" in batch else losses.sum()


HEAD = GGN(logits, chunk=256)


def head_case(seed: int, n: int, classes: int = 3, features: int = 4) -> tuple[Params, Batch]:
    """Weights of a linear head and rows for it."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=g, dtype=torch.float64)
    x = torch.randn(n, features, generator=g, dtype=torch.float64)
    return {"weight": weight}, {"x": x, "y": torch.randint(classes, (n,), generator=g)}
