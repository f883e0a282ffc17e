"""Clients' states over budget go to a file and come back as they were."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fedbench.engine.states import ClientState, ClientStates

BUDGET = 200_000


def state(partition, version=0, size=None):
    rng = np.random.default_rng([partition, version])
    size = int(rng.integers(0, 2_000)) if size is None else size
    return ClientState(rng.bytes(size), frozenset([version, 10 + partition % 7]))


@pytest.fixture
def states(tmp_path):
    made = ClientStates(BUDGET, tmp_path)
    yield made
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_a_few_states_need_no_file(states, tmp_path):
    states[3] = ClientState(b"three")
    states[1] = ClientState(b"")
    assert states[3] == ClientState(b"three", frozenset())
    assert list(states.items()) == [(1, ClientState(b"")), (3, ClientState(b"three"))]
    assert (len(states), 1 in states, 2 in states, states.get(2)) == (2, True, False, None)
    with pytest.raises(KeyError, match="2"):
        states[2]
    assert list(tmp_path.iterdir()) == []


def test_thousands_over_budget_behave_as_a_dict_does(states, tmp_path):
    rng, expected = np.random.default_rng(0), {}
    for step in range(12_000):
        partition, deed = int(rng.integers(3_000)), rng.random()
        if deed < 0.6:
            states[partition] = expected[partition] = state(partition, step)
        elif deed < 0.8:
            assert states.get(partition) == expected.get(partition)
        elif deed < 0.9:
            assert states.pop(partition) == expected.pop(partition, None)
        else:
            assert (partition in states) == (partition in expected)
        assert states.memory_bytes <= BUDGET
        assert len(states) == len(expected)
    assert len(expected) > 1_500
    assert sum(s.size for s in expected.values()) > 5 * BUDGET
    assert list(tmp_path.iterdir())
    assert list(states) == sorted(expected)
    assert dict(states.items()) == expected
    assert states.tags == frozenset().union(*(s.tags for s in expected.values()))
    for partition, kept in expected.items():
        assert states.pop(partition) == kept
    assert (len(states), states.memory_bytes, states.tags) == (0, 0, frozenset())


def test_the_one_not_used_for_longest_goes(tmp_path):
    one = ClientState(bytes(1_000))
    with_two = ClientStates(2 * one.size, tmp_path)
    with_two[0] = with_two[1] = one
    assert with_two[0] == one  # used, so that 1 is now the older one
    with_two[2] = one
    assert (sorted(with_two._resident), with_two._spilled) == ([0, 2], 1)
    assert with_two[1] == one
    assert sorted(with_two._resident) == [1, 2]
    with_two.close()


def test_what_is_larger_than_the_budget_stays_in_the_file(states):
    large = state(5, size=3 * BUDGET)
    states[1] = state(1)
    states[5] = large
    assert states[5] == large
    assert states[1] == state(1)
    assert states.memory_bytes == state(1).size
    states[5] = state(5)
    assert states[5] == state(5)
    assert len(states) == 2


def test_memory_is_bounded_and_iteration_does_not_load_all(tmp_path):
    budget = 2_000_000
    states = ClientStates(budget, tmp_path)
    tracemalloc.start()
    for partition in range(3_000):
        states[partition] = ClientState(bytes([partition % 256]) * 10_000)
    assert all(s.packed[0] == p % 256 and len(s.packed) == 10_000 for p, s in states.items())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(states) == 3_000
    assert peak < budget + 500_000
    states.close()


def test_states_may_change_while_they_are_gone_through(states):
    for partition in range(1_000):
        states[partition] = state(partition)
    seen = []
    for partition, kept in states.items():
        seen.append(partition)
        assert kept == state(partition)
        states[partition] = state(partition, 1)
        states.pop(partition + 500)
    assert seen == list(range(500))


def test_after_clear_it_is_as_new(states, tmp_path):
    for again in range(2):
        for partition in range(1_000):
            states[partition] = state(partition, again)
        assert len(list(tmp_path.iterdir())) == 1
        states.clear()
        assert (len(states), list(states), states.memory_bytes, 5 in states) == (0, [], 0, False)
        assert list(tmp_path.iterdir()) == []


def test_the_file_goes_with_its_owner_and_with_the_process(tmp_path):
    made = ClientStates(0, tmp_path)
    made[1] = ClientState(b"x")
    assert made[1] == ClientState(b"x")
    assert len(list(tmp_path.iterdir())) == 1
    del made
    assert list(tmp_path.iterdir()) == []
    code = (
        "import sys; from fedbench.engine.states import ClientState, ClientStates\n"
        "s = ClientStates(0, sys.argv[1]); s[1] = ClientState(b'x'); raise RuntimeError('stopped')"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "RuntimeError: stopped"
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_no_negative_number():
    with pytest.raises(ValueError, match=r"^budget: must be 0 or more, got -1"):
        ClientStates(-1)
