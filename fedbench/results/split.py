"""What a summary says of a split."""

from __future__ import annotations

from typing import Any

import numpy as np

from scenarios import Federation

LISTED = 1_000
"""Clients that a summary and a picture show one by one; more are described together."""


def describe_split(federation: Federation) -> list[dict[str, Any]] | dict[str, Any]:
    """Domain and training rows of every client, or of more than ``LISTED`` clients, how they are spread.

    Returns
    -------
    list of dict, or dict
        Each client's ``domain`` and ``rows``; or the number of ``clients``, and for each of the ``domains``
        its ``clients``, their ``rows`` together, and the ``smallest``, ``median`` and ``largest`` of them.
    """
    sizes, domain, names = federation.sizes, federation.clients.domain, federation.domains.names
    if len(sizes) <= LISTED:
        return [
            {"domain": name, "rows": rows}
            for name, rows in zip(federation.domains, sizes.tolist(), strict=True)
        ]
    spread = {}
    for index in np.unique(domain).tolist():
        rows = sizes[domain == index]
        spread[names[index]] = {
            "clients": len(rows),
            "rows": int(rows.sum()),
            "smallest": int(rows.min()),
            "median": float(np.median(rows)),
            "largest": int(rows.max()),
        }
    return {"clients": len(sizes), "domains": spread}
