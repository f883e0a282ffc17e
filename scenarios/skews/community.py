"""Clients that are communities of a graph."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from scenarios.federation import Dataset, Parts, Rows, ScenarioError
from scenarios.skews.base import Holdings, check_count, holdings


@dataclass(frozen=True)
class Community:
    """The graph's communities are found, and dealt to clients of about the same size.

    Few edges run between clients, and a client has classes, degrees and features of its own. Communities go,
    the largest first, to the client that has the fewest nodes yet, with all that is held out of them.

    Parameters
    ----------
    clients : int
        Number of clients.
    resolution : float
        Above 1, communities are more and smaller; below 1, fewer and larger.

    Notes
    -----
    Louvain's method (Blondel et al., "Fast unfolding of communities in large networks", 2008) by networkx, on
    the whole graph: its edges alone, those of held-out nodes included. Sizes count nodes to train on. It is
    plain Python: 10 to 20 s for the 20,000 to 40,000 nodes of facebook_pages and twitch; above 100,000, count
    in minutes and gigabytes.
    """

    clients: int = 10
    resolution: float = 1.0

    def __post_init__(self) -> None:
        check_count("clients", self.clients, 1)
        value = self.resolution
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"resolution: not a possible number, got {value!r}; use one above 0, such as 1")

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Divide all rows of ``pool``.

        Raises
        ------
        ScenarioError
            Where the data have no graph, or too few communities for the clients.
        """
        if "indptr" not in dataset.shared:
            raise ScenarioError(
                f"community: data '{dataset.name}' have no graph; use data that have one, such as cora "
                "or block_model, or another skew, such as label_skew"
            )
        community = _communities(dataset, self.resolution, rng)
        sizes = np.bincount(community[pool], minlength=int(community.max()) + 1)
        found = np.count_nonzero(sizes)
        if found < self.clients:
            raise ScenarioError(
                f"community: data '{dataset.name}' have {found} communities with rows to train on for "
                f"{self.clients} clients; raise resolution ({self.resolution}) or use fewer clients"
            )
        nodes = np.bincount(community)
        owner = np.full(len(sizes), -1, dtype=np.int64)
        # Those without a row to train on come last, so that everyone has some.
        for size, dealt in ((sizes, sizes > 0), (nodes, sizes == 0)):
            before = np.bincount(owner[owner >= 0], size[owner >= 0], minlength=self.clients)
            load = [(int(before[client]), client) for client in range(self.clients)]
            heapq.heapify(load)
            numbers = np.flatnonzero(dealt)
            for number in numbers[np.argsort(-size[numbers], kind="stable")].tolist():
                least, client = load[0]
                owner[number] = client
                heapq.heapreplace(load, (least + int(size[number]), client))
        owner = owner[community]
        held = holdings(dataset, Parts.gather(pool, owner[pool], self.clients))
        return replace(held, owner=owner)


def _communities(dataset: Dataset, resolution: float, rng: np.random.Generator) -> Rows:
    """Number of every node's community, shape (nodes,)."""
    import networkx as nx  # type: ignore[import-untyped]

    indptr, indices = dataset.shared["indptr"], dataset.shared["indices"]
    source = np.repeat(np.arange(len(dataset)), np.diff(indptr))
    once = source < indices
    graph = nx.Graph()
    graph.add_nodes_from(range(len(dataset)))
    graph.add_edges_from(zip(source[once].tolist(), indices[once].tolist(), strict=True))
    found = nx.community.louvain_communities(graph, resolution=resolution, seed=int(rng.integers(2**31)))
    community = np.empty(len(dataset), dtype=np.int64)
    for number, nodes in enumerate(found):
        community[list(nodes)] = number
    return community
