"""Federated methods for any Flower project: server strategies and their client halves.

Nothing here needs the rest of fedbench: flwr, torch and numpy are enough.
"""

from .client import RuleClient, weighted_cross_entropy
from .errors import StrategyError
from .fedprox import FedProxRule
from .ggeur import GGEUR, GGEURClient
from .local import DataRule, Examples, FineTune, LocalRule, Phase, Round, Upload
from .method import Method
from .optim import SGD, Adam
from .scaffold import Scaffold, ScaffoldRule
from .state import load_state_dict, state_dict

__all__ = [
    "GGEUR",
    "SGD",
    "Adam",
    "DataRule",
    "Examples",
    "FedProxRule",
    "FineTune",
    "GGEURClient",
    "LocalRule",
    "Method",
    "Phase",
    "Round",
    "RuleClient",
    "Scaffold",
    "ScaffoldRule",
    "StrategyError",
    "Upload",
    "load_state_dict",
    "state_dict",
    "weighted_cross_entropy",
]
