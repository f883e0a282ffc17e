"""GRU4Rec: a recurrent network that reads a history event by event.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016, arXiv 1511.06939.
Sizes in docstrings: B histories of H events; V items 1..V; d features of an item, h of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .comirec import ItemTable, at_least, look_up
from .next_item import ItemHead, NextItem, check_rates


class GRU4Rec(nn.Module):
    """One layer of gated recurrent units over items' vectors, with which its states are then compared.

    Times and users are not looked at.

    Parameters
    ----------
    items : int
        V.
    history : int
        Most events of a history; the network itself has no limit.
    width : int
        d.
    hidden : int
        h. Where it is not d, a linear map leads from states to items.
    dropout : float
        Rate in training: of items' vectors on the way in, and of states on the way out.

    Raises
    ------
    ClientError
        If a size is below 1, or the rate is not in [0, 1).

    Notes
    -----
    Deviations from the paper, all of them usual by now: output and input share the items' vectors; the loss
    is cross-entropy (:func:`clients.models.next_item.next_item_loss`) in place of TOP1 or BPR over the other
    targets of a batch; and a history is one example, not a stream that batches continue. Items' vectors start
    as those of the other models here, N(0, 1/d).
    """

    def __init__(
        self, items: int, history: int, *, width: int = 64, hidden: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__()
        at_least(1, {"items": items, "history": history, "width": width, "hidden": hidden})
        check_rates(dropout=dropout)
        self.items = ItemTable(items, width)
        self.gru = GRU(width, hidden)
        self.head = ItemHead(items, hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hist: Tensor, times: Tensor, query_time: Tensor, user: Tensor) -> NextItem:  # noqa: ARG002
        """What comes after each event.

        Parameters
        ----------
        hist : Tensor of int, shape (B, H)
            Ids, oldest first, padded with 0 on the left.
        times, query_time, user : Tensor
            Not looked at.
        """
        table = self.items()
        states = self.gru(self.dropout(look_up(hist, table)), hist > 0)
        return self.head(self.dropout(states), table)


class GRU(nn.Module):
    """Gated recurrent units in plain operations, as ``vmap`` has no rule for those of the framework.

    Cho et al., EMNLP 2014, arXiv 1406.1078, in the form of ``torch.nn.GRU``, which weights are named after:
    ``h' = (1 - z) n + z h`` with ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        for name, start in nn.GRU(inputs, hidden).named_parameters():
            self.register_parameter(name, start)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """States after each event, shape (B, H, h), of vectors x (B, H, d); ``real`` (B, H) tells the events.

        Padding is on the left, where states stay as they start, at 0.
        """
        inputs = functional.linear(x, self.weight_ih_l0, self.bias_ih_l0).unbind(1)
        hidden = self.weight_hh_l0.shape[1]
        h, states = x.new_zeros(len(x), hidden), []
        for i, event in zip(inputs, real.unsqueeze(-1).unbind(1), strict=True):
            g = functional.linear(h, self.weight_hh_l0, self.bias_hh_l0)
            r, z = (i[:, : 2 * hidden] + g[:, : 2 * hidden]).sigmoid().chunk(2, 1)
            n = (i[:, 2 * hidden :] + r * g[:, 2 * hidden :]).tanh()
            h = (n + z * (h - n)) * event
            states.append(h)
        return torch.stack(states, 1)
