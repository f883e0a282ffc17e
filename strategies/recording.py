"""Functions of tensors, recorded as flat lists of operations once they have been called often.

``vmap`` and ``grad`` dispatch every operation through layers of Python, which for small models takes longer
than the operations themselves. A recording (``make_fx``) repeats the same operations without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .functional import Params

aten = torch.ops.aten

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node

_RECORD_AFTER = 200
"""Calls with the same shapes before a function is recorded, which takes as long as some hundred calls."""
_MOST_RECORDINGS = 4
"""Recordings of a function with the same shapes; where settings change all the time, none pays off."""

_QUICK: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.bmm.default: torch.bmm,
    aten.div.Tensor: torch.div,
    aten.expand.default: Tensor.expand,
    aten.mul.Tensor: torch.mul,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: Tensor.view,
}
"""The same operations by entrances that take a microsecond less, half the time of a small one."""

Groups = Mapping[str, Params]
"""Tensors by name, in named groups."""
Names = tuple[tuple[str, tuple[str, ...]], ...]


class Recorder:
    """Calls functions, from recordings of them where there are.

    What a recording depends on (names, shapes, types, settings read) is compared before each call.
    """

    def __init__(self) -> None:
        self._calls: Counter[Any] = Counter()
        self._recordings: dict[Any, list[_Recording]] = {}

    def call(
        self,
        name: Any,
        function: Callable[[Groups, Mapping[str, Any]], Groups],
        inputs: Groups,
        config: Mapping[str, Any],
        owned: Sequence[str] = (),
    ) -> dict[str, Params]:
        """``function(inputs, config)``.

        Parameters
        ----------
        name : hashable
            What, besides the inputs and what is read of ``config``, the result depends on.
        function : callable
            Pure; its outputs may be its inputs.
        inputs : groups of Tensor
            None stands in two places of the ``owned`` groups, nor in one and elsewhere.
        config : mapping
            Settings.
        owned : sequence of str
            Groups of inputs that the function may write its outputs of the same group and name to: the
            caller has no more use for them.
        """
        names = _names(inputs)
        leaves = [leaf for group in inputs.values() for leaf in group.values()]
        key = (name, names, tuple([leaf.shape for leaf in leaves]))
        recordings = self._recordings.setdefault(key, [])
        for recording in recordings:
            if recording.fits(leaves, config):
                return recording(leaves)
        self._calls[key] += 1
        if self._calls[key] <= _RECORD_AFTER or len(recordings) == _MOST_RECORDINGS:
            outputs = function(inputs, config)
            return {name: {k: v.contiguous() for k, v in group.items()} for name, group in outputs.items()}
        recordings.append(_Recording(function, names, leaves, config, owned))
        return recordings[-1](leaves)


class _Recording:
    """A recorded function, and what the recording depends on."""

    def __init__(
        self,
        function: Callable[[Groups, Mapping[str, Any]], Groups],
        names: Names,
        leaves: Sequence[Tensor],
        config: Mapping[str, Any],
        owned: Sequence[str],
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        watched = _Watched(config)
        self._outputs: Names = ()

        def flat(*leaves: Tensor) -> list[Tensor]:
            outputs = function(_grouped(names, leaves), watched)
            self._outputs = _names(outputs)
            return [leaf.contiguous() for group in outputs.values() for leaf in group.values()]

        # Clones, because a tensor that stands in two places would be recorded as one input.
        recorded = make_fx(flat)(*(leaf.clone() for leaf in leaves))
        inputs = [node for node in recorded.graph.nodes if node.op == "placeholder"]
        places = dict(zip(_flat_names(names), inputs, strict=True))
        reuse = [places.get(at) if at[0] in owned else None for at in _flat_names(self._outputs)]
        _simplify(recorded, leaves, reuse)
        self._run = recorded.forward
        self._needs = [(i, leaves[i].dtype) for i, node in enumerate(inputs) if node.users]
        self._config = watched.read

    def fits(self, leaves: Sequence[Tensor], config: Mapping[str, Any]) -> bool:
        """Whether the recording is of a call with such inputs, whose shapes are known to be right."""
        return all(leaves[i].dtype == dtype for i, dtype in self._needs) and all(
            config.get(k) == v for k, v in self._config.items()
        )

    def __call__(self, leaves: Sequence[Tensor]) -> dict[str, Params]:
        with torch.no_grad():
            return _grouped(self._outputs, self._run(*leaves))


class _Watched(Mapping[str, Any]):
    """A config that remembers what was read from it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        self.read[key] = self._config.get(key)
        return self._config[key]

    def __contains__(self, key: object) -> bool:
        self.read[str(key)] = self._config.get(str(key))
        return key in self._config

    def __iter__(self) -> Iterator[str]:
        self.read |= self._config
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def _names(groups: Groups) -> Names:
    return tuple([(name, tuple(group)) for name, group in groups.items()])


def _flat_names(names: Names) -> list[tuple[str, str]]:
    return [(name, key) for name, keys in names for key in keys]


def _grouped(names: Names, leaves: Sequence[Tensor]) -> dict[str, Params]:
    rest = iter(leaves)
    return {name: {key: next(rest) for key in keys} for name, keys in names}


def _simplify(recorded: GraphModule, leaves: Sequence[Tensor], reuse: Sequence[Node | None]) -> None:
    """Take out what changes nothing, and write outputs to inputs where allowed.

    ``reuse`` has, for each output, the input that it may overwrite.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(recorded).propagate(*leaves)
    graph = recorded.graph
    for node in list(graph.nodes):
        if (same := _unchanged(node)) is not None:
            node.replace_all_uses_with(same)
    graph.eliminate_dead_code()
    (results,) = graph.find_nodes(op="output")
    written = {place for place in reuse if place is not None}
    for result, place in zip(results.args[0], reuse, strict=True):
        if place is not None and _last_reads(graph, result, place):
            _write_to(graph, result, place, written)
    for node in graph.nodes:
        node.target = _QUICK.get(node.target, node.target)
    recorded.recompile()


def _unchanged(node: Any) -> Node | None:
    """The earlier node with the value of this one, if there is: ``vmap`` reshapes to the same shape."""
    if node.target == aten.transpose.int:
        before, *axes = node.args
        twice = before.target == node.target and list(before.args[1:]) == axes
        return before.args[0] if twice else None
    times_one = node.target == aten.mul.Scalar and node.args[1] == 1
    if times_one or node.target in {aten.expand.default, aten.view.default, aten._unsafe_view.default}:
        return node.args[0] if _alike(node, node.args[0]) else None
    return None


def _alike(one: Any, other: Any) -> bool:
    a, b = one.meta["tensor_meta"], other.meta["tensor_meta"]
    return (a.shape, a.stride, a.dtype) == (b.shape, b.stride, b.dtype)


def _last_reads(graph: Graph, result: Any, place: Any) -> bool:
    """Whether nothing reads an input, or a view of it, after an output is made from it."""
    if result is place or not _alike(result, place) or len(result.users) > 1:
        return False
    order = {node: i for i, node in enumerate(graph.nodes)}
    readers = [place]
    while readers:
        for reader in readers.pop().users:
            if order[reader] > order[result]:
                return False
            if _is_view(reader):
                readers.append(reader)
    return True


def _is_view(node: Any) -> bool:
    return getattr(node.target, "is_view", False) or node.target is aten._unsafe_view.default


def _seen(node: Any) -> Any:
    """What a view looks at."""
    while _is_view(node):
        node = node.args[0]
    return node


def _write_to(graph: Graph, result: Any, place: Any, written: Set[Node]) -> None:
    """Make an output in the memory of an input: in a product's own pass, where it is ``p - rate * x @ y``.

    The product is then made later, and so must not be of inputs that may have been ``written`` by then.
    """
    if result.target == aten.addcmul.default and result.args[0] is place:
        _, change, rate = result.args
        one_a_product = all(side == 1 for side in rate.meta["tensor_meta"].shape[1:])
        product = change.target == aten.bmm.default and len(change.users) == 1
        if product and one_a_product and not written & {_seen(factor) for factor in change.args}:
            with graph.inserting_before(result):
                scaled = graph.call_function(aten.mul.Tensor, (change.args[0], rate))
            result.target, result.args = aten.baddbmm_.default, (place, scaled, change.args[1])
            result.kwargs = {"alpha": result.kwargs.get("value", 1)}
            graph.erase_node(change)
        else:
            result.target = aten.addcmul_.default
