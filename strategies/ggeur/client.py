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
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from strategies.ggeur.augment import Augmented, GeometryPack, Policy, augment
from strategies.ggeur.geometry import Geometry
from strategies.ggeur.moments import class_moments, pack_triangle
from strategies.local import Action, DataRule, Examples
from strategies.seeding import generator

PACK, OPTIONS = "ggeur-pack", "ggeur-options"
"""Keys of the records that the server delivers and the client keeps."""


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
        """Queries ``ggeur_statistics`` (step A) and ``ggeur_deliver`` (before step D)."""
        return {"ggeur_statistics": self.statistics, "ggeur_deliver": self.deliver}

    def statistics(self, message: Message, context: Context, examples: Examples) -> Message:  # noqa: ARG002
        """Count, mean and packed covariance of every class with enough samples."""
        options = message.content.config_records["config"]
        dtype = np.dtype(str(options["wire-dtype"]))
        arrays: dict[str, Array] = {}
        for label, m in class_moments(examples.x, examples.y, int(options["n-min-upload"])).items():  # type: ignore[arg-type]
            arrays[f"count/{label}"] = Array(np.asarray(m.count, np.int64))
            arrays[f"mean/{label}"] = Array(m.mean.astype(dtype))
            arrays[f"cov/{label}"] = Array(pack_triangle(m.cov, dtype))
        content = RecordDict(
            {"moments": ArrayRecord(arrays), "config": ConfigRecord({"domain": examples.domain})}
        )
        return Message(content, reply_to=message)

    def deliver(self, message: Message, context: Context, examples: Examples) -> Message:
        """Keep the global geometry, and report what it makes of this client's data."""
        context.state[PACK] = message.content.array_records[PACK]
        context.state[OPTIONS] = message.content.config_records[OPTIONS]
        made = self._aligned(context, examples)
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
    arrays: dict[str, Any] = {k: v.numpy() for k, v in record.items()}
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
