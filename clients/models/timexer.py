"""TimeXer, which forecasts a series from its own past and from the past of other series."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError

Mode = Literal["MS", "M", "S"]


class TimeXer(nn.Module):
    """Patches of the target attend to each other; one global token fetches what other series know.

    Wang et al., "TimeXer: Empowering Transformers for Time Series Forecasting with Exogenous Variables",
    NeurIPS 2024, arXiv 2402.19072, section 3. The paper's equations leave open what its released code
    settles, and this follows: calendar marks are further exogenous series, neither normalised nor added to
    tokens; the global token has no position code; patches skip the cross-attention and its norm; the head
    reads its tokens feature by feature; dropout acts on the forecast as well.

    In the notation of all classes here, a batch has B examples of S = ``seq_len`` steps, of which V series
    are forecast for T = ``horizon`` steps; each is cut into K = S / ``patch_len`` patches. There are E
    exogenous series, marks included, and D = ``d_model`` features a token.

    Parameters
    ----------
    shape : sequence of int
        ``(seq_len, channels)`` of the data's windows. The last channel is the target.
    horizon : int
        Steps to forecast.
    mode : {"MS", "M", "S"}
        ``MS``: the last channel is forecast, the others are exogenous (V = 1). No weight depends on their
        number, so that one set of weights serves clients with any. ``S``: the same for a single channel,
        with marks alone as exogenous series. ``M``: every channel is forecast, and is exogenous to all
        (V = channels); the global tokens ``en_embedding.glb_token`` alone depend on their number.
    patch_len : int
        Steps of a patch; patches do not overlap.
    d_model, n_heads, e_layers, d_ff : int
        Features of a token, attention heads, encoder layers, hidden units of their feed-forward networks.
    dropout : float
        The one rate of all dropout, in training alone.
    use_norm : bool
        Normalise each window and channel over time, and give the forecast the target's scale back.

    Raises
    ------
    ClientError
        If the data are no series, or do not fit ``mode`` and ``patch_len``, or ``d_model`` is odd or not a
        multiple of ``n_heads``.

    Notes
    -----
    Deviations, of which none changes a number: the position code has the K rows that are used instead of
    5000, and is not in ``state_dict``, so that no round sends it; a look-back that is not a multiple of
    ``patch_len`` is refused instead of losing its most recent steps, and a ``d_model`` that is not a
    multiple of ``n_heads`` instead of narrowing the heads; the decoder's inputs, which the code never
    reads, are no arguments.
    """

    def __init__(
        self,
        shape: Sequence[int],
        horizon: int,
        mode: Mode = "MS",
        patch_len: int = 24,
        d_model: int = 512,
        n_heads: int = 8,
        e_layers: int = 2,
        d_ff: int = 2048,
        dropout: float = 0.1,
        use_norm: bool = True,
    ) -> None:
        super().__init__()
        seq_len, channels = _series_shape(shape, mode)
        _check_widths(seq_len, patch_len, d_model, n_heads)
        self.mode, self.use_norm = mode, use_norm
        patches, series = seq_len // patch_len, channels if mode == "M" else 1
        self.en_embedding = PatchEmbedding(series, patches, patch_len, d_model, dropout)
        self.ex_embedding = VariateEmbedding(seq_len, d_model, dropout)
        self.encoder = Encoder(e_layers, d_model, n_heads, d_ff, dropout)
        linear = nn.Linear(d_model * (patches + 1), horizon)
        self.head = nn.Sequential(OrderedDict(linear=linear, dropout=nn.Dropout(dropout)))

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Forecast of shape (B, T, V), in the units of ``x``.

        Parameters
        ----------
        x : Tensor, shape (B, S, channels)
            Windows. In modes MS and S, of any number of channels, the target last.
        marks : Tensor, shape (B, S, any), optional
            Calendar features of the same steps.
        """
        series = x.transpose(1, 2)
        if self.use_norm:
            series, mean, scale = standardise(series)
        target, exogenous = (series, series) if self.mode == "M" else (series[:, -1:], series[:, :-1])
        if marks is not None:
            exogenous = torch.cat([exogenous, marks.transpose(1, 2)], 1)
        tokens = self.encoder(self.en_embedding(target), self.ex_embedding(exogenous))
        y = self.head(tokens.transpose(2, 3).flatten(2))  # entry d (K + 1) + k: feature d of token k
        if self.use_norm:
            V = target.shape[1]
            y = y * scale[:, -V:] + mean[:, -V:]
        return y.transpose(1, 2)


def standardise(series: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(x - mean) / sqrt(var + 1e-5)`` over the last axis, with ``mean`` and this root, which it keeps.

    The variance has the number of steps as divisor. No gradient goes through the mean.
    """
    mean = series.mean(-1, keepdim=True).detach()
    scale = (series.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return (series - mean) / scale, mean, scale


def position_code(rows: int, width: int) -> Tensor:
    """``sin(k w_i)`` in column 2i and ``cos(k w_i)`` in 2i + 1, with ``w_i = 10000^(-2i / width)``.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5; float32, as in TimeXer's code.
    """
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000) / width))
    angle = torch.arange(rows, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class PatchEmbedding(nn.Module):
    """Endogenous tokens: one for each patch, with its position, and last the series' global token.

    The global token is learned for each series of V, and shared by all examples.
    """

    position: Tensor

    def __init__(self, series: int, patches: int, patch_len: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.glb_token = nn.Parameter(torch.randn(1, series, 1, d_model))
        self.value_embedding = nn.Linear(patch_len, d_model, bias=False)
        self.register_buffer("position", position_code(patches, d_model), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: Tensor) -> Tensor:
        """(B, V, S) to (B, V, K + 1, D)."""
        patches = series.unflatten(-1, (-1, self.value_embedding.in_features))
        tokens = self.value_embedding(patches) + self.position
        return self.dropout(torch.cat([tokens, self.glb_token.expand(len(series), -1, -1, -1)], 2))


class VariateEmbedding(nn.Module):
    """Exogenous tokens: a whole series is one, by the same map for all, whatever their number and order."""

    def __init__(self, seq_len: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.value_embedding = nn.Linear(seq_len, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: Tensor) -> Tensor:
        """(B, E, S) to (B, E, D)."""
        return self.dropout(self.value_embedding(series))


class Encoder(nn.Module):
    """Layers that all see the same exogenous tokens, and a norm of what the last one gives."""

    def __init__(self, e_layers: int, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(d_model, n_heads, d_ff, dropout) for _ in range(e_layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, z: Tensor, ex: Tensor) -> Tensor:
        """Endogenous tokens (B, V, K + 1, D), given exogenous ones (B, E, D)."""
        for layer in self.layers:
            z = layer(z, ex)
        return self.norm(z)


class EncoderLayer(nn.Module):
    """Self-attention in each series, cross-attention of its global token alone, then a feed-forward network.

    What the global token learns of the exogenous series reaches the patches in the layer after, if there is
    one. Each part is added to its input and then normalised.
    """

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(d_model, n_heads, dropout)
        self.cross_attention = Attention(d_model, n_heads, dropout)
        self.conv1, self.conv2 = Pointwise(d_model, d_ff), Pointwise(d_ff, d_model)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, ex: Tensor) -> Tensor:
        """Endogenous tokens (B, V, K + 1, D), given exogenous ones (B, E, D)."""
        each = z.flatten(0, 1)
        z = self.norm1(z + self.dropout(self.self_attention(each, each).reshape(z.shape)))
        patches, g = z[:, :, :-1], z[:, :, -1]
        g = self.norm2(g + self.dropout(self.cross_attention(g, ex)))
        z = torch.cat([patches, g.unsqueeze(2)], 2)
        hidden = self.dropout(functional.gelu(self.conv1(z)))
        return self.norm3(z + self.dropout(self.conv2(hidden)))


class Attention(nn.Module):
    """``softmax(Q K^T / sqrt(D / heads)) V``, a head for each slice of the features; without a mask."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)
        self.n_heads, self.dropout = n_heads, dropout

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """(batch, queries, D) from a memory (batch, any, D); zeros are projected where it is empty."""
        q = self._heads(self.query_projection(queries))
        k = self._heads(self.key_projection(memory))
        v = self._heads(self.value_projection(memory))
        rate = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return self.out_projection(mixed.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Pointwise(nn.Linear):
    """A linear layer whose weight has the shape of a convolution's with a kernel of one step: (out, in, 1).

    It is no ``Conv1d``, because with kernels for each client those are slow, so cohorts do without them.
    """

    def __init__(self, width: int, next_width: int) -> None:
        super().__init__(width, next_width)
        self.weight = nn.Parameter(self.weight.detach().unsqueeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return functional.linear(x, self.weight.squeeze(-1), self.bias)


def _series_shape(shape: Sequence[int], mode: str) -> tuple[int, int]:
    if mode not in get_args(Mode):
        raise ClientError(f"mode: must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if len(shape) != 2:
        raise ClientError(
            f"client 'timexer' needs series (seq_len, channels), but the data give examples of shape "
            f"{tuple(shape)}; choose data of time series"
        )
    if mode == "S" and shape[1] != 1:
        raise ClientError(
            f"mode: S is for data of a single channel, but these have {shape[1]}; choose MS to forecast the "
            "last one, or M for all"
        )
    return shape[0], shape[1]


def _check_widths(seq_len: int, patch_len: int, d_model: int, n_heads: int) -> None:
    if patch_len < 1 or seq_len % patch_len:
        nearest = min(
            (n for n in range(1, seq_len + 1) if seq_len % n == 0), key=lambda n: abs(n - patch_len)
        )
        raise ClientError(
            f"patch_len: must divide the look-back of {seq_len} steps, got {patch_len}; nearest is {nearest}"
        )
    if n_heads < 1:
        raise ClientError(f"n_heads: must be 1 or more, got {n_heads}")
    multiple = math.lcm(2, n_heads)
    if d_model < 1 or d_model % multiple:
        raise ClientError(
            f"d_model: must be even, and a multiple of n_heads={n_heads}, got {d_model}; "
            f"{max(1, -(-d_model // multiple)) * multiple} would do"
        )
