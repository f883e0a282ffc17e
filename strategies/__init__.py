"""Federated methods for any Flower project: server strategies and their client halves.

Nothing here needs the rest of fedbench: flwr, torch and numpy are enough.
"""

from .errors import StrategyError
from .fedprox import FedProxRule
from .ggeur import GGEUR, GGEURClient
from .local import DataRule, Examples, LocalRule, Round, Upload

__all__ = [
    "GGEUR",
    "DataRule",
    "Examples",
    "FedProxRule",
    "GGEURClient",
    "LocalRule",
    "Round",
    "StrategyError",
    "Upload",
]
