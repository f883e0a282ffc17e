"""Scores of an evaluation: by domain, of every client, and of clients that never trained."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord

from clients.training import evaluate
from strategies.arrays import tensors_of
from strategies.functional import Stateless

from .bench import Bench
from .engine.grid import Exchange
from .errors import RunFailed

Sums = Mapping[str, float]
Scores = dict[str, dict[str, float]]
"""All scores by domain."""


class Evaluation:
    """Turns what clients report, and what the global model predicts, into scores.

    Parameters
    ----------
    bench : Bench
        The parts of a run.
    model : Stateless
        Where the global model is tested.
    """

    def __init__(self, bench: Bench, model: Stateless) -> None:
        self.federation, self.spec, self.personal = bench.federation, bench.spec, bench.personal
        self.task, self.model = bench.spec.task, model
        self._tests = {
            domain: self._batch(rows) for domain, rows in bench.federation.tests.items() if len(rows)
        }

    def point(
        self, server_round: int, arrays: ArrayRecord, exchanges: Sequence[Exchange]
    ) -> tuple[dict[str, Any], Scores]:
        """What a summary keeps of an evaluation, and all scores of each domain.

        A domain's score is the global model's on the domain's test rows. Where clients predict with models
        of their own, it is theirs on their own test rows of the domain; what the global model has on these
        very rows is then told, too, if there is one (``global``).

        Raises
        ------
        RunFailed
            If no client could test its own model.
        """
        sums = self._own_domains(exchanges) if self.personal else self._global_domains(arrays)
        if not sums:
            raise RunFailed(
                f"none of the {len(exchanges)} clients that evaluated round {server_round} could test its "
                "model on rows of its own"
            )
        domains = {d: self.task.scores(s) for d, s in sums.items()}
        clients, val = {}, dict.fromkeys(self.task.sums, 0.0)
        for e in exchanges:
            if e.error is None:
                for key in val:
                    val[key] += e.metrics[f"val_{key}"]
                if e.metrics["test_count"]:
                    mine = {key: e.metrics[f"test_{key}"] for key in self.task.sums}
                    clients[str(e.node)] = self.task.scores(mine)[self.task.headline]
        point = (
            {"round": server_round}
            | self._summed(domains, clients)
            | {
                "references": self._references(domains),
                "val": self.task.scores(val)[self.task.headline] if val["count"] else None,
                "reliability": self.task.reliability(_total(sums.values())),
                "global": self._global(arrays, [int(node) for node in clients]) if self.personal else None,
            }
        )
        return point, domains

    def new_clients(self, exchanges: Sequence[Exchange]) -> dict[str, dict[str, Any]]:
        """Scores of clients that have not trained, all their test rows together, by rows of support."""
        scores = {}
        for shots in self.spec.support:
            sums = _total(
                {key: e.metrics[f"support{shots}_{key}"] for key in self.task.sums}
                for e in exchanges
                if e.error is None
            )
            if sums and sums["count"]:
                scores[str(shots)] = self.task.scores(sums) | {"reliability": self.task.reliability(sums)}
        return scores

    def _summed(self, domains: Scores, clients: Mapping[str, float]) -> dict[str, Any]:
        """The headline by domain and client, and over them."""
        headline = self.task.headline
        values = [scores[headline] for scores in domains.values()]
        worst = min if self.task.higher_is_better else max
        return {
            "domains": {d: scores[headline] for d, scores in domains.items()},
            "avg": statistics.fmean(values),
            "std": statistics.pstdev(values),
            "loss": {d: scores["loss"] for d, scores in domains.items()},
            "clients": dict(clients),
            "mean_client": statistics.fmean(clients.values()) if clients else None,
            "worst_client": worst(clients.values()) if clients else None,
        }

    def _batch(self, rows: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        data = self.task.gather(self.spec.arrays, rows)
        data["weight"] = torch.ones(len(rows))
        return self.model.to_device(data)

    def _references(self, domains: Scores) -> dict[str, dict[str, float]]:
        """What the task's predictors without training score in each domain."""
        known = {name: f"{name}_{self.task.headline}" for name in self.task.references}
        return {
            name: {d: scores[key] for d, scores in domains.items()}
            for name, key in known.items()
            if all(key in scores for scores in domains.values())
        }

    def _global_domains(self, arrays: ArrayRecord) -> dict[str, Sums]:
        predict = partial(self.model.frozen, self.model.to_device(tensors_of(arrays)))
        return {d: evaluate(self.task, predict, b) for d, b in self._tests.items()}

    def _own_domains(self, exchanges: Sequence[Exchange]) -> dict[str, Sums]:
        found: dict[str, Sums] = {}
        for index, domain in enumerate(self.federation.dataset.domains):
            sums = {
                key: sum(e.metrics.get(f"test@{index}_{key}", 0.0) for e in exchanges)
                for key in self.task.sums
            }
            if sums["count"]:
                found[domain] = sums
        return found

    def _global(self, arrays: ArrayRecord, nodes: Sequence[int]) -> dict[str, Any] | None:
        """The global model on the test rows of clients; None where parts of it are the clients' own."""
        if not nodes or set(arrays) != set(self.model.shared):
            return None
        predict = partial(self.model.frozen, self.model.to_device(tensors_of(arrays)))
        clients: dict[str, float] = {}
        domains: dict[str, list[Sums]] = defaultdict(list)
        names, domain_of = self.federation.dataset.domains, self.federation.dataset.domain
        for node in nodes:
            test = self.spec.splits[node].test
            parts = {int(d): test[domain_of[test] == d] for d in np.unique(domain_of[test])}
            sums = {d: evaluate(self.task, predict, self._batch(rows)) for d, rows in parts.items()}
            clients[str(node)] = self.task.scores(_total(sums.values()))[self.task.headline]
            for d, found in sums.items():
                domains[names[d]].append(found)
        scores = {d: self.task.scores(_total(domains[d])) for d in names if d in domains}
        return self._summed(scores, clients)


def _total(each: Iterable[Sums]) -> dict[str, float]:
    """Sums added up."""
    total: dict[str, float] = defaultdict(float)
    for sums in each:
        for key, value in sums.items():
            total[key] += value
    return dict(total)
