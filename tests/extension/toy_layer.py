"""A kind of layer that the product does not know: a moving average (a state) gated by a short convolution (a ring).

    u_t = U x_t,   s_t = a s_{t−1} + (1 − a) u_t,   c_t = Σ_{k<3} w_k u_{t−k},   o_t = O (s_t · c_t)

Padding takes no part: tokens are counted, not columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.model.mixer import LayerCache, Mixer, Step

WINDOW, DECAY, TAPS = 3, 0.9, (1.0, 0.5, -0.25)


class Toy(Mixer):
    """Shapes: B batch, N new tokens, R rows of the ring, C hidden."""

    def __init__(self, config: LucidConfig) -> None:
        super().__init__()
        self.u_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        state, ring = past  # (B, C), (B, 1, R, C)
        batch, n, _ = x.shape
        u = self.u_proj(x)  # (B, N, C)
        whole = torch.ones_like(x[:, :, 0], dtype=torch.bool)
        new = whole if step.mask is None else step.mask[:, step.mask.shape[1] - n :]  # (B, N)
        count = new.to(torch.int64).cumsum(1)  # tokens so far in this call, (B, N)
        held = ring.shape[2]
        if step.mask is None:
            before = torch.full_like(count[:, :1], held)
        else:
            before = step.mask[:, : step.mask.shape[1] - n].to(torch.int64).sum(1, keepdim=True)  # (B, 1)
        place = torch.arange(held, device=x.device) - held + 1  # the newest row of the ring is token 0
        counts = torch.cat([place.expand(batch, held), count], 1)  # (B, R + N)
        valid = torch.cat([place > -before.clamp(max=WINDOW), new], 1)  # (B, R + N)
        rows = torch.cat([ring[:, 0], u], 1)  # (B, R + N, C)

        distance = count[:, :, None] - counts[:, None]  # (B, N, R + N)
        seen = torch.logical_and(valid[:, None], distance >= 0)
        taps = sum(w * torch.logical_and(seen, distance == k).to(x.dtype) for k, w in enumerate(TAPS))  # (B, N, R + N)
        convolved = taps @ rows  # (B, N, C)

        own = seen[:, :, held:].to(x.dtype) * (1 - DECAY) * DECAY ** distance[:, :, held:].clamp(min=0).to(x.dtype)
        states = own @ u + (DECAY ** count.to(x.dtype))[:, :, None] * state.to(x.dtype)[:, None]  # (B, N, C)
        out = self.o_proj(states * convolved)  # (B, N, C)

        last = count[:, -1:, None]  # (B, 1, 1)
        rank = torch.arange(held + n, device=x.device)[None, :, None] - (held + n - 1)  # … −1, 0: from the end
        chosen = torch.logical_and(counts[:, None] - last == rank, valid[:, None])  # (B, R + N, R + N)
        kept = (chosen.to(x.dtype) @ rows)[:, -WINDOW:]  # (B, R', C)
        return out, (states[:, -1].to(torch.float32 if state.dtype == torch.float32 else x.dtype), kept[:, None])

    def empty_cache(self, batch: int, like: Tensor) -> LayerCache:
        width = self.u_proj.out_features
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        return like.new_zeros((batch, width), dtype=wide), like.new_zeros((batch, 1, 0, width))


class ToyKind(LayerKind):
    """As an installed package would define it."""

    name, attribute = "toy", "toy"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        width = config.hidden_size
        wide = "float64" if cache_dtype == "float64" else "float32"
        return LayerDescription(
            kind=self.name,
            cache=(
                CacheTensor("average", wide, (width,), "state"),
                CacheTensor("recent", cache_dtype, (1, width), "ring", WINDOW),
            ),
            weights=("toy.u_proj.weight", "toy.o_proj.weight"),
        )

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        return Toy(config)
