"""IDNP for histories: asked, as any model of sequences is, which item comes next after each event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from clients.errors import ClientError

from .comirec import at_least
from .idnp import IDNP, OCTAVES, Kind, Prediction, divergence, observations, visible
from .next_item import NextItem


class SequenceIDNP(IDNP):
    """:class:`clients.models.idnp.IDNP` with a history in place of observations, which it makes of it.

    Context is the history's observations, all its events but the first. Queries are these same ones, each of
    which sees what does not tell its answer (:func:`clients.models.idnp.visible`), and one for the event
    that follows the last, which sees all.

    Parameters
    ----------
    items : int
        V.
    history : int
        Most events of a history, 2 or more; the model itself has no limit.
    users : int, optional
        As in :class:`clients.models.idnp.IDNP`, as are all options but the next.
    kind : {"w2", "kl"}
        Distance between what is known of a user from all observations and from those that a query sees;
        see :func:`clients.models.idnp.divergence`.
    strength : float
        What the distance counts in the loss, lambda. A small one lets answers reach training through the
        latent variable.

    Raises
    ------
    ClientError
        As the model itself does; or if ``history`` is below 2, there is no such ``kind``, or ``strength`` is
        below 0.

    Notes
    -----
    The history's first event is nobody's observation, so that the query after it, at position 1, is the
    first. The mean over queries of cross-entropy and penalty is :func:`clients.models.idnp.objective`.
    """

    def __init__(
        self,
        items: int,
        history: int,
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
        kind: Kind = "w2",
        strength: float = 1.0,
    ) -> None:
        at_least(2, {"history": history})
        if kind not in get_args(Kind):
            raise ClientError(f"kind: must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if not strength >= 0:
            raise ClientError(f"strength: must be 0 or more, got {strength}")
        super().__init__(
            items,
            users,
            window=window,
            width=width,
            latent=latent,
            heads=heads,
            dilations=dilations,
            frequencies=frequencies,
            dropout=dropout,
            user_dropout=user_dropout,
            tied=tied,
            split=split,
        )
        self.window, self.kind, self.strength = window, kind, strength

    def forward(  # type: ignore[override]
        self, hist: Tensor, times: Tensor, query_time: Tensor, user: Tensor
    ) -> NextItem:
        """What comes after each event.

        Parameters
        ----------
        hist : Tensor of int, shape (B, H)
            Ids, oldest first, padded with 0 on the left; H is 2 or more.
        times : Tensor of float, shape (B, H)
            Times of events, in natural periods; float64 if they count from long ago.
        query_time : Tensor of float, shape (B,)
            When the event is that follows the last.
        user : Tensor of int, shape (B,)
            Numbers of users among the client's; -1 for one that has none.

        Raises
        ------
        ClientError
            If histories have fewer than 2 events.
        """
        out = self.predict(hist, times, query_time, user, hist.shape[1])
        penalty = self.strength * divergence(out.posterior, out.prior, self.kind)
        return NextItem(out.output, out.weight, out.bias, penalty)

    def predict(
        self, hist: Tensor, times: Tensor, query_time: Tensor, user: Tensor, queries: int
    ) -> Prediction:
        """The model's own prediction, for the newest ``queries`` (1..H) of a history; see :meth:`forward`."""
        if hist.shape[1] < 2:
            raise ClientError(f"history: must have 2 events or more, got {hist.shape[1]}")
        # The event that follows the last has a window, lags and a time, but no item that anyone knows.
        when = torch.cat([times, query_time.unsqueeze(1)], 1)
        w, g, tau, y, position = observations(functional.pad(hist, (0, 1)), when, self.window)
        w_q, g_q, tau_q, asked = w[:, -queries:], g[:, -queries:], tau[:, -queries:], position[-queries:]
        mask = visible(asked, position[:-1], self.window).expand(len(hist), -1, -1)
        context = w[:, :-1], g[:, :-1], tau[:, :-1], y[:, :-1]
        return super().forward(user, *context, mask, w_q, g_q, tau_q)
