"""GGEUR: geometric distribution alignment, as a strategy that wraps any other one."""

from .client import GGEURClient
from .server import GGEUR

__all__ = ["GGEUR", "GGEURClient"]
