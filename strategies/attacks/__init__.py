"""Attacks by clients: what a malicious one trains on, and what it sends in place of what it trained."""

from .base import Attack, attackers
from .gaussian_noise import GaussianNoise
from .label_flip import LabelFlip
from .model_replacement import ModelReplacement
from .sign_flip import SignFlip

__all__ = ["Attack", "GaussianNoise", "LabelFlip", "ModelReplacement", "SignFlip", "attackers"]
