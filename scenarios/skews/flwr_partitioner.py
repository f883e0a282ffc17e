"""Any partitioner of Flower Datasets as a skew."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scenarios.federation import Dataset, Parts, Rows, ScenarioError
from scenarios.skews.base import Holdings, holdings, labels_of


@dataclass(frozen=True)
class FlwrPartitioner:
    """Divides rows with a class of ``flwr_datasets.partitioner``.

    The partitioner sees a table with the columns ``label``, ``domain`` (index) and ``row``, in random order,
    because several partitioners cut a class into consecutive blocks and would pass the order of the data on.

    Parameters
    ----------
    partitioner : str
        Class name, e.g. ``"PathologicalPartitioner"``.
    options : mapping
        Its arguments, except ``seed``, which is drawn from the seed of the run.
    """

    partitioner: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.partitioner, str) or not self.partitioner.isidentifier():
            raise ValueError(
                f"partitioner: not a class name, got {self.partitioner!r}; use e.g. 'PathologicalPartitioner'"
            )
        if not isinstance(self.options, Mapping):
            raise ValueError(  # noqa: TRY004 - options are refused with one kind of error throughout
                f"options: not a mapping, got {self.options!r}; use e.g. {{num_partitions: 10}}"
            )
        if "seed" in self.options:
            raise ValueError(
                f"options: 'seed' is not for you to set, got {self.options['seed']!r}; "
                "leave it out, it follows from the seed of the run"
            )

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Divide ``pool``; some partitioners leave rows out.

        Raises
        ------
        ValueError
            Where there is no such partitioner, or it does not take these options.
        ScenarioError
            Where the partitioner cannot divide these data.
        """
        import datasets  # slow to import, so only here
        from flwr_datasets import partitioner as library

        if self.partitioner not in library.__all__:
            raise ValueError(
                f"partitioner: unknown, got {self.partitioner!r}; use one of {sorted(library.__all__)}"
            )
        kind: Any = getattr(library, self.partitioner)
        taken = inspect.signature(kind).parameters
        options = dict(self.options)
        if "seed" in taken:
            options["seed"] = int(rng.integers(2**31))
        unknown = sorted(set(options) - set(taken))
        if unknown:
            known = [name for name in taken if name != "seed"]
            raise ValueError(f"options: {self.partitioner} does not take {unknown}; it takes {known}")

        rows = rng.permutation(pool)
        table = datasets.Dataset.from_dict(
            {"label": labels_of(dataset)[rows], "domain": dataset.domain[rows], "row": rows}
        )
        try:
            divide = kind(**options)
            divide.dataset = table
            parts = [divide.load_partition(part) for part in range(divide.num_partitions)]
        except (TypeError, ValueError) as error:
            raise ScenarioError(f"{self.partitioner} cannot divide data '{dataset.name}': {error}") from error
        return holdings(dataset, Parts.of(np.array(part["row"], dtype=np.int64) for part in parts))
