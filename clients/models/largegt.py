"""LargeGT: each node of a large graph attends to a few sampled nodes, and to a codebook of all nodes.

Dwivedi, Liu, Luu, Bresson, Shah and Zhao, "Graph Transformers for Large Graphs", arXiv 2312.11109, as its
released code computes it. Written from a description in formulas and shapes (cited as "spec" with its
sections), not from that code; the state has the names that it has there, but for ``head``, which is
``fc_out`` there. Neighbour lists and hop features, which are made before training, are in
:mod:`clients.models.largegt_sampling`.

Sizes in docstrings: B seeds, which are the nodes to classify, of a graph of n nodes; K nodes in a seed's
list, and T = 3K tokens; F features of a node; C classes; d = ``hidden_dim``, h = ``heads``, g =
``global_dim``, m = ``num_centroids``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError
from strategies.pooling import Pooling

from .comirec import at_least
from .norms import Norm, norm_of_vectors

ConvType = Literal["local", "global", "full"]
CodebookInit = Literal["consistent", "reference"]

DECAY = 0.99
"""Share that an update of the codebook keeps of its running counts and sums."""
EPS = 1e-5
"""Added to running counts, so that none is 0."""
MOST_CODES = 2**15 - 1
"""Codes of nodes are held as 16-bit integers."""


class LargeGT(nn.Module):
    """A local and a global branch side by side, then a feed-forward network (spec 3).

    Parameters
    ----------
    shape : sequence of int
        ``(F,)``.
    classes : int
        C.
    nodes : int, optional
        n, to keep the code of every node in ``convs.0.c_idx``, from which the bias of the global branch is
        then counted, as in the authors' code; not used by a ``local`` model. ``None``: see Notes.
    conv_type : {"full", "local", "global"}
        Both branches, or one of them, without the parameters of the other.
    hidden_dim, heads : int
        d, which is also the width of each head, and h.
    global_dim : int
        g, which is also the width of the positional encodings.
    num_centroids : int
        m, at most 32767.
    dropout : float
        Rate in the input networks and in the one after the branches.
    local_dropout, attn_dropout : float
        Rate in the local branch, and of the attention to codes. There, the first is not an option.
    norm : {"batch", "layer", "none"}
        Layers of ``fc_in`` and ``ffs``; no others are affected.
    codebook_init : {"consistent", "reference"}
        ``reference``: codes, their running sums and counts start independently, and the counts at 0, so that
        for hundreds of steps one code takes nearly all nodes (spec 3.4, measured there). ``consistent``:
        counts are 1 and the rest is equal.
    dead : bool
        Have the parameters, too, that the authors' code makes and never uses, so as to compare sizes or load
        its weights. They get no gradient.

    Raises
    ------
    ClientError
        If the data are no feature vectors, or an option has no such value.

    Notes
    -----
    In ``strategies.functional.Stateless`` integer buffers are the module's own in every call, so that no
    step could change ``c_idx``; nor should it be averaged, since clients have different nodes. So, without
    ``nodes``, the number of nodes of a code is estimated by the codebook's running count of seeds, plus
    1e-5, which is pooled with the codebook; its scale cancels in the softmax. This is a deviation and ours
    (RECONSTRUCTED), as is that counts can be given in the call, say those of all clients together (spec 9)
    from :meth:`assign` and :func:`code_counts`.

    No round sends ``c_idx``: it is an integer buffer. All of the codebook is floating buffers, and so is
    averaged with the parameters, for which :attr:`pooling` has the right rule (spec 9). Its own normalisation
    is no layer that FedBN keeps.

    The gradient of ``lin_key_g`` is that of the loss, with the codes attended to. In the authors' code it is
    taken with codes that the same step's update has overwritten by then (the spec's norm of all gradients is
    met with those, and only with those).

    A ``global`` model that starts consistently says nearly the same of all seeds at first. BatchNorm in
    ``ffs`` enlarges what differs, so that the loss falls, but its running moments do not keep up, and
    evaluation is at chance for many epochs; ``norm="layer"`` does better (four blocks of spec 10, 40 epochs,
    one run each: accuracy 0.99 instead of 0.77). Beside a local branch, BatchNorm does well from the start.

    Other deviations: dead parameters are left out unless asked for, and even then ``fc_in`` of a ``local``
    model is not run just for its running statistics; nodes are assigned without a matrix of one-hot codes;
    a batch may have a single seed in evaluation; the switch ``node_only_readout``, off there and wrong, is
    left out, as are GOAT's ``skip``, ``beta`` and ``concat``, which have no effect.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        nodes: int | None = None,
        *,
        conv_type: ConvType = "full",
        hidden_dim: int = 256,
        heads: int = 2,
        global_dim: int = 64,
        num_centroids: int = 4096,
        dropout: float = 0.5,
        local_dropout: float = 0.3,
        attn_dropout: float = 0.0,
        norm: Norm = "batch",
        codebook_init: CodebookInit = "consistent",
        dead: bool = False,
    ) -> None:
        super().__init__()
        features = _features(shape)
        sizes = {"classes": classes, "hidden_dim": hidden_dim, "heads": heads, "global_dim": global_dim}
        at_least(1, {**sizes, "num_centroids": num_centroids, "nodes": 1 if nodes is None else nodes})
        if num_centroids > MOST_CODES:
            raise ClientError(f"num_centroids: must be {MOST_CODES} or less, got {num_centroids}")
        for name, rate in (
            ("dropout", dropout),
            ("local_dropout", local_dropout),
            ("attn_dropout", attn_dropout),
        ):
            if not 0 <= rate < 1:
                raise ClientError(f"{name}: must be at least 0 and below 1, got {rate}")
        _one_of("conv_type", conv_type, get_args(ConvType))
        _one_of("norm", norm, get_args(Norm))
        _one_of("codebook_init", codebook_init, get_args(CodebookInit))

        self.conv_type: ConvType = conv_type
        d, wide = hidden_dim, heads * hidden_dim
        if conv_type != "local" or dead:
            self.fc_in = nn.Sequential(
                nn.Linear(features, d),
                norm_of_vectors(norm, d),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(d, d),
            )
        if conv_type != "global" or dead:
            self.fc_in_seq = nn.Sequential(
                nn.Linear(features, d), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d, d)
            )
        layer = Layer(conv_type, d, heads, global_dim, local_dropout, attn_dropout, dead)
        if conv_type != "local":
            layer.add_codebook(Codebook(num_centroids, 2 * global_dim, codebook_init), nodes)
        self.convs = nn.ModuleList([layer])
        self.ffs = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(wide * (2 if conv_type == "full" else 1), wide),
                    norm_of_vectors(norm, wide),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(wide, d),
                    norm_of_vectors(norm, d),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                )
            ]
        )
        self.head = nn.Linear(d, classes)

    @property
    def pooling(self) -> Pooling | None:
        """How a federation averages the codebook: codes are ratios of averaged sums and counts."""
        if self.conv_type == "local":
            return None
        return Pooling(_derived, {CODEBOOK + "bn.running_var": CODEBOOK + "bn.running_mean"})

    def forward(
        self,
        seq: Tensor | None,
        x: Tensor | None = None,
        pos_enc: Tensor | None = None,
        batch_idx: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Logits of shape (B, C). In training, the codebook is updated with the seeds.

        Parameters
        ----------
        seq : Tensor, shape (B, T, F)
            Tokens of each seed, its own features first; see
            :func:`clients.models.largegt_sampling.token_sequence`. Not used by ``conv_type="global"``.
        x : Tensor, shape (B, F)
            Features of the seeds. Neither this nor what follows is used by ``conv_type="local"``.
        pos_enc : Tensor, shape (B, g)
            Positional encodings of the seeds.
        batch_idx : Tensor of int64, shape (B,), optional
            Numbers of the seeds, below ``nodes``; needed in training with ``nodes``, and only then used.
        counts : Tensor, shape (m,), optional
            Number of nodes of each code, up to a common factor, not all 0; in place of the model's own.

        Raises
        ------
        ClientError
            If an input that the branches use is missing, or ``pos_enc`` is not as wide as ``global_dim``.
        """
        layer, parts = self.layer, []
        if self.conv_type != "global":
            if seq is None:
                raise ClientError(
                    f"seq: conv_type={self.conv_type} needs token sequences (B, 3K, F), got none"
                )
            parts.append(layer.local_module(self.fc_in_seq(seq)))
        if self.conv_type != "local":
            u = self._queries(x, pos_enc)
            parts.append(layer.attend_to_codes(u, counts))
            if self.training:
                layer.update(u, batch_idx)
        return self.head(self.ffs[0](torch.cat(parts, -1)))

    @property
    def layer(self) -> Layer:
        """The one layer, which has the branches."""
        (layer,) = self.convs
        assert isinstance(layer, Layer)
        return layer

    @torch.no_grad()
    def assign(self, x: Tensor, pos_enc: Tensor) -> Tensor:
        """Nearest code of each node, in evaluation mode: (B, F) and (B, g) to (B,) of int16.

        With :func:`code_counts`, what ``c_idx`` would hold if all nodes were assigned at once: an option of
        the spec (7.8, 9), not what the authors' code does.

        Raises
        ------
        ClientError
            As :meth:`forward`, or if the model has no codebook.
        """
        if self.conv_type == "local":
            raise ClientError("conv_type: a local model has no codes to assign; choose full or global")
        was_training = self.training
        self.eval()
        try:
            vq = self.layer.vq
            return vq.nearest(vq.bn(self._queries(x, pos_enc))).to(torch.int16)
        finally:
            self.train(was_training)

    def _queries(self, x: Tensor | None, pos_enc: Tensor | None) -> Tensor:
        """Projected features beside positional encodings, ``u`` of spec 3.3: (B, 2g)."""
        layer = self.layer
        if x is None or pos_enc is None:
            missing = "x" if x is None else "pos_enc"
            raise ClientError(f"{missing}: conv_type={self.conv_type} needs it for every seed, got none")
        if pos_enc.shape[-1] != layer.lin_proj_g.out_features:
            raise ClientError(
                f"pos_enc: must have global_dim={layer.lin_proj_g.out_features} columns, "
                f"got {pos_enc.shape[-1]}; set global_dim to the width of the data's encodings"
            )
        return torch.cat([layer.lin_proj_g(self.fc_in(x)), pos_enc], -1)


class Layer(nn.Module):
    """The two branches, by the names of the authors' code, where they are one module."""

    c_idx: Tensor | None

    def __init__(
        self,
        conv_type: ConvType,
        d: int,
        heads: int,
        g: int,
        local_dropout: float,
        attn_dropout: float,
        dead: bool,
    ) -> None:
        super().__init__()
        self.heads, self.g, self.attn_dropout = heads, g, attn_dropout
        wide = heads * d
        if dead:
            for name in ("lin_key", "lin_query", "lin_value", "lin_skip"):
                self.add_module(name, nn.Linear(d, wide))
        if conv_type != "global" or dead:
            self.local_module = LocalModule(d, heads, local_dropout, dead)
        if conv_type != "local":
            self.lin_proj_g = nn.Linear(d, g)
            self.lin_key_g = nn.Linear(2 * g, wide)
            self.lin_query_g = nn.Linear(2 * g, wide)
            self.lin_value_g = nn.Linear(g, wide)

    def add_codebook(self, codebook: Codebook, nodes: int | None) -> None:
        """The codes that the global branch attends to; with ``nodes``, a random one for each node."""
        self.vq = codebook
        codes = None if nodes is None else torch.randint(codebook.size, (nodes,), dtype=torch.int16)
        self.register_buffer("c_idx", codes)

    def attend_to_codes(self, u: Tensor, counts: Tensor | None) -> Tensor:
        """Each head's ``softmax(q k^T / sqrt(d) + log counts) v`` (spec 3.3): (B, 2g) to (B, h d).

        It is attention to all nodes, each replaced by its code. Keys are of whole codes, values of their
        feature half. No gradient goes into codes.
        """
        codes = self.vq.codes()
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
            for projected in (
                self.lin_query_g(u),
                self.lin_key_g(codes),
                self.lin_value_g(codes[:, : self.g]),
            )
        )
        bias = (self.counts() if counts is None else counts).to(u.dtype).log()
        mixed = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias.expand(len(u), -1),
            dropout_p=self.attn_dropout if self.training else 0.0,
        )
        return mixed[0].transpose(0, 1).flatten(1)

    def counts(self) -> Tensor:
        """Number of nodes of each code, (m,): counted, or estimated up to a factor; see :class:`LargeGT`."""
        if self.c_idx is None:
            return self.vq._ema_cluster_size + EPS
        return code_counts(self.c_idx, self.vq.size)

    @torch.no_grad()
    def update(self, u: Tensor, batch_idx: Tensor | None) -> None:
        """Move codes to the seeds' (B, 2g), and note which code each seed has now."""
        assigned = self.vq.update(u)
        if self.c_idx is None:
            return
        if batch_idx is None:
            raise ClientError(
                "batch_idx: a model with nodes needs the numbers of the seeds in training, got none"
            )
        self.c_idx[batch_idx] = assigned.to(self.c_idx.dtype)


class LocalModule(nn.Module):
    """Attention among a seed's tokens, without positions, and a weighted sum of what they say (spec 3.2)."""

    def __init__(self, d: int, heads: int, dropout: float, dead: bool) -> None:
        super().__init__()
        self.att_embeddings_nope = nn.Linear(d, d)
        self.layers = nn.ModuleList([EncoderLayer(d, heads, dropout)])
        self.final_ln = nn.LayerNorm(heads * d)
        if dead:
            self.out_proj = nn.Linear(2 * d, d)
        self.attn_layer = nn.Linear(2 * heads * d, 1)
        self.apply(_initialise)

    def forward(self, seq: Tensor) -> Tensor:
        """(B, T, d) to (B, h d): the seed's token, plus the others in the shares ``softmax_j(w o_j)``.

        There, ``w`` is the second half of ``attn_layer``'s weight. The first half, times the seed's token, is
        the same for all j, as the bias is, so that both cancel; the half is not multiplied out here.
        """
        o = self.att_embeddings_nope(seq)
        for layer in self.layers:
            o = layer(o)
        o = self.final_ln(o)
        seed, others = o[:, :1], o[:, 1:]
        weight = self.attn_layer.weight[:, o.shape[-1] :]
        shares = functional.linear(others, weight, self.attn_layer.bias).softmax(1)
        return (seed + shares.mT @ others).squeeze(1)


class EncoderLayer(nn.Module):
    """Pre-norm attention without a feed-forward network, which widens tokens from d to h d.

    The residual path is a learned projection of the tokens as they are before the norm.
    """

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(d)
        self.self_attention = SelfAttention(d, heads)
        self.res_proj = nn.Linear(d, heads * d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, d) to (B, T, h d)."""
        attended = self.dropout(self.self_attention(self.self_attention_norm(tokens)))
        return self.dropout(self.res_proj(tokens) + attended)


class SelfAttention(nn.Module):
    """``softmax(q k^T / sqrt(d)) v`` of all tokens, in heads of width d each; no mask and no dropout."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        wide = heads * d
        self.linear_q = nn.Linear(d, wide)
        self.linear_k = nn.Linear(d, wide)
        self.linear_v = nn.Linear(d, wide)
        self.output_layer = nn.Linear(wide, wide)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, d) to (B, T, h d)."""
        q, k, v = (
            linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.output_layer(mixed.transpose(1, 2).flatten(2))


class Moments(nn.BatchNorm1d):
    """The codebook's own normalisation: without weights, and by its name no norm that FedBN would keep."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS, momentum=0.1, affine=False)


class Codebook(nn.Module):
    """m codes that follow the seeds by exponential moving averages (spec 3.4).

    All of it is floating buffers, and written in place, so that it goes where a federation's buffers go:
    ``_embedding`` (m, 2g), codes in the space of normalised seeds; ``_embedding_output``, the same in the
    seeds' own space; ``_ema_cluster_size`` (m,), running counts; ``_ema_w`` (m, 2g), running sums.

    Parameters
    ----------
    size, width : int
        m and 2g.
    init : {"consistent", "reference"}
        See :class:`LargeGT`.
    """

    _embedding: Tensor
    _embedding_output: Tensor
    _ema_cluster_size: Tensor
    _ema_w: Tensor

    def __init__(self, size: int, width: int, init: CodebookInit) -> None:
        super().__init__()
        self.size = size
        codes = torch.randn(size, width)
        same = init == "consistent"
        self.register_buffer("_embedding", codes)
        self.register_buffer("_embedding_output", codes.clone() if same else torch.randn(size, width))
        self.register_buffer("_ema_cluster_size", torch.ones(size) if same else torch.zeros(size))
        self.register_buffer("_ema_w", codes.clone() if same else torch.randn(size, width))
        self.bn = Moments(width)

    def codes(self) -> Tensor:
        """A copy, (m, 2g), of the codes to attend to, which the update of the same step leaves as it is."""
        return self._embedding_output.clone()

    def nearest(self, u: Tensor) -> Tensor:
        """The code next to each normalised seed, the first of several: (B, 2g) to (B,) of int64."""
        codes = self._embedding
        return torch.addmm(codes.square().sum(1), u, codes.mT, alpha=-2).argmin(1)

    @torch.no_grad()
    def update(self, u: Tensor) -> Tensor:
        """Assign seeds (B, 2g), at least 2, and move the codes; gives the codes of the seeds, (B,).

        Normalised by the batch's own moments, whose running averages are updated, a seed has the nearest
        code ``a``; with counts N and sums D of the codes' seeds,

        ``n <- 0.99 n + 0.01 N``, smoothed to ``(n + 1e-5) / (sum n + 1e-5 m) sum n``, which is kept;
        ``W <- 0.99 W + 0.01 D``; ``E <- W / n``; and E in the seeds' space, by the running moments.
        """
        u = self.bn(u)
        assigned = self.nearest(u)
        n, W = self._ema_cluster_size, self._ema_w
        N = torch.zeros_like(n).index_add_(0, assigned, n.new_ones(len(u)))
        D = torch.zeros_like(W).index_add_(0, assigned, u)
        n.mul_(DECAY).add_(N, alpha=1 - DECAY)
        total = n.sum()
        n.add_(EPS).mul_(total / (total + self.size * EPS))
        W.mul_(DECAY).add_(D, alpha=1 - DECAY)
        self._embedding.copy_(W / n[:, None])
        self._embedding_output.copy_(
            _denormalised(self._embedding, self.bn.running_mean, self.bn.running_var)
        )
        return assigned


def code_counts(codes: Tensor, size: int) -> Tensor:
    """Number of nodes of each of ``size`` codes: (n,) of any integers to (size,) of int64."""
    return torch.bincount(codes, minlength=size)


class CodebookStatistics(NamedTuple):
    """What a codebook is made of: its weighted means over clients are the pooled codebook's (spec 9).

    All are float64, for the variance to be right.

    Attributes
    ----------
    counts : Tensor, shape (m,)
        Running count of each code's seeds.
    sums : Tensor, shape (m, 2g)
        Running sum of each code's normalised seeds.
    mean, square : Tensor, shape (2g,)
        Running mean of seeds, and of their squares (running variance plus squared mean).
    """

    counts: Tensor
    sums: Tensor
    mean: Tensor
    square: Tensor


CODEBOOK = "convs.0.vq."
"""Where the codebook is in the state of a :class:`LargeGT`."""


def codebook_statistics(state: Mapping[str, Tensor], prefix: str = CODEBOOK) -> CodebookStatistics:
    """Statistics of the codebook in a model's state, whose names begin with ``prefix``."""
    counts, sums, mean, var = (
        state[prefix + name].double()
        for name in ("_ema_cluster_size", "_ema_w", "bn.running_mean", "bn.running_var")
    )
    return CodebookStatistics(counts, sums, mean, var + mean.square())


def codebook_state(
    statistics: CodebookStatistics, prefix: str = CODEBOOK, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The codebook's floating buffers, by their names in a model's state.

    Codes are ``sums / counts``; a code without any count is where ``sums`` is.
    """
    counts, sums, mean, square = statistics
    var = (square - mean.square()).clamp(min=0)
    codes = sums / torch.where(counts > 0, counts, 1.0)[:, None]
    buffers = {
        "_embedding": codes,
        "_embedding_output": _denormalised(codes, mean, var),
        "_ema_cluster_size": counts,
        "_ema_w": sums,
        "bn.running_mean": mean,
        "bn.running_var": var,
    }
    return {prefix + name: buffer.to(dtype) for name, buffer in buffers.items()}


def _derived(averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The codebook that averaged statistics make; nothing where a method keeps some of them with clients."""
    names = ("_ema_cluster_size", "_ema_w", "bn.running_mean", "bn.running_var")
    if any(CODEBOOK + name not in averaged for name in names):
        return {}
    statistics = codebook_statistics(averaged)
    # A server's own steps, and noise, may leave counts below 0, whose logarithms the attention takes.
    return codebook_state(statistics._replace(counts=statistics.counts.clamp(min=0)))


def pool_codebooks(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float], prefix: str = CODEBOOK
) -> dict[str, Tensor]:
    """One codebook of several clients', by name, to replace the averaged one in the averaged state.

    Counts and sums are averaged, and codes are their ratio, not the mean of codes; the variance is that
    within clients plus that of their means. A code must be the same cluster at all clients, so they must
    have started from one codebook in this round. Sums are pooled as they are, although each client
    normalised its seeds by moments of its own; so does the spec (9).

    Parameters
    ----------
    states : sequence of mapping
        State of each client's model, at least one.
    weights : sequence of float
        What each counts for, up to a common factor: its number of training nodes, say.
    prefix : str
        What names of the codebook begin with.

    Raises
    ------
    ClientError
        If there is not one weight for each state, or weights are negative or add up to 0.
    """
    if not states or len(weights) != len(states):
        raise ClientError(f"weights: must be one for each of {len(states)} codebooks, got {len(weights)}")
    if min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ClientError(f"weights: must not be negative, and have a sum above 0, got {[*weights]}")
    shares = [weight / sum(weights) for weight in weights]
    each = [codebook_statistics(state, prefix) for state in states]
    pooled = CodebookStatistics(
        *(
            torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)
            for values in zip(*each, strict=True)
        )
    )
    return codebook_state(pooled, prefix, states[0][prefix + "_ema_w"].dtype)


def _denormalised(codes: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
    assert mean is not None
    assert var is not None
    return codes * (var + EPS).sqrt() + mean


def _initialise(layer: nn.Module) -> None:
    """Linear layers of the local branch; torch's own start is kept for the others."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


def _features(shape: Sequence[int]) -> int:
    if len(shape) != 1:
        raise ClientError(
            f"client 'largegt' needs nodes with feature vectors (features,), but the data give examples of "
            f"shape {tuple(shape)}; choose data of a graph"
        )
    at_least(1, {"shape": shape[0]})
    return shape[0]


def _one_of(name: str, value: str, values: Sequence[str]) -> None:
    if value not in values:
        raise ClientError(f"{name}: must be one of {', '.join(values)}, got {value!r}")
