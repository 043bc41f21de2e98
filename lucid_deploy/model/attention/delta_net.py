"""DeltaNet layers (arXiv 2406.06484) and gated DeltaNet layers (arXiv 2412.06464).

    S_t = α_t S_{t−1} + β_t k_t (v_t − α_t S_{t−1}ᵀ k_t)ᵀ,      o_t = S_tᵀ q_t / √D

Queries, keys and values go through an optional short causal convolution and silu; queries and keys are then scaled to
unit norm. β is the sigmoid of a projection, or 1 without one, and may be doubled. α is 1 in DeltaNet, and
exp(−exp(A) softplus(a + b)) in gated DeltaNet, with a projection a and weights A (``A_log``) and b (``dt_bias``).
Each head's output is normed and, with an output gate, multiplied by a function of a projection of the layer's input.

Shapes: B batch, N new tokens, HK/H key/value heads, D/E key/value width, C hidden, K kernel, W convolved channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.layers.delta_settings import DeltaSettings, state_layout
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.model.parts import RMSNorm, precise_silu
from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from lucid_deploy.plugins.shared.keys import compute_dtype

L2_EPS = 1e-6  # added to a sum of squares, as transformers and flash-linear-attention do
GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}


class ShortConvolution(nn.Module):
    """The weight of a depthwise causal convolution, ``(channels, 1, K)``; the last tap is the newest token's."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, kernel))


class DeltaNet(Mixer):
    """A DeltaNet layer: the delta rule without decay.

    The cache is the last K − 1 inputs of the convolutions, ``(B, W, K − 1)``, if the layer has convolutions, and the
    state ``(B, H, D, E)``.
    """

    def __init__(self, config: LucidConfig, settings: DeltaSettings, implementation: str) -> None:
        super().__init__()
        self.settings, self.implementation, self.state_dtype = settings, implementation, config.state_dtype
        self._cache_dtype: str | None = None
        hidden, keys, values = config.hidden_size, settings.key_channels, settings.value_channels
        self.q_proj = nn.Linear(hidden, keys, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, values, bias=False)
        if settings.has_beta:
            self.b_proj = nn.Linear(hidden, settings.value_heads, bias=False)
        if settings.kernel:
            self.q_conv1d = ShortConvolution(keys, settings.kernel)
            self.k_conv1d = ShortConvolution(keys, settings.kernel)
            self.v_conv1d = ShortConvolution(values, settings.kernel)
        if settings.gate != "none":
            self.g_proj = nn.Linear(hidden, values, bias=False)
        self.o_norm = RMSNorm(settings.value_width, config.rms_norm_eps)
        self.o_proj = nn.Linear(values, hidden, bias=False)

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        return self.mix_tokens(x, step, past)

    def mix_tokens(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Mix new tokens ``(B, N, C)``; return the output, of the same shape, and the updated cache."""
        n = x.shape[1]
        new = None if step.mask is None else last_columns(step.mask, n)  # (B, N)
        if new is None or step.decode or step.cache_length is not None:
            return self.mix(x, past, new, None)
        order = token_order(new)
        o, present = self.mix(take(x, order.source), past, order.valid, order)
        return take(o, order.place), present

    def mix(
        self, x: Tensor, past: LayerCache, valid: Tensor | None, order: TokenOrder | None
    ) -> tuple[Tensor, LayerCache]:
        """Mix tokens ``(B, N, C)``, padding last in each row; return the output, arbitrary at padding, and the cache.

        Args:
            valid: Which columns hold a token, bool ``(B, N)``; None: all.
            order: The permutation that moved padding last, and each row's token count; None: no padding, or N is 1.
        """
        batch, n, _ = x.shape
        settings = self.settings
        mixed = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=2)  # (B, N, W)
        present: LayerCache = ()
        if settings.kernel:
            mixed, inputs = self.convolve(mixed, past[0], valid, order)
            present = (inputs,)
        work = compute_dtype(x.dtype)
        mixed = precise_silu(mixed.to(work))  # precise, because scaling to unit norm amplifies errors of small heads
        q, k, v = mixed.split([settings.key_channels, settings.key_channels, settings.value_channels], dim=2)
        query, key = (self._key_heads(each, settings).to(x.dtype) for each in (q, k))  # (B, H, N, D)
        value = v.view(batch, n, settings.value_heads, settings.value_width).transpose(1, 2).to(x.dtype)
        beta, decay = self.beta(x, work), self.log_decay(x, work)  # (B, N, H)
        if valid is not None:
            beta, decay = (torch.where(valid[:, :, None], each, torch.zeros_like(each)) for each in (beta, decay))
        o, state = delta_rule(
            query,
            key,
            value,
            decay.transpose(1, 2),
            beta.transpose(1, 2).to(x.dtype),
            past[-1].to(work),
            scale=settings.key_width**-0.5,
            implementation=self.implementation,
        )
        normed = self.o_norm(o.transpose(1, 2))  # (B, N, H, E)
        if settings.gate != "none":
            gate = GATES[settings.gate](self.g_proj(x).to(work)).view(normed.shape)
            normed = (normed.to(work) * gate).to(x.dtype)
        return self.o_proj(normed.reshape(batch, n, -1)), (*present, state.to(past[-1].dtype))

    def convolve(
        self, mixed: Tensor, past: Tensor, valid: Tensor | None, order: TokenOrder | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve inputs ``(B, N, W)`` after ``past``, ``(B, W, K − 1)``; return the result and the next ``past``."""
        n, kept = mixed.shape[1], self.settings.kernel - 1
        weight = torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight])[:, 0]  # (W, K)
        rows = torch.cat([past.transpose(1, 2).to(mixed.dtype), mixed], dim=1)  # (B, K − 1 + N, W)
        work = compute_dtype(mixed.dtype)
        convolved = rows[:, :n].to(work) * weight[:, 0].to(work)
        for tap in range(1, kept + 1):
            convolved = convolved + rows[:, tap : tap + n].to(work) * weight[:, tap].to(work)  # (B, N, W)
        if order is not None:
            last = take(rows, order.count + torch.arange(kept, device=rows.device))  # (B, K − 1, W)
        else:
            last = rows[:, rows.shape[1] - kept :]
            if valid is not None:  # one column, which may be padding
                last = torch.where(valid[:, :, None], last, rows[:, :kept])
        return convolved, last.transpose(1, 2).to(past.dtype)

    def _key_heads(self, x: Tensor, settings: DeltaSettings) -> Tensor:
        """Split ``(B, N, HK·D)`` into unit-norm heads, repeated for value heads that share one: ``(B, H, N, D)``."""
        batch, n, _ = x.shape
        heads = x.view(batch, n, settings.key_heads, settings.key_width).transpose(1, 2)  # (B, HK, N, D)
        unit = heads * torch.rsqrt((heads * heads).sum(-1, keepdim=True) + L2_EPS)
        times = settings.value_heads // settings.key_heads
        if times == 1:
            return unit
        shape = (batch, settings.key_heads, times, n, settings.key_width)
        return unit[:, :, None].expand(shape).reshape(batch, settings.value_heads, n, settings.key_width)

    def beta(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return β, ``(B, N, H)``, for tokens ``x``, ``(B, N, C)``."""
        if not self.settings.has_beta:
            beta = torch.ones_like(x[:, :, :1], dtype=dtype).expand(-1, -1, self.settings.value_heads)
        else:
            beta = self.b_proj(x).to(dtype).sigmoid()
        return beta * 2 if self.settings.negative_eigenvalues else beta

    def log_decay(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return log α, ``(B, N, H)``: 0, because the plain delta rule has no decay."""
        return torch.zeros_like(x[:, :, :1], dtype=dtype).expand(-1, -1, self.settings.value_heads)

    def empty_cache(self, batch: int, like: Tensor) -> LayerCache:
        layout = state_layout(self.settings, self.state_dtype, self._cache_dtype or _name(like.dtype))
        return tuple(like.new_zeros((batch, *each.shape), dtype=getattr(torch, each.dtype)) for each in layout)

    def store_cache_as(self, cache_dtype: str, dtype: torch.dtype) -> None:
        self._cache_dtype = _name(dtype) if cache_dtype == "auto" else cache_dtype


class GatedDeltaNet(DeltaNet):
    """A gated DeltaNet layer: each head's state decays by a factor computed from the token."""

    def __init__(self, config: LucidConfig, settings: DeltaSettings, implementation: str) -> None:
        super().__init__(config, settings, implementation)
        self.a_proj = nn.Linear(config.hidden_size, settings.value_heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(settings.value_heads))
        self.dt_bias = nn.Parameter(torch.ones(settings.value_heads))

    def log_decay(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return log α, ``(B, N, H)``, for tokens ``x``, ``(B, N, C)``: −exp(A) softplus(a + b)."""
        return -self.A_log.to(dtype).exp() * F.softplus(self.a_proj(x).to(dtype) + self.dt_bias.to(dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class TokenOrder:
    """The permutation of columns that puts the tokens of each row first, and padding after them. B batch, N columns."""

    place: Tensor  # the new position of each column, int64 (B, N): tokens first, in order, then padding
    source: Tensor  # the inverse: the column at each new position, int64 (B, N)
    count: Tensor  # the number of tokens of each row, int64 (B, 1)
    valid: Tensor  # which new positions hold a token, bool (B, N)


def last_columns(mask: Tensor, count: int) -> Tensor:
    """Return the last ``count`` columns of a mask ``(B, T)``.

    They are selected by index, because TensorRT would expect a slice from T − N to T to have up to T columns.
    """
    return mask.index_select(1, mask.shape[1] - count + torch.arange(count, device=mask.device))


def token_order(new: Tensor) -> TokenOrder:
    """Return the permutation that moves padding last; ``new``, bool ``(B, N)``, is False at padding."""
    n = new.shape[1]
    number = new.to(torch.int64).cumsum(1)  # (B, N): tokens up to here
    count = number[:, -1:]  # (B, 1)
    column = torch.arange(n, device=new.device)
    place = torch.where(new, number - 1, count + column - number)  # (B, N)
    source = torch.zeros_like(place).scatter(1, place, column.expand(place.shape))
    return TokenOrder(place, source, count, column < count)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Gather along axis 1, for each batch row: ``(B, R, C)`` and int64 ``(B, M)`` to ``(B, M, C)``."""
    batch, count, width = rows.shape
    # Indexing the rows of one matrix exports as Gather; runtimes restrict GatherElements.
    first = torch.arange(batch, device=rows.device)[:, None] * count
    matrix, places = rows.reshape(batch * count, width), (first + index).reshape(batch * index.shape[1])
    return matrix.index_select(0, places).reshape(batch, index.shape[1], width)
