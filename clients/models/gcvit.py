"""GC ViT: windows that look at themselves take turns with windows that are asked by the whole image.

Hatamizadeh, Yin, Heinrich, Kautz and Molchanov, "Global Context Vision Transformers", ICML 2023, arXiv
2206.09959; names in quotes below are its paragraphs. Written from a description in formulas and shapes, not
from the authors' code, whose licence is non-commercial; parameters have the names that they have there.

Sizes in docstrings: ``B`` images of side ``R`` pixels; a stage's maps have side ``r`` and ``C`` channels and
are cut into ``n = (r / w)^2`` windows of side ``w``, each with ``N = w^2`` tokens; ``h`` heads. Maps are
channels last but inside convolutions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError

from .shapes import image_shape


class Variant(NamedTuple):
    """Hyper-parameters of a published size: see :class:`GCViT`."""

    dim: int
    depths: Sequence[int]
    heads: Sequence[int]
    mlp_ratio: float
    drop_path: float
    layer_scale: float = 0.0


VARIANTS = {
    "micro": Variant(16, (2, 2, 2, 2), (1, 2, 4, 8), 2, 0.1),
    "xxt": Variant(64, (2, 2, 6, 2), (2, 4, 8, 16), 3, 0.2),
    "xt": Variant(64, (3, 4, 6, 5), (2, 4, 8, 16), 3, 0.2),
    "t": Variant(64, (3, 4, 19, 5), (2, 4, 8, 16), 3, 0.2),
    "t2": Variant(64, (3, 4, 29, 5), (2, 4, 8, 16), 3, 0.25),
    "s": Variant(96, (3, 4, 19, 5), (3, 6, 12, 24), 2, 0.3, 1e-5),
    "s2": Variant(96, (3, 4, 23, 5), (3, 6, 12, 24), 3, 0.35, 1e-5),
    "b": Variant(128, (3, 4, 19, 5), (4, 8, 16, 32), 2, 0.5, 1e-5),
    "l": Variant(192, (3, 4, 19, 5), (6, 12, 24, 48), 2, 0.5, 1e-5),
}
"""The authors' eight sizes, and ``micro`` for CPUs: 480,338 parameters on 64x64 colour images, 4 classes."""


class GCViT(nn.Module):
    """Stem, four stages, LayerNorm, mean over the map, linear head.

    Options that are ``None`` are the variant's.

    Parameters
    ----------
    shape : sequence of int
        ``(channels, R, R)``, R a multiple of 32 pixels, to which the model is then bound. At R = 32 windows
        of three stages hold a single token, so it is better to enlarge such images to 64.
    classes : int
        Number of classes.
    variant : {"micro", "xxt", "xt", "t", "t2", "s", "s2", "b", "l"}
        Where options come from that are not given. ``l`` tuned at 384 and 512 pixels had ``drop_path=0.1``.
    dim : int, optional
        Channels of the first stage, at least 4; each stage has twice those of the one before.
    depths, heads : sequence of int, optional
        Blocks, and attention heads, of each stage.
    windows : sequence of int, optional
        Window side of each stage, in tokens: the stage's side over a power of two. R/32, R/32, R/16 and R/32
        by default, so that the last two stages have one window.
    mlp_ratio : float, optional
        Hidden width of a block's MLP, in units of the stage's channels.
    drop_path : float, optional
        Probability that a residual branch of the last block is left out in training, below 1; it grows
        linearly from 0 at the first block.
    layer_scale : float, optional
        Initial factor of each channel of a residual branch; 0: no such factors.
    qkv_bias : bool
        Bias of the projections to queries, keys and values.

    Raises
    ------
    ClientError
        If images or options do not fit the architecture.

    Notes
    -----
    Down-sampling stands at the end of a stage, as in the authors' code. Deviations from that code: dropout
    inside blocks, which is 0 in all published settings, is left out; indices of relative positions are no
    part of the state, so that they are neither sent nor averaged.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        variant: str = "micro",
        *,
        dim: int | None = None,
        depths: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        windows: Sequence[int] | None = None,
        mlp_ratio: float | None = None,
        drop_path: float | None = None,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        channels, side = _side(shape)
        if variant not in VARIANTS:
            raise ClientError(f"client 'gcvit' has no variant '{variant}', only {', '.join(VARIANTS)}")
        given = zip(Variant._fields, (dim, depths, heads, mlp_ratio, drop_path, layer_scale), strict=True)
        v = VARIANTS[variant]._replace(**{k: o for k, o in given if o is not None})  # type: ignore[arg-type]
        windows = (side // 32, side // 32, side // 16, side // 32) if windows is None else windows
        _check(v, side, windows)

        self.patch_embed = Stem(channels, v.dim)
        blocks = sum(v.depths)
        rates = iter([v.drop_path * k / max(blocks - 1, 1) for k in range(blocks)])
        self.levels = nn.Sequential()
        for i in range(4):
            width = v.dim * 2**i
            query = GlobalQuery(width, v.heads[i], side // 2 ** (i + 2), windows[i])
            hidden = int(width * v.mlp_ratio)
            block = partial(Block, width, v.heads[i], windows[i], hidden, v.layer_scale, qkv_bias)
            stage = [block(drop_path=next(rates), is_global=j % 2 == 1) for j in range(v.depths[i])]
            self.levels.append(Stage(query, stage, Downsample(width, 2 * width) if i < 3 else None))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """What the head is given, the mean of the normalised last map: (B, channels, R, R) to (B, 8 dim)."""
        return self.norm(self.levels(self.patch_embed(x))).mean((1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (B, classes)."""
        return self.head(self.features(x))


class Stage(nn.Module):
    """Makes one query of what enters, for all global blocks; then blocks, local and global in turn."""

    def __init__(self, query: GlobalQuery, blocks: Iterable[Block], downsample: Downsample | None) -> None:
        super().__init__()
        self.q_global_gen = query
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, r, r, C) to (B, r/2, r/2, 2C), or to (B, r, r, C) in the last stage."""
        query = self.q_global_gen(x)
        for block in self.blocks:
            x = block(x, query)
        return self.downsample(x)


class Block(nn.Module):
    """Attention within windows and an MLP, each on a residual branch that begins with LayerNorm."""

    gamma1: nn.Parameter | None
    gamma2: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        hidden: int,
        layer_scale: float,
        qkv_bias: bool,
        drop_path: float,
        is_global: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, qkv_bias, is_global)
        self.norm2 = nn.LayerNorm(dim)
        layers = {"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path = DropPath(drop_path)
        for name in ("gamma1", "gamma2"):
            factors = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None
            self.register_parameter(name, factors)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """(B, r, r, C) and the image's query (B, h, N, C/h) to (B, r, r, C)."""
        attended = self.attn(partition(self.norm1(x), self.window), query)
        x = x + self.branch(reverse(attended, self.window, x.shape[1]), self.gamma1)
        return x + self.branch(self.mlp(self.norm2(x)), self.gamma2)

    def branch(self, y: Tensor, gamma: Tensor | None) -> Tensor:
        """What is added to the residual stream: scaled, and in training sometimes nothing."""
        return self.drop_path(y if gamma is None else gamma * y)


class WindowAttention(nn.Module):
    r"""Softmax attention with a bias for each relative position.

    :math:`\mathrm{softmax}(q k^\top / \sqrt{C/h} + b)\, v` in each window (paper, "Global self-attention").
    Locally, q, k and v are projections of the window's tokens. Globally k and v are, and q is the image's
    query, the same in all its windows and not projected any more.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, qkv_bias: bool, is_global: bool) -> None:
        super().__init__()
        self.heads, self.is_global = heads, is_global
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, (2 if is_global else 3) * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Windows (B n, N, C) and queries (B, h, N, C/h) to (B n, N, C)."""
        q, k, v = self.queries_keys_values(x, query)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def queries_keys_values(self, x: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        """Three tensors (B n, h, N, C/h); windows of an image follow each other."""
        projected = self.qkv(x).unflatten(-1, (-1, self.heads, x.shape[-1] // self.heads))
        parts = projected.permute(2, 0, 3, 1, 4).unbind()
        if not self.is_global:
            return parts
        return query.repeat_interleave(x.shape[0] // query.shape[0], dim=0), *parts


class GlobalQuery(nn.Module):
    """Shrinks a stage's map to the size of one window and splits it into heads ("Global query generator").

    Each halving of the side is a fused MBConv and max pooling; a map of a window's size passes one fused
    MBConv.
    """

    def __init__(self, dim: int, heads: int, side: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        halvings = (side // window).bit_length() - 1
        shrink = [FusedMBConv(dim, pool=True) for _ in range(halvings)]
        self.to_q_global = nn.Sequential(*(shrink or [FusedMBConv(dim)]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, r, r, C) to (B, h, N, C/h), heads from channels."""
        tokens = channels_last(self.to_q_global(channels_first(x))).flatten(1, 2)
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Stem(nn.Module):
    """Images to a map of a quarter of their side."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, stride=2, padding=1)
        self.conv_down = Downsample(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, R, R) to (B, R/4, R/4, C)."""
        return self.conv_down(channels_last(self.proj(x)))


class Downsample(nn.Module):
    """Fused MBConv and a convolution with stride 2 between two LayerNorms ("Downsampler")."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = mbconv(dim)
        self.reduction = nn.Conv2d(dim, out, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out)
        self.norm1 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, r, r, C) to (B, r/2, r/2, out)."""
        x = channels_first(self.norm1(x))
        return self.norm2(channels_last(self.reduction(x + self.conv(x))))


class FusedMBConv(nn.Module):
    """Fused inverted residual block, then max pooling with stride 2 where asked for; channels first."""

    def __init__(self, dim: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = mbconv(dim)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, r, r) to (B, C, r/2, r/2) with pooling, else (B, C, r, r)."""
        return self.pool(x + self.conv(x))


def mbconv(dim: int) -> nn.Sequential:
    """Residual branch of the fused MBConv: no expansion, no normalisation, nothing after the last layer."""
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
        nn.GELU(),
        SqueezeExcitation(dim),
        nn.Conv2d(dim, dim, 1, bias=False),
    )


class SqueezeExcitation(nn.Module):
    """Scales each channel of (B, C, r, r) by a gate in (0, 1), computed from the means of all channels.

    torchvision's has biases, which this has not.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        squeeze, excite = nn.Linear(dim, dim // 4, bias=False), nn.Linear(dim // 4, dim, bias=False)
        self.fc = nn.Sequential(squeeze, nn.GELU(), excite, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, r, r) to the same shape."""
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class DropPath(nn.Dropout):
    """Stochastic depth: in training, 0 for a share ``p`` of examples and 1 / (1 - p) times the rest.

    As torchvision's StochasticDepth in its mode "row", which draws in place and so cannot run under
    ``torch.func.vmap``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or self.p == 0:
            return x
        return x * functional.dropout(x.new_ones(x.shape[0], *[1] * (x.ndim - 1)), self.p)


def partition(x: Tensor, window: int) -> Tensor:
    """(B, r, r, C) to (B n, N, C): windows by image, row and column, their tokens row by row."""
    cut = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return cut.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def reverse(windows: Tensor, window: int, side: int) -> Tensor:
    """What :func:`partition` cut, whole again: (B n, N, C) to (B, side, side, C)."""
    across = side // window
    cut = windows.unflatten(0, (-1, across, across)).unflatten(3, (window, window))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens, (N, N) of int64."""
    token = torch.arange(window**2)
    row, column = token // window, token % window
    down, right = row[:, None] - row, column[:, None] - column
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def channels_first(x: Tensor) -> Tensor:
    """(B, r, r, C) to (B, C, r, r)."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, r, r) to (B, r, r, C)."""
    return x.permute(0, 2, 3, 1)


def _initialise(layer: nn.Module) -> None:
    """Linear layers as in ViT; torch's own start is kept for the others."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _side(shape: Sequence[int]) -> tuple[int, int]:
    """Channels and side of the images."""
    channels, height, width = image_shape("gcvit", shape)
    if height != width or height % 32:
        low, high = min(height, width) // 32 * 32, -(-max(height, width) // 32) * 32
        sizes = " or ".join(f"{side}x{side}" for side in (low, high) if side)
        raise ClientError(
            "client 'gcvit' needs square images whose side is a multiple of 32 pixels, "
            f"but the data give {height}x{width}; nearest: {sizes}"
        )
    return channels, height


def _check(v: Variant, side: int, windows: Sequence[int]) -> None:
    """Refuse options of which no model can be built."""
    for name, value, fits, needed in (
        ("dim", v.dim, v.dim >= 4, "at least 4"),
        ("mlp_ratio", v.mlp_ratio, v.dim * v.mlp_ratio >= 1, "enough for one hidden unit"),
        ("drop_path", v.drop_path, 0 <= v.drop_path < 1, "at least 0 and below 1"),
        ("layer_scale", v.layer_scale, v.layer_scale >= 0, "at least 0"),
    ):
        if not fits:
            raise ClientError(f"client 'gcvit' needs {name} {needed}, got {value}")
    for name, values in (("depths", v.depths), ("heads", v.heads), ("windows", windows)):
        if len(values) != 4 or min(values) < 1:
            raise ClientError(
                f"client 'gcvit' needs {name} of at least 1 for each of 4 stages, got {[*values]}"
            )
    for i in range(4):
        width, r = v.dim * 2**i, side // 2 ** (i + 2)
        divisors = [h for h in range(1, width + 1) if width % h == 0]
        halved = [r // 2**k for k in range(r.bit_length()) if r % 2**k == 0]
        for name, value, valid, needed in (
            (f"heads[{i}]", v.heads[i], divisors, f"that divide the {width} channels of the stage"),
            (f"windows[{i}]", windows[i], halved, f"that are the stage's side {r} over a power of two"),
        ):
            if value not in valid:
                near = " or ".join(map(str, sorted(sorted(valid, key=lambda n: abs(n - value))[:2])))
                raise ClientError(f"client 'gcvit' needs {name} {needed}, got {value}; nearest: {near}")
