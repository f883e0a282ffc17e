"""A resident ``nn.Module`` as a pure function of its parameters, and two ways to differentiate one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import StrategyError

Params = dict[str, Tensor]
Batch = dict[str, Tensor]
Differentiate = Callable[[Callable[[Params], Tensor], Params], tuple[Params, Tensor]]


class Forward(Protocol):
    """A model as a pure function of its parameters."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Output of the model."""

    def embed(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Representation (what goes into the model's ``head``) and output."""


class Model(Forward, Protocol):
    """What a rule may do with the client's model. As it is, it is in training mode."""

    @property
    def frozen(self) -> Forward:
        """The same model in evaluation mode, which no call changes: a teacher, say."""


class Stateless:
    """A resident ``nn.Module`` as a pure function of its parameters and floating buffers.

    Parameters and floating buffers together are what a federation averages; integer buffers
    (``num_batches_tracked``) stay at the module's initial values. A module that a method has to cut in two
    has its last layer as attribute ``head``.

    Parameters
    ----------
    module : nn.Module
        The model.
    inputs : callable, optional
        ``inputs(batch)``: positional arguments of ``forward``; ``(batch["x"],)`` by default.
    device : torch device
        Where it computes.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Callable[[Batch], tuple[Tensor, ...]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module = module.to(device)
        self.inputs = inputs or (lambda batch: (batch["x"],))
        self.device = torch.device(device)
        names = {k: v for k, v in module.state_dict(keep_vars=True).items() if v.is_floating_point()}
        self.shared = tuple(names)
        self.trainable = frozenset(k for k, p in module.named_parameters() if p.requires_grad)
        self.head = frozenset(k for k in names if k.startswith("head."))
        self.norms = frozenset(
            f"{prefix}.{k}" if prefix else k
            for prefix, layer in module.named_modules()
            if "Norm" in type(layer).__name__
            for k in layer.state_dict()
        ) & frozenset(names)
        self._fixed = {k: b for k, b in module.named_buffers() if not b.is_floating_point()}
        self._dtypes = {k: v.dtype for k, v in module.state_dict().items()}
        self.has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())

    def initial(self) -> Params:
        """Copies of the module's own parameters and floating buffers."""
        state = self.module.state_dict()
        return {k: state[k].detach().clone() for k in self.shared}

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Output of the module at ``params``; BatchNorm in training mode updates ``params`` in place."""
        fixed = {k: v.clone() for k, v in self._fixed.items()}
        return functional_call(self.module, {**params, **fixed}, self.inputs(batch))

    def embed(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Representation (what goes into the module's ``head``) and output.

        Raises
        ------
        StrategyError
            If the module has no ``head``.
        """
        head = getattr(self.module, "head", None)
        if not isinstance(head, nn.Module):
            raise StrategyError(
                f"the method looks at representations, but {type(self.module).__name__} has no attribute "
                "'head'; give its last layer that name"
            )
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            output = self(params, batch)
        finally:
            handle.remove()
        return seen[0], output

    @property
    def frozen(self) -> Forward:
        """The same model in evaluation mode."""
        return _Frozen(self)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for the length of a block."""
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)

    def to_device(self, params: Mapping[str, Tensor]) -> Params:
        """Tensors on the model's device; those with a name of the model's, in the model's type.

        Flower's FedAdam, for one, hands float32 parameters back as float64.
        """
        return {k: v.to(self.device, self._dtypes.get(k, v.dtype)) for k, v in params.items()}


class _Frozen:
    def __init__(self, model: Stateless) -> None:
        self._model = model

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        with self._model.evaluating():
            return self._model(params, batch)

    def embed(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        with self._model.evaluating():
            return self._model.embed(params, batch)


def backpropagate(loss: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
    """Gradient and value of ``loss`` by ordinary autograd, which allows layers that write to buffers."""
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    value = loss(leaves)
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(leaves.items(), grads, strict=True)
    }, value.detach()


def differentiate_functionally(loss: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
    """Gradient and value of ``loss`` by ``torch.func``, which composes with ``vmap``."""
    return torch.func.grad_and_value(loss)(params)


def weighted_mean(rows: Tensor, batch: Batch) -> Tensor:
    """Mean of a value a row over the rows that are no padding; 0 where all are."""
    weight = batch["weight"]
    return (rows * (weight / weight.sum().clamp(min=1))).sum()
