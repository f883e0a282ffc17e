import pytest
import torch
from torch.func import grad, vmap

from strategies.optim import SGD, Adam, Clipped

CASES = [
    (SGD(), torch.optim.SGD, {}),
    (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    (SGD(momentum=0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD(weight_decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    (
        SGD(momentum=0.5, weight_decay=0.1, nesterov=True),
        torch.optim.SGD,
        {"momentum": 0.5, "weight_decay": 0.1, "nesterov": True},
    ),
    (Adam(), torch.optim.Adam, {}),
    (
        Adam(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
        torch.optim.Adam,
        {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    ),
    (Adam(weight_decay=0.1, decoupled=True), torch.optim.AdamW, {"weight_decay": 0.1}),
]
STEPS = 20


def net(dtype):
    generator = torch.Generator().manual_seed(7)
    shapes = {"a": (3, 5), "b": (5,), "c": (5, 2), "d": (2,)}
    return {k: torch.randn(shape, generator=generator).to(dtype) for k, shape in shapes.items()}


INITIAL = {dtype: net(dtype) for dtype in (torch.float32, torch.float64)}


def data(client, dtype):
    generator = torch.Generator().manual_seed(client)
    return torch.randn(6, 3, generator=generator).to(dtype), torch.randn(6, 2, generator=generator).to(dtype)


def loss(params, x, y):
    hidden = torch.tanh(x @ params["a"] + params["b"])
    return ((hidden @ params["c"] + params["d"] - y) ** 2).mean()


def by_torch(cls, options, lr, client, dtype):
    params = {k: p.requires_grad_() for k, p in net(dtype).items()}
    optimizer = cls(params.values(), lr=lr, **options)
    x, y = data(client, dtype)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(params, x, y).backward()
        optimizer.step()
    return {k: p.detach() for k, p in params.items()}


def by_us(optimizer, lr, x, y):
    params = INITIAL[x.dtype]
    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = optimizer.step(params, grad(loss)(params, x, y), state, lr)
    return params


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_twenty_steps_equal_those_of_torch(ours, theirs, options, dtype, tolerance):
    got = by_us(ours, 0.02, *data(0, dtype))
    for key, want in by_torch(theirs, options, 0.02, 0, dtype).items():
        torch.testing.assert_close(got[key], want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_a_cohort_with_a_learning_rate_each_equals_torch_one_by_one(ours, theirs, options):
    rates = [0.1, 0.02, 0.003]
    x, y = (torch.stack(parts) for parts in zip(*(data(k, torch.float64) for k in range(3)), strict=True))
    got = vmap(lambda lr, x, y: by_us(ours, lr, x, y))(torch.tensor(rates, dtype=torch.float64), x, y)
    for client, lr in enumerate(rates):
        for key, want in by_torch(theirs, options, lr, client, torch.float64).items():
            torch.testing.assert_close(got[key][client], want, rtol=0, atol=1e-12)


def test_adam_keeps_the_type_of_a_scalar_parameter_in_a_cohort():
    params = {"w": torch.ones(3)}
    adam = Adam()
    moved, _ = vmap(lambda p: adam.step(p, p, adam.init(p), 0.1))(params)
    assert moved["w"].dtype == torch.float32
    torch.testing.assert_close(moved["w"], torch.full((3,), 0.9))


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9, weight_decay=0.1), Adam()])
def test_a_step_leaves_its_arguments_alone(optimizer):
    params, grads = {"w": torch.ones(2)}, {"w": torch.ones(2)}
    state = optimizer.init(params)
    before = {k: {n: v.clone() for n, v in part.items()} for k, part in state.items()}
    optimizer.step(params, grads, state, 0.1)
    assert params["w"].tolist() == grads["w"].tolist() == [1, 1]
    assert all(torch.equal(state[k][n], v) for k, part in before.items() for n, v in part.items())


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_gradients_are_shortened_as_torch_does(norm):
    start = {"a": torch.tensor([1.0, -2.0]).double(), "b": torch.tensor([[3.0]]).double()}
    ours, theirs = dict(start), {k: v.clone().requires_grad_() for k, v in start.items()}
    clipped, optimizer = Clipped(SGD(momentum=0.9), norm), torch.optim.SGD(theirs.values(), 0.1, momentum=0.9)
    state = clipped.init(ours)
    for _ in range(4):
        ours, state = clipped.step(ours, {k: 2 * v for k, v in ours.items()}, state, 0.1)
        optimizer.zero_grad()
        sum((v**2).sum() for v in theirs.values()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), norm)
        optimizer.step()
    for k, v in ours.items():
        torch.testing.assert_close(v, theirs[k].detach(), rtol=0, atol=1e-12)
