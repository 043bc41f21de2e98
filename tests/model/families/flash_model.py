"""Small models in flash-linear-attention's layout, and what its layer files say that they compute, written out plainly.

It shares no code with the package. The recurrence can be replaced: tests/compat puts the published one in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 200,
    "norm_eps": 1e-5,
}
ATTENTION = {"layers": [1], "num_heads": 4, "num_kv_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"model_type": "delta_net"},
    "gate, doubled beta, other widths, attention": {
        "model_type": "delta_net",
        "use_gate": True,
        "allow_neg_eigval": True,
        "expand_k": 0.5,
        "expand_v": 2.0,
        "attn": ATTENTION,
    },
    "bare, attention over a window": {
        "model_type": "delta_net",
        "use_short_conv": False,
        "use_beta": False,
        "attn": {**ATTENTION, "window_size": 9, "qkv_bias": True},
    },
    "decay, shared keys, attention": {
        "model_type": "gated_deltanet",
        "head_dim": 6,
        "num_v_heads": 8,
        "attn": {**ATTENTION, "rope_theta": 500.0},
    },
    "decay, sigmoid, doubled beta": {
        "model_type": "gated_deltanet",
        "head_dim": 6,
        "expand_v": 1.5,
        "output_gate_activation": "sigmoid",
        "allow_neg_eigval": True,
        "conv_size": 3,
    },
    "decay, bare": {"model_type": "gated_deltanet", "head_dim": 6, "use_gate": False, "use_short_conv": False},
}
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Flash:
    """A random model, its tensors in float64.

    Args:
        given: Its configuration beyond :data:`SMALL`.
        solved: Layers whose attention is LUCID.
    """

    def __init__(self, given: dict[str, Any], solved: tuple[int, ...] = ()) -> None:
        self.raw = {**SMALL, **given}
        self.solved, self.gated = solved, given["model_type"] == "gated_deltanet"
        self.heads = self.raw["num_heads"]
        self.value_heads = self.raw.get("num_v_heads") or self.heads
        hidden = self.raw["hidden_size"]
        key = self.raw["head_dim"] if self.gated else hidden * self.raw.get("expand_k", 1) / self.heads
        value = key * self.raw.get("expand_v", 2) if self.gated else hidden * self.raw.get("expand_v", 1) / self.heads
        self.key, self.value = int(key), int(value)
        torch.manual_seed(3)
        self.tensors = {name: self._random(name, shape) for name, shape in self._shapes()}

    def save(self, directory: Path) -> Path:
        """Write the checkpoint in float32; return its directory."""
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.raw))
        save_file({name: x.float().contiguous() for name, x in self.tensors.items()}, directory / "model.safetensors")
        return directory

    def _random(self, name: str, shape: tuple[int, ...]) -> Tensor:
        x = torch.randn(shape, dtype=torch.float64)
        x = 0.25 * x if len(shape) == 2 or "bias" in name else 1 + 0.3 * x
        x = x + 0.25 * torch.randn(shape[1], dtype=torch.float64) if "embeddings" in name else x
        return x.float().double()

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        hidden, inner, vocab = (self.raw[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
        found: list[tuple[str, tuple[int, ...]]] = [("model.embeddings.weight", (vocab, hidden))]
        for index in range(self.raw["num_hidden_layers"]):
            attends = index in (self.raw.get("attn") or {"layers": ()})["layers"]
            mixer = self._attention_shapes() if attends else self._delta_shapes()
            parts = [("attn_norm.weight", (hidden,)), *((f"attn.{name}", shape) for name, shape in mixer)]
            parts += [("mlp_norm.weight", (hidden,)), ("mlp.gate_proj.weight", (inner, hidden))]
            parts += [("mlp.up_proj.weight", (inner, hidden)), ("mlp.down_proj.weight", (hidden, inner))]
            found += [(f"model.layers.{index}.{name}", shape) for name, shape in parts]
        return [*found, ("model.norm.weight", (hidden,)), ("lm_head.weight", (vocab, hidden))]

    def _attention_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        attention, hidden = self.raw["attn"], self.raw["hidden_size"]
        width = hidden // attention["num_heads"] * attention["num_kv_heads"]
        rows = {"q": hidden, "k": width, "v": width}
        found: list[tuple[str, tuple[int, ...]]] = [(f"{part}_proj.weight", (n, hidden)) for part, n in rows.items()]
        found += [(f"{part}_proj.bias", (n,)) for part, n in rows.items() if attention.get("qkv_bias")]
        return [*found, ("o_proj.weight", (hidden, hidden))]

    def _delta_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        hidden, keys, values = self.raw["hidden_size"], self.heads * self.key, self.value_heads * self.value
        rows = {"q": keys, "k": keys, "v": values}
        found: list[tuple[str, tuple[int, ...]]] = [(f"{part}_proj.weight", (n, hidden)) for part, n in rows.items()]
        if self.gated:
            found += [("A_log", (self.value_heads,)), ("dt_bias", (self.value_heads,))]
            found += [("a_proj.weight", (self.value_heads, hidden))]
        if self.raw.get("use_beta", True):
            found += [("b_proj.weight", (self.value_heads, hidden))]
        if self.raw.get("use_short_conv", True):
            size = self.raw.get("conv_size", 4)
            found += [(f"{part}_conv1d.weight", (n, 1, size)) for part, n in rows.items()]
        if self.raw.get("use_gate", self.gated):
            found += [("g_proj.weight", (values, hidden))]
        return [*found, ("o_norm.weight", (self.value,)), ("o_proj.weight", (hidden, values))]

    def logits(self, ids: Tensor, recurrence: Recurrence | None = None) -> Tensor:
        """Return the logits of tokens ``(B, N)``, ``(B, N, vocab)`` in float64."""
        get = self.tensors
        x = get["model.embeddings.weight"][ids]
        for index in range(self.raw["num_hidden_layers"]):
            at = f"model.layers.{index}."
            h = self._norm(x, get[f"{at}attn_norm.weight"])
            if f"{at}attn.o_norm.weight" in get:
                x = x + self._delta(h, f"{at}attn.", recurrence or plain_recurrence)
            else:
                x = x + self._attention(h, f"{at}attn.", index)
            h = self._norm(x, get[f"{at}mlp_norm.weight"])
            inner = F.silu(h @ get[f"{at}mlp.gate_proj.weight"].T) * (h @ get[f"{at}mlp.up_proj.weight"].T)
            x = x + inner @ get[f"{at}mlp.down_proj.weight"].T
        return self._norm(x, get["model.norm.weight"]) @ get["lm_head.weight"].T

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.raw["norm_eps"]) * weight

    def _delta(self, x: Tensor, at: str, recurrence: Recurrence) -> Tensor:
        batch, n, _ = x.shape
        get = self.tensors

        def convolved(part: str) -> Tensor:
            y = x @ get[f"{at}{part}_proj.weight"].T
            weight = get.get(f"{at}{part}_conv1d.weight")
            if weight is not None:
                y = F.conv1d(F.pad(y.mT, (weight.shape[-1] - 1, 0)), weight, groups=len(weight)).mT
            return F.silu(y)

        q, k = (convolved(part).view(batch, n, self.heads, self.key) for part in ("q", "k"))
        v = convolved("v").view(batch, n, self.value_heads, self.value)
        times = self.value_heads // self.heads
        q, k = ((y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-6)).repeat_interleave(times, 2) for y in (q, k))
        beta, log_decay = torch.ones_like(v[..., 0]), torch.zeros_like(v[..., 0])
        if f"{at}b_proj.weight" in get:
            beta = (x @ get[f"{at}b_proj.weight"].T).sigmoid()
        if self.raw.get("allow_neg_eigval"):
            beta = 2 * beta
        if self.gated:
            steps = F.softplus(x @ get[f"{at}a_proj.weight"].T + get[f"{at}dt_bias"])
            log_decay = -get[f"{at}A_log"].exp() * steps
        o = self._norm(recurrence(q, k, v, log_decay, beta), get[f"{at}o_norm.weight"])
        if f"{at}g_proj.weight" in get:
            gate = torch.sigmoid if self.raw.get("output_gate_activation") == "sigmoid" else F.silu
            o = o * gate(x @ get[f"{at}g_proj.weight"].T).view(o.shape)
        return o.flatten(2) @ get[f"{at}o_proj.weight"].T

    def _attention(self, x: Tensor, at: str, index: int) -> Tensor:
        attention, (batch, n, hidden) = self.raw["attn"], x.shape
        heads, d = attention["num_heads"], hidden // attention["num_heads"]

        def projected(part: str) -> Tensor:
            y = x @ self.tensors[f"{at}{part}_proj.weight"].T + self.tensors.get(f"{at}{part}_proj.bias", 0)
            return y.view(batch, n, -1, d).transpose(1, 2)

        frequencies = (attention.get("rope_theta", 1e4) ** -(torch.arange(0, d, 2).double() / d)).float().double()
        angles = torch.arange(n)[:, None].double() * frequencies

        def rotated(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

        q, k, v = rotated(projected("q")), rotated(projected("k")), projected("v")
        if index in self.solved:
            unit = k / torch.sqrt((k * k).mean(-1, keepdim=True) + self.raw["norm_eps"])
            system = torch.exp(unit @ unit.mT / math.sqrt(d) - math.sqrt(d)).tril(-1) + torch.eye(n).double()
            v = torch.stack([torch.linalg.inv(one) for one in system.flatten(0, 1)]).view(system.shape) @ v
        k, v = (y.repeat_interleave(heads // attention["num_kv_heads"], 1) for y in (k, v))
        age = torch.arange(n)[:, None] - torch.arange(n)
        hidden_ones = (age < 0) | (age >= (attention.get("window_size") or n))
        scores = (q @ k.mT / math.sqrt(d)).masked_fill(hidden_ones, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ self.tensors[f"{at}o_proj.weight"].T


def plain_recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """Token by token; q and k ``(B, N, H, D)``, v ``(B, N, H, E)``, log α and β ``(B, N, H)``, result like v."""
    state = torch.zeros(*k.shape[:1], *k.shape[2:], v.shape[3], dtype=v.dtype)  # (B, H, D, E)
    found = []
    for t in range(k.shape[1]):
        state = log_decay[:, t].exp()[..., None, None] * state
        held = torch.einsum("bhde,bhd->bhe", state, k[:, t])
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t], beta[:, t, :, None] * (v[:, t] - held))
        found.append(torch.einsum("bhde,bhd->bhe", state, q[:, t]) / math.sqrt(k.shape[3]))
    return torch.stack(found, 1)
