"""Sums over clients of which the server sees the total alone: pairwise masks that cancel.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section
4.0.1, masking with one-time pads. Every two clients agree on a secret (X25519), stretch it to a stream
(HKDF-SHA256, then ChaCha20), and one adds what the other subtracts, in integers mod 2^64: each upload is
uniformly random by itself, and the masks cancel in the sum.

Without the paper's secret shares and double masks: where a client drops out between the two messages the
sum is lost, and has to be asked for anew. Without its signatures: the server carries the keys, so that it
must be one that follows the protocol, curious as it may be. And a total hides a client no better than the
others' uploads do: if they all side with the server, they can take theirs off.

Keys come from the system's source of randomness, not from the run's seed, which the server knows. No result
depends on them: what is left after the masks is the same integer sum to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from strategies.errors import StrategyError

Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.uint64]

FRACTION_BITS = 32
"""Fixed point: steps of 2^-32, about 2.3e-10, and totals between -2^31 and 2^31, about 2.1e9."""


def new_key() -> bytes:
    """A fresh private key; it masks one upload and must then be forgotten, or two could be subtracted."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """What a client tells the others of its key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def encode(values: Float64, clients: int) -> Integers:
    """Fixed-point integers mod 2^64, of which ``clients`` many can be added.

    Raises
    ------
    StrategyError
        If a value is so large that the sum could pass the range.
    """
    limit = 2.0 ** (63 - FRACTION_BITS) / clients
    if not (np.abs(values) < limit).all():
        raise StrategyError(
            f"GGEUR: a client's class sums pass {limit:.3g}, all that secure sums of {clients} clients can "
            "hold; scale the features down or set secure=false"
        )
    return np.rint(values * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def mask(values: Integers, private: bytes, keys: Sequence[bytes]) -> Integers:
    """Values plus this client's masks.

    Parameters
    ----------
    values : ndarray of uint64, shape (rows, width)
        From `encode`.
    private : bytes
        This client's key.
    keys : sequence of bytes
        Public keys of the group, this client's among them. Of two clients, the one with the lower key adds.

    Raises
    ------
    StrategyError
        If the keys are not those of a group of two or more with this client in it.
    """
    own = public_key(private)
    if len(keys) < 2 or len(set(keys)) < len(keys) or own not in keys:
        raise StrategyError(
            "GGEUR: the keys for the secure sum are not those of two or more clients, this one among them"
        )
    masked = values.copy()
    for other in keys:
        if other == own:
            continue
        stream = _stream(private, own, other)
        for row in masked:
            pad = np.frombuffer(stream(row.nbytes), "<u8")
            row += pad if own < other else -pad  # both wrap around
    return masked


def total(uploads: Iterable[Integers]) -> Float64:
    """Sum of masked uploads, of a whole group, as numbers again."""
    first, *rest = uploads
    summed = first.copy()
    for upload in rest:
        summed += upload  # wraps around
    return summed.view(np.int64) / 2.0**FRACTION_BITS


def _stream(private: bytes, own: bytes, other: bytes) -> Callable[[int], bytes]:
    """Function that gives the next so many bytes of the stream that two clients share."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other))
    low, high = sorted((own, other))
    key = HKDF(SHA256(), 32, salt=None, info=b"ggeur secure sum" + low + high).derive(secret)
    # A key serves one stream, so that the nonce may be the same for all.
    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return lambda size: encryptor.update(bytes(size))
