"""Random streams that depend on what they are for, never on when they are asked for."""

from __future__ import annotations

import zlib

import numpy as np


def _sequence(seed: int, purpose: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    if seed < 0:
        raise ValueError(f"seed: must not be negative, got {seed}")
    for key in keys:
        # SeedSequence cuts integers into 32-bit words: a larger key would equal a pair of smaller ones.
        if not 0 <= key < 2**32:
            raise ValueError(f"keys: each must lie in [0, 2**32), got {keys}")
    # crc32, because Python's own hash of a string changes from process to process.
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *keys))


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Return the NumPy stream of one purpose.

    Parameters
    ----------
    seed : int
        Seed of the run, not negative.
    purpose : str
        What the numbers are for, e.g. ``"ggeur own"``.
    *keys : int
        Round, node, class, or whatever else tells two draws of the same purpose apart.

    Returns
    -------
    numpy.random.Generator
        The same stream for the same arguments in every process; independent for any others.

    Raises
    ------
    ValueError
        If the seed or a key is negative, or a key needs more than 32 bits.
    """
    return np.random.default_rng(_sequence(seed, purpose, keys))


def torch_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return a 63-bit seed for ``torch.Generator.manual_seed``.

    Takes and raises the same as `generator`. 63 bits, because torch reads seeds as signed integers.
    """
    return int(_sequence(seed, purpose, keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
