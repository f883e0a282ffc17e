"""Popularity: what cross-entropy makes of it."""

import pytest
import torch

from clients.errors import ClientError
from clients.models.next_item import next_item_loss, scores
from clients.models.popularity import Popularity


def test_least_cross_entropy_is_the_frequencies():
    counts = torch.tensor([7, 1, 3, 5], dtype=torch.float64)
    target = torch.repeat_interleave(torch.arange(1, 5), counts.long())[None]
    model = Popularity(4).double()
    inputs = (torch.ones_like(target), torch.zeros(1, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = next_item_loss(model(*inputs), target).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = scores(model.eval()(*inputs)).softmax(-1)[0]
    torch.testing.assert_close(found, torch.cat([counts.new_zeros(1), counts / 16]), rtol=0, atol=1e-5)


def test_it_needs_items():
    with pytest.raises(ClientError, match=r"^items: must be 1 or more, got 0$"):
        Popularity(0)
