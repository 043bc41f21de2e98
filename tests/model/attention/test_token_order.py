"""Tokens in front of their padding, and back."""

from __future__ import annotations

import torch

from lucid_deploy.model.attention.delta_net import take, token_order

NEW = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()


def test_tokens_come_in_front_in_their_order() -> None:
    order = token_order(NEW)
    assert order.count[:, 0].tolist() == [3, 3, 3, 0, 5]
    columns = torch.arange(5.0).expand(5, 5)[:, :, None]
    assert take(columns, order.source)[:, :, 0].tolist() == [
        [2, 3, 4, 0, 1],
        [0, 1, 2, 3, 4],
        [0, 2, 4, 1, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert order.valid.sum(1).tolist() == [3, 3, 3, 0, 5] and order.valid[2].tolist() == [True] * 3 + [False] * 2


def test_and_go_back_to_where_they_stood() -> None:
    rows = torch.randn(5, 5, 3)
    order = token_order(NEW)
    assert torch.equal(take(take(rows, order.source), order.place), rows)
