import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from strategies.arrays import LazyArray, numpy_of, record, tensors_of

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}


def test_a_lazy_array_is_serialised_as_flower_does_it():
    for value in ARRAYS.values():
        lazy, plain = LazyArray(value), Array(value)
        for part in ("dtype", "shape", "stype", "data", "object_id"):
            assert getattr(lazy, part) == getattr(plain, part)
        assert lazy.deflate() == plain.deflate()


def test_nothing_is_serialised_before_somebody_reads_the_bytes():
    filled = record(ARRAYS)
    RecordDict({"arrays": filled}).array_records["arrays"]["w"].numpy()
    assert all("_data" not in vars(array) for array in filled.values())


def test_records_give_back_what_they_got_in_order():
    given = {"b": torch.tensor([1.0, 2.0]), **ARRAYS}
    for filled in (record(given), pickle.loads(pickle.dumps(record(given)))):
        assert list(filled) == ["b", "w", "n"]
        for key, value in numpy_of(filled).items():
            np.testing.assert_array_equal(value, np.asarray(given[key]))
        assert torch.equal(tensors_of(filled)["b"], given["b"])


def test_what_a_record_gives_cannot_be_changed_by_accident():
    filled = record(ARRAYS)
    filled["w"].numpy()[0] = 7  # Flower's q-FedAvg does so
    with pytest.raises(ValueError, match="read-only"):
        numpy_of(filled)["w"][0] = 7
    np.testing.assert_array_equal(filled["w"].numpy(), ARRAYS["w"])


def test_flowers_own_records_are_read_too():
    plain = ArrayRecord({k: Array(v) for k, v in ARRAYS.items()})
    np.testing.assert_array_equal(numpy_of(plain)["w"], ARRAYS["w"])
    assert torch.equal(tensors_of(plain)["w"], torch.from_numpy(ARRAYS["w"]))
