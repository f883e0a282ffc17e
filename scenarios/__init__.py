"""What data each node holds: data sets, the skews that split them, and the federation that results."""

from scenarios.build import build_federation
from scenarios.federation import ClientSplit, ClientSplits, Dataset, Federation, Meta, ScenarioError

__all__ = [
    "ClientSplit",
    "ClientSplits",
    "Dataset",
    "Federation",
    "Meta",
    "ScenarioError",
    "build_federation",
]
