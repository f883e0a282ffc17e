"""NIW-Meta and FedHB: hierarchical Bayesian personalisation.

Kim and Hospedales, arXiv 2306.09702 and 2305.04979. As pure functions on tensors: `posterior` has the model,
`estimators` what a client computes, `objective` and `server` how the prior learns, `fedhb` the block descent
of FedHB, `adapt` what a new client does with the prior. `strategy` and `rule` put them around any other
method, on the server and on its clients.
"""

from .estimators import GGN, Descent, Fisher, Newton
from .posterior import Family, Gaussian, Prior, Quadratic, hyper_prior
from .rule import FedHBRule, NIWRule
from .strategy import FedHB, NIWMeta

__all__ = [
    "GGN",
    "Descent",
    "Family",
    "FedHB",
    "FedHBRule",
    "Fisher",
    "Gaussian",
    "NIWMeta",
    "NIWRule",
    "Newton",
    "Prior",
    "Quadratic",
    "hyper_prior",
]
