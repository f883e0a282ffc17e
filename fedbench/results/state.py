"""State of a run between rounds, as one safetensors file and one JSON file: nested dicts, arrays, records."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Arrays = dict[str, npt.NDArray[Any]]

_RECORDS = {"config": ConfigRecord, "metrics": MetricRecord}


def flatten(tree: Any) -> tuple[Any, Arrays]:
    """Split nested dicts, lists and scalars with arrays in them into plain JSON and the arrays.

    Arrays that are equal to the byte are held once: clients that were sent the same keep the same.

    Parameters
    ----------
    tree : dict
        Values: dict (keys are text), list, str, int, float, bool, None, bytes, ndarray.

    Returns
    -------
    skeleton, arrays
        JSON in which ``{"array": key}`` and ``{"bytes": base64}`` stand for what is not JSON.
    """
    arrays: Arrays = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value).reshape(value.shape)
            about = f"{value.dtype} {value.shape} ".encode()
            key = hashlib.blake2b(about + value.tobytes(), digest_size=16).hexdigest()
            arrays[key] = value
            return {"array": key}
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, Mapping):
            return {"dict": {str(k): plain(v) for k, v in value.items()}}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value.item() if isinstance(value, np.generic) else value

    return plain(tree), arrays


def unflatten(skeleton: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    """What :func:`flatten` split."""
    if isinstance(skeleton, list):
        return [unflatten(v, arrays) for v in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "array" in skeleton:
        return arrays[skeleton["array"]]
    if "bytes" in skeleton:
        return base64.b64decode(skeleton["bytes"])
    return {k: unflatten(v, arrays) for k, v in skeleton["dict"].items()}


def from_records(records: RecordDict) -> dict[str, Any]:
    """A client's state as nested dicts."""
    tree: dict[str, Any] = {}
    for name, held in records.items():
        if isinstance(held, ArrayRecord):
            tree[name] = {"arrays": {k: v.numpy() for k, v in held.items()}}
        else:
            kind = "config" if isinstance(held, ConfigRecord) else "metrics"
            tree[name] = {kind: dict(held)}
    return tree


def to_records(tree: Mapping[str, Any]) -> RecordDict:
    """What :func:`from_records` took apart."""
    records = RecordDict()
    for name, held in tree.items():
        ((kind, values),) = held.items()
        if kind == "arrays":
            records[name] = ArrayRecord({k: Array(v) for k, v in values.items()})
        else:
            records[name] = _RECORDS[kind](values)
    return records
