"""GGEUR's client half: upload class statistics once, then train on the aligned set.

Steps A and D of GGEUR (arXiv 2503.06457). Every option comes with the server's messages, so that the
server half alone is configured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from strategies.arrays import LazyArray, numpy_of
from strategies.errors import StrategyError
from strategies.ggeur import secure_sum
from strategies.ggeur.augment import Augmented, GeometryPack, Policy, augment
from strategies.ggeur.geometry import Geometry
from strategies.ggeur.moments import ClassMoments, class_moments, pack_triangle, to_sums
from strategies.ggeur.privacy import GaussianMechanism, private_moments
from strategies.local import Action, DataRule, Examples
from strategies.seeding import generator

PACK, OPTIONS = "ggeur-pack", "ggeur-options"
"""Keys of the records that the server delivers and the client keeps."""
SECRET, SPENT = "ggeur-secret", "ggeur-spent"
"""Keys of what a client keeps between messages: its key for one secure sum, its privacy budget's end."""


class GGEURClient(DataRule):
    """Client half of :class:`strategies.ggeur.GGEUR`.

    Parameters
    ----------
    cache_bytes : int
        Aligned sets are kept in this process up to this size and made anew, equal to the bit, beyond it.
    """

    def __init__(self, cache_bytes: int = 2 << 30) -> None:
        self.cache_bytes = cache_bytes
        self._sets: OrderedDict[tuple[str, int, int], Augmented] = OrderedDict()
        self._packs: dict[str, GeometryPack] = {}

    def actions(self) -> Mapping[str, Action]:
        """Queries ``ggeur_keys``, ``ggeur_statistics`` (step A) and ``ggeur_deliver`` (before step D)."""
        return {
            "ggeur_keys": self.keys,
            "ggeur_statistics": self.statistics,
            "ggeur_deliver": self.deliver,
        }

    def keys(self, message: Message, context: Context, examples: Examples) -> Message:
        """Public half of a fresh key for the secure sum, whose private half stays here."""
        private = secure_sum.new_key()
        context.state[SECRET] = ConfigRecord({"private": private})
        told = ConfigRecord({"public": secure_sum.public_key(private), "domain": examples.domain})
        return Message(RecordDict({"config": told}), reply_to=message)

    def statistics(self, message: Message, context: Context, examples: Examples) -> Message:
        """Count, mean and packed covariance of every class with enough samples, or their masked sums."""
        options = dict(message.content.config_records["config"])
        moments = _moments(options, context, examples)
        arrays = ArrayRecord()
        if "keys" in options:
            arrays["masked"] = LazyArray(_masked(moments, options, context, examples.x.shape[1]))
        else:
            dtype = np.dtype(str(options["wire-dtype"]))
            for label, m in moments.items():
                arrays[f"count/{label}"] = LazyArray(np.asarray(m.count, np.int64))
                arrays[f"mean/{label}"] = LazyArray(m.mean.astype(dtype))
                arrays[f"cov/{label}"] = LazyArray(pack_triangle(m.cov, dtype))
        content = RecordDict({"moments": arrays, "config": ConfigRecord({"domain": examples.domain})})
        return Message(content, reply_to=message)

    def deliver(self, message: Message, context: Context, examples: Examples) -> Message:
        """Keep the global geometry, and report what it makes of this client's data."""
        context.state[PACK] = message.content.array_records[PACK]
        context.state[OPTIONS] = message.content.config_records[OPTIONS]
        made = self._aligned(context, examples)
        if "quiet" in context.state.config_records[OPTIONS]:  # exact counts would tell what was hidden
            return Message(RecordDict(), reply_to=message)
        numbers: dict[str, Any] = {
            "num-examples": len(examples.y),
            "ggeur_originals": int((~made.is_synthetic).sum()),
            "ggeur_synthetic": int(made.is_synthetic.sum()),
            "ggeur_noise_ratio": float(made.rms_noise_ratio),
        }
        return Message(RecordDict({"metrics": MetricRecord(numbers)}), reply_to=message)

    def training_set(self, context: Context, examples: Examples) -> Examples:
        """Originals and synthetic vectors, or the originals alone before any delivery."""
        if PACK not in context.state:
            return examples
        made = self._aligned(context, examples)
        weighting = context.state.config_records[OPTIONS]["weighting"]
        weight = {"augmented": None, "original": len(examples.y), "uniform": 1}[str(weighting)]
        return replace(examples, x=made.x, y=made.y, weight=weight)

    def _aligned(self, context: Context, examples: Examples) -> Augmented:
        options = dict(context.state.config_records[OPTIONS])
        key = (str(options["hash"]), examples.node, examples.seed)
        if key in self._sets:
            self._sets.move_to_end(key)
            return self._sets[key]
        made = align(self._pack(context, options), options, examples)
        self._sets[key] = made
        while len(self._sets) > 1 and sum(s.x.nbytes for s in self._sets.values()) > self.cache_bytes:
            self._sets.popitem(last=False)
        return made

    def _pack(self, context: Context, options: Mapping[str, Any]) -> GeometryPack:
        digest = str(options["hash"])
        if digest not in self._packs:
            self._packs = {digest: unpack(context.state.array_records[PACK], options)}
        return self._packs[digest]


def _moments(options: Mapping[str, Any], context: Context, examples: Examples) -> dict[int, ClassMoments]:
    """Step A: each class's moments, with noise where the server asks for privacy.

    Raises
    ------
    StrategyError
        If a label is not among the classes, or the privacy budget is spent.
    """
    x, y, least = examples.x, examples.y, int(options["n-min-upload"])
    # Errors reach the server: they must not tell which label it is.
    if "classes" in options and y.size and not 0 <= y.min() <= y.max() < options["classes"]:
        raise StrategyError(
            f"GGEUR: a client has labels outside 0..{options['classes'] - 1}; set classes to their number"
        )
    if "epsilon" not in options:
        return class_moments(x, y, least)
    if SPENT in context.state:  # the same noise at another scale would cancel
        raise StrategyError("GGEUR: a client answers one private query; its privacy budget is spent")
    mechanism = GaussianMechanism(options["epsilon"], options["delta"], options["clip"])
    context.state[SPENT] = ConfigRecord({"epsilon": mechanism.epsilon, "delta": mechanism.delta})

    def rng_for(label: int) -> np.random.Generator:
        return generator(examples.seed, "ggeur privacy", examples.node, label)

    return private_moments(x, y, options["classes"], mechanism, rng_for, least)


def _masked(
    moments: Mapping[int, ClassMoments], options: Mapping[str, Any], context: Context, dim: int
) -> secure_sum.Integers:
    """Sums of every class, zero where there are none, under masks that cancel over the group.

    Raises
    ------
    StrategyError
        If this client has no key, because it was not asked for one or has used it.
    """
    if SECRET not in context.state:
        raise StrategyError("GGEUR: a client has no key for the secure sum; ask for 'ggeur_keys' first")
    private: Any = context.state.config_records[SECRET]["private"]
    del context.state[SECRET]  # two uploads under the same masks could be subtracted
    sums = np.zeros((options["classes"], (dim + 1) * (dim + 2) // 2))
    for label, m in moments.items():
        sums[label] = to_sums(m)
    return secure_sum.mask(secure_sum.encode(sums, len(options["keys"])), private, options["keys"])


def align(pack: GeometryPack, options: Mapping[str, Any], examples: Examples) -> Augmented:
    """Step D for one client: a pure function of the pack, the options and (seed, node, class, stage)."""

    def rng_for(label: int, stage: str) -> np.random.Generator:
        return generator(examples.seed, f"ggeur {stage}", examples.node, label)

    policy = Policy(
        str(options["policy"]),
        options["own"] if options["own"] >= 0 else None,
        options["foreign"],
        options["total"] if options["total"] >= 0 else None,
        options["drops"],
    )
    return augment(
        examples.x,
        examples.y,
        pack,
        policy,
        domain=examples.domain,
        rng_for=rng_for,
        scale=options["scale"],
        jitter=options["jitter"],
    )


def unpack(record: ArrayRecord, options: Mapping[str, Any]) -> GeometryPack:
    """The delivered records as a :class:`GeometryPack`."""
    arrays = numpy_of(record)
    geometries, means, prototypes = {}, {}, {}
    for label, count in zip(options["classes"], options["counts"], strict=True):
        geometries[label] = Geometry(arrays[f"values/{label}"], arrays[f"vectors/{label}"], count)
        if f"mean/{label}" in arrays:
            means[label] = arrays[f"mean/{label}"]
    for key, array in arrays.items():
        kind, *rest = key.split("/", 2)
        if kind == "prototype":
            label, domain = rest
            prototypes[domain, int(label)] = array
    return GeometryPack(geometries, prototypes, means or None)
