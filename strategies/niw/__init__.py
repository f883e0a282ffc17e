"""NIW-Meta and FedHB: hierarchical Bayesian personalisation, as pure functions on tensors.

Kim and Hospedales, arXiv 2306.09702 and 2305.04979. `posterior` has the model, `estimators` what a client
computes, `objective` and `server` how the prior learns, `fedhb` the block descent of FedHB, `adapt` what a
new client does with the prior.
"""

from .estimators import GGN, Descent, Fisher, Newton
from .posterior import Family, Gaussian, Prior, Quadratic, hyper_prior

__all__ = ["GGN", "Descent", "Family", "Fisher", "Gaussian", "Newton", "Prior", "Quadratic", "hyper_prior"]
