"""IDNP: a user's interest as a function of time, told from a few observations by a neural process.

Du et al., "IDNP: Interest Dynamics Modeling using Generative Neural Processes for Sequential
Recommendation", WSDM 2023, arXiv 2208.04600, of which the abstract, the caption of Figure 2 and a third
party's summary alone were read. They fix what is encoded (short windows of events, at several scales, by
dilated convolutions and attention), that a user's observations are split at random into context and targets,
that one path attends to the context and another sums it up in a latent variable, what the decoder sees, that
its output meets the user's vector, and that the objective adds a distance of distributions to the likelihood.
How is as specified here: all formulas, sizes, starting values and the rule against leaks are RECONSTRUCTED.

Sizes in docstrings: B users with n observations, of which m queries are asked; L events of a window; T items
that an observation tells (without an axis of their own where T = 1); V items 1..V, 0 where there is none; d
features; dz latent ones; S samples of the latent variable, an axis that is there only where they were given.

An observation, at a position p of a history, has the window ``w`` of the L items before, their lags ``g``,
the time ``tau`` and the item ``y`` at p. A query is one without ``y``. Times count in natural periods of the
data: days of check-ins, weeks of shopping; where there are none, a quarter for each event.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError

from .comirec import ItemTable, at_least, look_up
from .next_item import check_rates, without_none

Kind = Literal["w2", "kl"]
OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)


class Gaussian(NamedTuple):
    """Independent normal variables.

    Attributes
    ----------
    mu, sigma : Tensor, shape (..., dz)
        Means and standard deviations.
    """

    mu: Tensor
    sigma: Tensor


class Prediction(NamedTuple):
    """What the model says of each query, and all that scores and losses are made of.

    Attributes
    ----------
    output : Tensor, shape (B, m, width) or (S, B, m, width)
        Vectors that items are compared with.
    weight : Tensor, shape (V + 1, width)
        Vectors of items, by id; row 0 means nothing.
    bias : Tensor, shape (V + 1,)
        Of items, by id; -inf for id 0.
    prior : Gaussian, shape (B, m, dz)
        The latent variable, from the context that each query sees: q(z|C).
    posterior : Gaussian, shape (B, 1, dz)
        The same from all observations of the user, those among the queries included: q(z|D).
    """

    output: Tensor
    weight: Tensor
    bias: Tensor
    prior: Gaussian
    posterior: Gaussian


class IDNP(nn.Module):
    """Queries look up similar moments of the user's past, and ask what sort of function the user is.

    As specified here, section 2; see the module for what the paper says of it.

    Parameters
    ----------
    items : int
        V.
    users : int, optional
        Rows of the table of users, the most that a client has: ids are a client's own, 0..users - 1. None
        for a model without the table, as for users that are new.
    window : int
        L.
    width, latent : int
        d, dz.
    heads : int
        Attention heads of the deterministic path.
    dilations : sequence of int, optional
        Of the convolutions, one for each scale beside the events themselves; (1, 2), and (1, 2, 4) for
        windows of 8 events or more, by default.
    frequencies : sequence of float
        Cycles per period that time is told by. 1 should be among them.
    dropout, user_dropout : float
        Rates in training: of items and convolutions, and of the user's vector.
    tied : bool
        Compare with the items' own vectors. Otherwise items have others, of 2d features, that the
        decoder's output and the user's vector are compared with as they are.
    split : bool
        In training, show all queries a random part of the user's observations (:func:`random_context`), so
        far as ``mask`` lets them see it. Without it, context is what ``mask`` says.

    Raises
    ------
    ClientError
        If a size is below 1, ``width`` is no multiple of ``heads``, there are no frequencies, or one is
        not finite, or a rate is not in [0, 1).

    Notes
    -----
    A model in training draws from torch's global generator: dropout, the context and, where it is not given,
    ``eps``. Without them (``dropout=0, user_dropout=0, split=False``), and in evaluation, it draws nothing.

    RECONSTRUCTED beyond the specification: biases of items start at 0, and those other vectors of items
    as a linear layer of the framework does; an observation's vector for T items is the mean of those that are
    not 0. Deviations, of which none changes a number: cycles are counted from the last whole one, which keeps
    late times exact; the row of no item has no gradient, and its bias is -inf in the softmax, so that it
    stays 0. With L = 3 the first tap of the dilation of 2 sees padding alone and is never trained.

    A federation keeps all that starts with ``user.`` local, and may keep ``head.`` (what personalises most)
    and ``time.``.
    """

    def __init__(
        self,
        items: int,
        users: int | None = None,
        *,
        window: int = 3,
        width: int = 64,
        latent: int = 64,
        heads: int = 4,
        dilations: Sequence[int] | None = None,
        frequencies: Sequence[float] = OCTAVES,
        dropout: float = 0.2,
        user_dropout: float = 0.5,
        tied: bool = True,
        split: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, {"items": items, "window": window, "width": width, "latent": latent, "heads": heads})
        if users is not None:
            at_least(1, {"users": users})
        if dilations is None:
            dilations = (1, 2) if window < 8 else (1, 2, 4)
        at_least(1, {f"dilations[{j}]": dilation for j, dilation in enumerate(dilations)})
        check_rates(dropout=dropout, user_dropout=user_dropout)
        self.split = split
        self.items = ItemTable(items, width)
        self.user = UserTable(users, width, user_dropout)
        self.time = Time(frequencies, width)
        self.aie = InterestEncoder(window, width, dilations, dropout)
        self.deterministic = DeterministicPath(width, heads)
        self.latent = LatentPath(width, latent)
        self.decoder = nn.Sequential(
            nn.Linear(3 * width + latent, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
        )
        self.head = TiedHead(items, width) if tied else Head(items, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        user: Tensor,
        ctx_w: Tensor,
        ctx_g: Tensor,
        ctx_tau: Tensor,
        ctx_y: Tensor,
        mask: Tensor,
        qry_w: Tensor,
        qry_g: Tensor,
        qry_tau: Tensor,
        eps: Tensor | None = None,
    ) -> Prediction:
        """Predictions for all queries, none of which knows of another.

        Parameters
        ----------
        user : Tensor of int, shape (B,)
            Rows of the table of users; -1 for one that has none. Not looked at in a model without the table.
        ctx_w, qry_w : Tensor of int, shape (B, n, L) and (B, m, L)
            Windows, oldest item first, padded on the left.
        ctx_g, qry_g : Tensor of float, shape (B, n, L) and (B, m, L)
            Lags of the windows' events, 0 or more.
        ctx_tau, qry_tau : Tensor of float, shape (B, n) and (B, m)
            Times.
        ctx_y : Tensor of int, shape (B, n) or (B, n, T)
            Items of the observations. One without any is padding, which nobody sees.
        mask : Tensor of bool or 0 and 1, shape (B, m, n)
            Whether a query may see an observation; see :func:`visible`, without which queries that are
            observations see their own answers.
        eps : Tensor of float, shape (B, dz) or (S, B, dz), optional
            Standard normal draws, one for all queries of a user: ``z = mu + sigma eps``, of the posterior in
            training, where they are drawn if not given, and of the prior in evaluation, where ``z = mu``
            if they are not.

        Raises
        ------
        ClientError
            If windows are not of L events, or ``mask`` does not have a row for each query and a column for
            each observation.
        """
        n, m = ctx_w.shape[1], qry_w.shape[1]
        self._check(ctx_w, qry_w, mask)
        table = self.items()
        r = self.aie(torch.cat([ctx_w, qry_w], 1), torch.cat([ctx_g, qry_g], 1), table)
        x = torch.cat([r, self.time(torch.cat([ctx_tau, qry_tau], 1))], -1)
        ctx_x, qry_x = x.split([n, m], 1)
        y = ctx_y if ctx_y.ndim == 3 else ctx_y.unsqueeze(-1)
        real = (y > 0).any(-1)
        e = self.dropout(_mean(look_up(y, table), y > 0))
        u = torch.cat([ctx_x, e], -1)
        seen = mask.bool() & real[:, None]
        if self.training and self.split:
            seen = seen & random_context(real)[:, None]
        r_d = self.deterministic(qry_x, ctx_x, u, e, seen)
        prior, posterior = self.latent(u, seen, real[:, None])
        z = self._sample(prior, posterior, eps)
        d_q = r_d + self.decoder(_joined(r_d, z, qry_x))
        features = _joined(d_q, self.user(user, table)[:, None])
        output, weight, bias = self.head(features, table)
        return Prediction(output, weight, bias, prior, posterior)

    def _sample(self, prior: Gaussian, posterior: Gaussian, eps: Tensor | None) -> Tensor:
        """Shape (B, m, dz) or (B, 1, dz), with the axis S before it if ``eps`` has one."""
        q = posterior if self.training else prior
        if eps is None:
            if not self.training:
                return q.mu
            eps = torch.randn_like(q.mu[:, 0])
        return q.mu + q.sigma * eps.unsqueeze(-2)

    def _check(self, ctx_w: Tensor, qry_w: Tensor, mask: Tensor) -> None:
        for w in (ctx_w, qry_w):
            if w.shape[2:] != self.aie.pos.shape[:1]:
                raise ClientError(
                    f"window: the model is made for {len(self.aie.pos)} events, but is given windows of "
                    f"shape {tuple(w.shape)}"
                )
        expected = (ctx_w.shape[0], qry_w.shape[1], ctx_w.shape[1])
        if mask.shape != expected:
            raise ClientError(
                f"mask: must be of shape {expected}, for users, queries and observations, got "
                f"{tuple(mask.shape)}"
            )


class UserTable(nn.Module):
    """Vectors of users, N(0, 1/d^2) at the start; 0 for users that have none."""

    def __init__(self, users: int | None, width: int, dropout: float) -> None:
        super().__init__()
        self.E_u = None if users is None else nn.Parameter(torch.randn(users, width) / width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, user: Tensor, like: Tensor) -> Tensor:
        """Shape (B, d), in the type of ``like`` (rows, d)."""
        if self.E_u is None:
            return like.new_zeros(len(user), like.shape[-1])
        known = (user >= 0).unsqueeze(-1)
        return self.dropout(functional.embedding(user.clamp(min=0), self.E_u) * known)


class Time(nn.Module):
    """``Tm(t) = LayerNorm(W_t phi(t) + b_t)``, phi being sine and cosine of ``2 pi f t`` for each f."""

    f: Tensor

    def __init__(self, frequencies: Sequence[float], width: int) -> None:
        super().__init__()
        if not frequencies or not all(math.isfinite(f) for f in frequencies):
            raise ClientError(f"frequencies: must be one or more finite numbers, got {list(frequencies)}")
        self.W_t = nn.Linear(2 * len(frequencies), width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("f", torch.tensor(frequencies, dtype=torch.float32), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(...,) to (..., d). Times may be float64, as the seconds of years need them."""
        angle = 2 * math.pi * torch.remainder(t.unsqueeze(-1) * self.f, 1)
        phi = torch.cat([angle.sin(), angle.cos()], -1)
        return self.norm(self.W_t(phi.to(self.W_t.weight.dtype)))


class Lag(nn.Module):
    """``W_2 tanh(W_1 [log(1 + g); exp(-10 g)] + b_1) + b_2``: how long ago, on a long and a short scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_1 = nn.Linear(2, width)
        self.W_2 = nn.Linear(width, width)

    def forward(self, g: Tensor) -> Tensor:
        """(...,) to (..., d); lags below 0 are 0."""
        g = g.clamp(min=0)
        scales = torch.stack([g.log1p(), (-10 * g).exp()], -1)
        return self.W_2(self.W_1(scales.to(self.W_1.weight.dtype)).tanh())


class CausalConv(nn.Module):
    """Convolution with a kernel of 3 over an event and those ``dilation`` and twice that before.

    Weight and bias are a ``Conv1d``'s, which it is not, because with kernels for each client those are slow.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        start = nn.Conv1d(width, width, 3)
        self.weight, self.bias = start.weight, start.bias
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """(..., L, d) to the same shape; there are zeros before the first event."""
        L, padded = x.shape[-2], functional.pad(x, (0, 0, 2 * self.dilation, 0))
        taps = torch.cat([padded.narrow(-2, k * self.dilation, L) for k in range(3)], -1)
        return functional.linear(taps, self.weight.transpose(1, 2).flatten(1), self.bias)


class InterestEncoder(nn.Module):
    """Attentive Interest Encoder: a window is a weighted mean over its events, each seen at several scales.

    As specified here, section 2.3. Figure 2 has scales of different importance, the summary dilated
    convolutions and attention over time frames; that one softmax is over both is RECONSTRUCTED.
    """

    def __init__(self, window: int, width: int, dilations: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.pos = nn.Parameter(0.02 * torch.randn(window, width))
        self.lag = Lag(width)
        self.convs = nn.ModuleList(CausalConv(width, dilation) for dilation in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in dilations)
        self.s = nn.Parameter(torch.zeros(1 + len(dilations), width))
        self.W_a = nn.Linear(width, width)
        self.v = nn.Linear(width, 1, bias=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, w: Tensor, g: Tensor, table: Tensor) -> Tensor:
        """r, shape (B, n, d), of windows w (B, n, L) with lags g (B, n, L) of items in ``table``."""
        real = (w > 0).unsqueeze(-1)
        x = real * (self.dropout(look_up(w, table) + self.pos) + self.lag(g))
        h = [x]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h.append(norm(x + self.dropout(conv(x).relu())))
        scales = torch.stack(h, -2) + self.s
        a = self.v(self.W_a(scales).tanh()).squeeze(-1).masked_fill(~real, -1e9)
        alpha = a.flatten(-2).softmax(-1).view_as(a) * real
        return self.norm((alpha.unsqueeze(-1) * scales).sum((-3, -2)))


class DeterministicPath(nn.Module):
    """r_d: what was consumed in similar situations at similar times, by attention over the context.

    As specified here, section 2.5. Keys and queries start with the same map, so that attention starts as a
    similarity of (window, time); values and output start as identity.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ClientError(
                f"width: must be a multiple of heads={heads}, got {width}; {-(-width // heads) * heads} "
                "would do"
            )
        self.heads = heads
        self.mlp = _mlp(width)
        self.W_v, self.W_o = (nn.Linear(width, width) for _ in range(2))
        self.W_q, self.W_k = (nn.Linear(2 * width, width) for _ in range(2))
        with torch.no_grad():
            for layer in (self.W_v, self.W_o):
                nn.init.eye_(layer.weight)
            nn.init.orthogonal_(self.W_q.weight, gain=1.4)
            self.W_k.weight.copy_(self.W_q.weight)
            for layer in (self.W_q, self.W_k):
                nn.init.zeros_(layer.bias)

    def forward(self, qry_x: Tensor, ctx_x: Tensor, u: Tensor, e: Tensor, seen: Tensor) -> Tensor:
        """r_d, shape (B, m, d); the bias of W_o for a query that sees nothing.

        Parameters
        ----------
        qry_x, ctx_x : Tensor, shape (B, m, 2d) and (B, n, 2d)
            Windows and times of queries and observations.
        u, e : Tensor, shape (B, n, 3d) and (B, n, d)
            Observations, and their items alone.
        seen : Tensor of bool, shape (B, m, n)
            What a query sees.
        """
        q, k = self._split(self.W_q(qry_x)), self._split(self.W_k(ctx_x))
        v = self._split(self.W_v(e + self.mlp(u)))
        logits = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen[:, None], -1e9)
        mixed = (logits.softmax(-1) * seen[:, None]) @ v
        return self.W_o(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LatentPath(nn.Module):
    """Which function of the family the user is, from the mean of any number of observations.

    As specified here, section 2.6: ``sigma = 0.1 + 0.9 sigmoid(.)``.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.mlp = _mlp(width)
        self.W_mu, self.W_s = (nn.Linear(width, latent) for _ in range(2))

    def forward(self, u: Tensor, *seen: Tensor) -> list[Gaussian]:
        """One for each of ``seen`` (B, any, n), of shape (B, any, dz), given observations u (B, n, 3d)."""
        each = self.mlp(u)
        means = [(s.to(each.dtype) @ each) / s.sum(-1, keepdim=True).clamp(min=1) for s in seen]
        return [Gaussian(self.W_mu(h), 0.1 + 0.9 * self.W_s(h).sigmoid()) for h in means]


class TiedHead(nn.Module):
    """``o . E[v] + b_v`` with ``o = W_out [d_q; e_u] + b_out``, which starts as their sum."""

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.W_out = nn.Linear(2 * width, width)
        self.b = nn.Parameter(torch.zeros(items + 1))
        with torch.no_grad():
            self.W_out.weight.copy_(torch.eye(width).repeat(1, 2))
            nn.init.zeros_(self.W_out.bias)

    def forward(self, features: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``output``, ``weight`` and ``bias`` of a :class:`Prediction`, from features (..., m, 2d)."""
        return self.W_out(features), table, without_none(self.b)


class Head(nn.Module):
    """``W [d_q; e_u] + b`` with vectors of 2d features for items 1..V, as in Caser (Tang and Wang, 2018)."""

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(2 * width)
        self.W = nn.Parameter(torch.empty(items, 2 * width).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(items + 1))

    def forward(self, features: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """``output``, ``weight`` and ``bias`` of a :class:`Prediction`, from features (..., m, 2d)."""
        return features, functional.pad(self.W, (0, 0, 1, 0)), without_none(self.b)


# --- scores ----------------------------------------------------------------------------------------


def scores(out: Prediction) -> Tensor:
    """Logits of all items by id, shape (B, m, V + 1) or (S, B, m, V + 1); -inf for id 0."""
    return out.output @ out.weight.mT + out.bias


def averaged(logits: Tensor) -> Tensor:
    """Log of the mean of S softmaxes: (S, B, m, V + 1) to (B, m, V + 1)."""
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def ranks(logits: Tensor, target: Tensor, exclude: Tensor | None = None) -> Tensor:
    """Number of items with a higher score, plus half that of other items with the same.

    Parameters
    ----------
    logits : Tensor, shape (B, m, V + 1)
        What :func:`scores` gives.
    target : Tensor of int, shape (B, m)
        Ids to rank. Ranks of id 0 mean nothing, and are to be left out.
    exclude : Tensor of int, shape (B, any), optional
        Ids that are not recommended to a user, such as their history, and count as lower. 0 is padding.

    Returns
    -------
    Tensor, shape (B, m)
        0 for the best item of all.
    """
    own = logits.gather(-1, target.unsqueeze(-1))
    if exclude is not None:
        ids = exclude.unsqueeze(-2).expand(*logits.shape[:-1], -1)
        logits = logits.scatter(-1, ids, -math.inf).scatter(-1, target.unsqueeze(-1), own)
    higher, same = (logits > own).sum(-1), (logits == own).sum(-1)
    return higher + (same - 1).to(own.dtype) / 2


# --- losses ----------------------------------------------------------------------------------------


def next_item_loss(out: Prediction, target: Tensor, negatives: Tensor | None = None) -> Tensor:
    """Cross-entropy over items, a mean over the T of a query.

    Parameters
    ----------
    out : Prediction
        What the model gives.
    target : Tensor of int, shape (B, m) or (B, m, T)
        Ids of what was consumed; 0 is padding.
    negatives : Tensor of int, any shape, optional
        Ids drawn uniformly from 1..V, that all queries share; the softmax is over them and the target, and
        a query's own target among them counts once. It is over all V items by default.

    Returns
    -------
    Tensor, shape (B, m) or (S, B, m)
        0 without any target.
    """
    y = _each(target, out)
    if negatives is None:
        logits = scores(out)
        own = _gather(logits, y.clamp(min=1))
        total = logits[..., 1:].logsumexp(-1, keepdim=True)
    else:
        negatives = negatives.flatten()
        own = _compare(out, y.clamp(min=1))
        others = out.output @ look_up(negatives, out.weight).mT + out.bias[negatives]
        hit = y.unsqueeze(-1) == negatives
        others = others.unsqueeze(-2).masked_fill(hit, -math.inf)
        total = torch.cat([own.unsqueeze(-1), others], -1).logsumexp(-1)
    return _mean_of(total - own, y)


def binary_loss(out: Prediction, target: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy of a query's targets, a mean over them, plus that of its negatives.

    The option of section 3.3, after Caser: 3 negatives for each target, of items that the user never met.

    Parameters
    ----------
    out : Prediction
        What the model gives.
    target : Tensor of int, shape (B, m) or (B, m, T)
        Ids of what was consumed; 0 is padding.
    negatives : Tensor of int, shape (B, m, any)
        Ids of what was not, of each query; 0 is padding.

    Returns
    -------
    Tensor, shape (B, m) or (S, B, m)
        0 without any target.
    """
    y = _each(target, out)
    liked = functional.softplus(-_compare(out, y.clamp(min=1)))
    not_liked = functional.softplus(_compare(out, negatives.clamp(min=1)))
    return _mean_of(liked, y) + _mean_of(not_liked, negatives) * (y > 0).any(-1)


def divergence(q: Gaussian, p: Gaussian, kind: Kind = "w2") -> Tensor:
    """How far ``q`` is from ``p``, summed over features; shape (...), of all axes but the last.

    ``w2``: squared 2-Wasserstein distance, ``|mu_q - mu_p|^2 + |sigma_q - sigma_p|^2``. ``kl``: of p as
    seen from q, ``ln(sigma_p / sigma_q) + (sigma_q^2 + (mu_q - mu_p)^2) / (2 sigma_p^2) - 1/2``.

    Raises
    ------
    ClientError
        If there is no such ``kind``.
    """
    if kind not in get_args(Kind):
        raise ClientError(f"divergence: must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    shift = (q.mu - p.mu) ** 2
    if kind == "w2":
        return (shift + (q.sigma - p.sigma) ** 2).sum(-1)
    return ((p.sigma / q.sigma).log() + (q.sigma**2 + shift) / (2 * p.sigma**2) - 0.5).sum(-1)


def objective(
    out: Prediction,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    kind: Kind = "w2",
    strength: float = 1.0,
    negatives: Tensor | None = None,
) -> Tensor:
    """``mean CE + lambda mean Div(q(z|D), q(z|C))`` over all queries with a target; section 3.1.

    That the paper's distance between an observed and a reconstructed interest function is between these
    is RECONSTRUCTED.

    Parameters
    ----------
    out : Prediction
        What the model gives, in training mode.
    target : Tensor of int, shape (B, m) or (B, m, T)
        Items of the queries; 0 is padding.
    weight : Tensor of float, shape (B,), optional
        0 for rows that are padding, otherwise 1.
    kind : {"w2", "kl"}
        See :func:`divergence`.
    strength : float
        lambda. A small one lets the answer reach training through the posterior.
    negatives : Tensor of int, optional
        See :func:`next_item_loss`.

    Returns
    -------
    Tensor, shape ()
        0 without any query.

    Raises
    ------
    ClientError
        If ``strength`` is below 0 or there is no such ``kind``.
    """
    if not strength >= 0:
        raise ClientError(f"strength: must be 0 or more, got {strength}")
    each = next_item_loss(out, target, negatives) + strength * divergence(out.posterior, out.prior, kind)
    counts = (_each(target, out) > 0).any(-1).to(each.dtype)
    if weight is not None:
        counts = counts * weight.unsqueeze(-1)
    if out.output.ndim > out.prior.mu.ndim:
        each = each.mean(0)
    return (each * counts).sum() / counts.sum().clamp(min=1)


# --- observations ----------------------------------------------------------------------------------


class Observations(NamedTuple):
    """What a history says, position by position; n = H - T for a history of H events.

    Attributes
    ----------
    w : Tensor of int, shape (B, n, L)
        Items of the windows.
    g : Tensor of float, shape (B, n, L)
        Lags of their events; 0 where there is none.
    tau : Tensor of float, shape (B, n)
        Times.
    y : Tensor of int, shape (B, n) or (B, n, T)
        Items; 0 where there is no observation.
    position : Tensor of int, shape (n,)
        Columns of the history that observations are of, from 1.
    """

    w: Tensor
    g: Tensor
    tau: Tensor
    y: Tensor
    position: Tensor


def observations(history: Tensor, times: Tensor, window: int = 3, targets: int = 1) -> Observations:
    """Observations of histories, one for each event but the first.

    Parameters
    ----------
    history : Tensor of int, shape (B, H)
        Item ids, oldest first, padded with 0 on the left.
    times : Tensor of float, shape (B, H)
        Times in natural periods; float64 if they count from long ago.
    window, targets : int
        L, T.

    Raises
    ------
    ClientError
        If histories have no more than T events, or sizes are below 1.
    """
    at_least(1, {"window": window, "targets": targets})
    H = history.shape[1]
    if targets >= H:
        raise ClientError(f"history: must have more than {targets} events, got {H}")
    position = torch.arange(1, H - targets + 1, device=history.device)
    padded, when = (functional.pad(x, (window - 1, 0)) for x in (history, times))
    w, before = (x.unfold(1, window, 1)[:, : H - targets] for x in (padded, when))
    tau = times[:, 1 : H - targets + 1]
    g = (tau.unsqueeze(-1) - before) * (w > 0)
    y = history[:, 1:].unfold(1, targets, 1) * (w[..., -1:] > 0)
    return Observations(w, g, tau, y.squeeze(-1) if targets == 1 else y, position)


def visible(
    query: Tensor, context: Tensor, window: int = 3, targets: int = 1, causal: bool = False
) -> Tensor:
    """The rule against leaks, of section 3.2: an observation that tells a query's items is hidden from it.

    It does for ``p_j - T < p_i < p_j + L + T``, p_i and p_j being the first positions of observation and
    query: it has one of the query's items in its window, or among its own.

    Parameters
    ----------
    query, context : Tensor of int, shape (..., m) and (..., n)
        Positions in the history.
    window, targets : int
        L, T.
    causal : bool
        Hide what is later than the query as well.

    Returns
    -------
    Tensor of bool, shape (..., m, n)
    """
    ahead = context.unsqueeze(-2) - query.unsqueeze(-1)
    before = ahead <= -targets
    return before if causal else before | (ahead >= window + targets)


def blocks(position: Tensor, offset: Tensor, window: int = 3, targets: int = 1) -> Tensor:
    """Which observations are of the blocks of L + T events that begin at ``offset``, and share none.

    The cheaper way of section 3.2 to choose observations. :func:`visible` then hides of a query itself alone.

    Parameters
    ----------
    position : Tensor of int, shape (n,)
        Positions in the history.
    offset : Tensor of int, shape (B, 1)
        From 0 to L + T - 1, drawn at random.

    Returns
    -------
    Tensor of bool, shape (B, n)
    """
    start = position - window - offset
    return (start >= 0) & (start % (window + targets) == 0)


def random_context(real: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random part of each user's observations: a number uniform in 1..n - 1, then as many of them.

    Parameters
    ----------
    real : Tensor of bool, shape (B, n)
        What observations there are. A user with one alone gets none.
    generator : torch.Generator, optional
        Torch's global one by default.

    Returns
    -------
    Tensor of bool, shape (B, n)
    """
    most = real.sum(-1, keepdim=True) - 1
    uniform = torch.rand(len(real), 1 + real.shape[1], generator=generator, device=real.device)
    chosen = 1 + (uniform[:, :1] * most).long()
    key = uniform[:, 1:].masked_fill(~real, 2.0)
    return key.argsort(-1).argsort(-1) < torch.minimum(chosen, most)


# --- parts -----------------------------------------------------------------------------------------


def _mlp(width: int) -> nn.Sequential:
    """``MLP(3d, 2d, d)``."""
    return nn.Sequential(nn.Linear(3 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _joined(*parts: Tensor) -> Tensor:
    """Features of all, each repeated along the axes that others have."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], -1)


def _mean(x: Tensor, real: Tensor) -> Tensor:
    """Over the axis T of x (..., T, d), where ``real`` (..., T); 0 without any."""
    return (x * real.unsqueeze(-1)).sum(-2) / real.sum(-1, keepdim=True).clamp(min=1)


def _mean_of(values: Tensor, ids: Tensor) -> Tensor:
    """Over the last axis, where ids are not 0; 0 without any."""
    return (values * (ids > 0)).sum(-1) / (ids > 0).sum(-1).clamp(min=1)


def _each(target: Tensor, out: Prediction) -> Tensor:
    """Targets with an axis T."""
    return target if target.ndim == out.prior.mu.ndim else target.unsqueeze(-1)


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids.expand(*logits.shape[:-1], -1))


def _compare(out: Prediction, ids: Tensor) -> Tensor:
    """Logits of items 1..V, by id (B, m, any), for the query that they are of."""
    return (look_up(ids, out.weight) @ out.output.unsqueeze(-1)).squeeze(-1) + out.bias[ids]
