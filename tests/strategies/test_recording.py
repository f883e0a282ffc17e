"""Recorded functions: the same numbers, written where they may be and nowhere else."""

import pytest
import torch
from torch.func import grad, vmap

from strategies import recording
from strategies.recording import Recorder

CLIENTS, ROWS = 3, 4
SHAPES = {
    "chain": {"a": (5, 6), "b": (6, 2)},  # x (a b): the gradient of a is a product with b itself
    "layers": {"a": (5, 6), "b": (6, 2), "c": (2,)},
    "shared": {"a": (5, 5)},  # (x a) a
}


def loss(kind, p, x):
    if kind == "chain":
        y = x @ (p["a"] @ p["b"])
    elif kind == "layers":
        y = torch.relu(x @ p["a"]) @ p["b"] + p["c"]
    else:
        y = (x @ p["a"]) @ p["a"]
    return (y**2).mean()


def stepping(kind):
    def one(params, batch, rate):
        grads = grad(lambda p: loss(kind, p, batch["x"]))(params)
        return {k: torch.addcmul(v, grads[k], rate, value=-1) for k, v in params.items()}

    def step(inputs, config):
        moved = vmap(lambda p, b: one(p, b, config["rate"]))(inputs["params"], inputs["batch"])
        return {"params": moved}

    return step


def initial(kind):
    draws = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(CLIENTS, *shape, generator=draws, dtype=torch.float64)

    return {k: normal(*s) for k, s in SHAPES[kind].items()}, {"x": normal(ROWS, 5)}


def trained(kind, steps, owned):
    recorder = Recorder()
    params, batch = initial(kind)
    config = {"rate": torch.tensor(0.05, dtype=torch.float64)}
    for _ in range(steps):
        inputs = {"params": params, "batch": batch}
        params = recorder.call("step", stepping(kind), inputs, config, owned)["params"]
    return params


@pytest.mark.parametrize("kind", SHAPES)
def test_steps_that_write_to_their_inputs_are_the_same_steps(kind, monkeypatch):
    expected = trained(kind, 5, [])
    monkeypatch.setattr(recording, "_RECORD_AFTER", 1)
    torch.testing.assert_close(trained(kind, 5, ["params"]), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("owned", [[], ["params"]])
def test_only_what_is_owned_is_written_to(owned, monkeypatch):
    monkeypatch.setattr(recording, "_RECORD_AFTER", 0)
    params, batch = initial("layers")
    before = {k: v.clone() for k, v in params.items()}
    config = {"rate": torch.tensor(0.05, dtype=torch.float64)}
    inputs = {"params": params, "batch": batch}
    after = Recorder().call("step", stepping("layers"), inputs, config, owned)["params"]
    for k in params:
        assert (after[k].data_ptr() == params[k].data_ptr()) == bool(owned)
        assert torch.equal(params[k], before[k]) != bool(owned)
    assert torch.equal(batch["x"], initial("layers")[1]["x"])
