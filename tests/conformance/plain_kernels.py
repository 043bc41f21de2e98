"""A plain implementation for tensors of one type: dense, in float32. Its errors against float64 give the tolerances.

Where tensors are float16 or bfloat16, it rounds what fast kernels for these types round: the weights E (to float16, or
to tf32's 11 bits for bfloat16), and Y as it is stored. ``wrong_kernels.py`` changes one method at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lucid_deploy.conformance.formulas import Array, Compute, normalized
from lucid_deploy.conformance.problems import NUMPY, single
from lucid_deploy.plugins import table


class PlainKernels:
    """The operators for tensors of one type.

    Args:
        dtype: ``float32``, ``float16``, ``bfloat16``, and ``int8`` for buffers.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def operators(self) -> Mapping[str, Compute]:
        """Return the operators by name; each takes the inputs in the table's order and its attributes by name."""
        return {
            table.PRECONDITION.name: self.precondition,
            table.CAUSAL_ATTENTION.name: self.causal_attention,
            table.DECODE_ATTENTION.name: self.decode_attention,
            table.DECODE_ATTENTION_FLOAT16.name: self.decode_attention,
            table.DECODE_ATTENTION_INT8.name: self.decode_attention_scaled,
            table.DECODE_ATTENTION_FLOAT8.name: self.decode_attention_scaled,
            table.DELTA_RULE.name: self.delta_rule,
            table.EXPERT_MATMUL.name: self.expert_matmul,
            table.QUANTIZED_EXPERT_MATMUL.name: self.quantized_expert_matmul,
            table.SCATTER_ROW.name: self.scatter_row,
        }

    def precondition(self, K, V, K_past, Y_past, mask, epsilon, diagonal=0.0):
        past = K_past.shape[2]
        weights = self.weights(np.concatenate([single(K_past), single(K)], axis=2), past, mask, epsilon)
        received = self.weights_of_past(weights[..., :past]) @ single(Y_past)
        new, right = weights[..., past:], single(V) - received
        if diagonal:
            own = np.diagonal(new, axis1=2, axis2=3)[..., None]  # (B, H, N, 1)
            own = np.where(own > 0, own, np.float32(1))  # padding
            new, right = new / own, right / own
        return (self.stored(self.solve(new, right)),)

    def causal_attention(self, Q: Array, K: Array, Y: Array, mask: Array) -> tuple[Array, ...]:
        return (self.stored(self.attend(single(Q), single(K), single(Y), mask)),)

    def decode_attention(self, Q, K_new, V_new, K, Y, mask, epsilon, diagonal=0.0):
        mask = self.seen_in_buffer(mask)
        (y_new,) = self.precondition(K_new, V_new, K, Y, mask, epsilon, diagonal)
        keys, values = (np.concatenate([single(a), single(b)], axis=2) for a, b in ((K, K_new), (Y, y_new)))
        return self.stored(self.attend(single(Q), keys, values, mask)), y_new

    def decode_attention_scaled(self, Q, K_new, V_new, K, Y, K_scale, Y_scale, mask, epsilon, diagonal=0.0):
        keys, values = single(K) * K_scale, single(Y) * Y_scale
        return self.decode_attention(Q, K_new, V_new, keys, values, mask, epsilon, diagonal)

    def delta_rule(
        self, query: Array, key: Array, value: Array, log_decay: Array, beta: Array, state: Array, scale: float
    ) -> tuple[Array, ...]:
        # All tokens are one chunk.
        q, k, v, b = (single(each) for each in (query, key, value, beta[..., None]))
        g = single(log_decay)[..., None]  # (B, H, N, 1)
        lower = np.tril(np.ones((g.shape[2], g.shape[2]), np.float32))
        between = np.exp(np.cumsum(g * np.tril(lower, -1), axis=2)) * lower  # (B, H, N, N): γ_i/γ_j
        from_start = np.exp(np.cumsum(g, axis=2))  # (B, H, N, 1): γ
        own = self.decay_before_reading(np.exp(g))
        scores = k @ np.swapaxes(k, 2, 3) * between * own
        right = b * (v - (k * from_start * own) @ state)
        corrections = self.solve(self.rounded(np.tril(b * scores, -1)), right)  # (B, H, N, E)
        attended = self.rounded(self.read_by_queries(np.float32(scale) * (q @ np.swapaxes(k, 2, 3)) * between))
        output = np.float32(scale) * (q * from_start) @ state + attended @ corrections
        to_end = self.kept_in_state(np.swapaxes(between[:, :, -1:], 2, 3))  # (B, H, N, 1): γ_N/γ
        return self.stored(output), from_start[:, :, -1:] * state + np.swapaxes(k * to_end, 2, 3) @ corrections

    def expert_matmul(self, X: Array, expert: Array, W: Array) -> tuple[Array, ...]:
        order = np.argsort(expert, kind="stable")  # the rows of an expert stand together
        products = np.stack([single(W[e]) @ row for row, e in zip(single(X)[order], expert[order], strict=True)])
        return (self.stored(products[self.places(order)]),)

    def quantized_expert_matmul(self, X: Array, expert: Array, W: Array, scales: Array) -> tuple[Array, ...]:
        numbers = W if W[0, 0].size == X.shape[1] else np.stack([W % 16, W // 16], axis=-1).reshape(*W.shape[:3], -1)
        numbers = single(numbers) - (128 if numbers.size == W.size else 8)
        return self.expert_matmul(X, expert, (numbers * single(scales)[..., None]).reshape(*W.shape[:2], -1))

    def places(self, order: Array) -> Array:
        """Return the index of each row's product among the products sorted by expert."""
        return np.argsort(order)

    def scatter_row(self, cache: Array, row: Array, index: Array) -> tuple[Array, ...]:
        present = cache.copy()
        for batch, place in enumerate(index):
            present[batch, :, place] = row[batch, :, 0]
        return (present,)

    def weights(self, keys: Array, past: int, mask: Array, epsilon: float) -> Array:
        """Return E of the new tokens' rows, ``(B, H, N, P + N)``."""
        unit = normalized(keys, np.float32(epsilon))
        scores = unit[:, :, past:] @ np.swapaxes(unit, 2, 3) / np.sqrt(np.float32(keys.shape[3]))
        return self.rounded(np.exp(scores - self.shift(keys.shape[3])) * self.taking_part(mask, past))

    def solve(self, weights: Array, right: Array) -> Array:
        """Solve the triangular system of the new tokens by substitution; ``weights`` is ``(B, H, N, N)``."""
        y = right.copy()
        for row in range(right.shape[2]):
            sent = weights[:, :, row, None, :row] @ single(self.stored(y[:, :, :row]))
            y[:, :, row] -= sent[:, :, 0]
        return y

    def attend(self, q: Array, keys: Array, values: Array, mask: Array) -> Array:
        """Return softmax(Q Kᵀ/√d) times the values, of the last tokens."""
        groups, new, total = q.shape[1] // keys.shape[1], q.shape[2], keys.shape[2]
        keys, values = self.shared(self.softmax_keys(keys), groups), self.shared(values, groups)
        scores = q @ np.swapaxes(keys, 2, 3) / np.sqrt(np.float32(q.shape[3]))
        age = np.arange(total - new, total)[:, None] - np.arange(total)
        scores = np.where(((age >= 0) & mask[:, None, None, :]) | (age == 0), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray((weights / weights.sum(-1, keepdims=True)) @ values)

    def shift(self, width: int) -> Array:
        """Return what is subtracted from the exponents, which makes the diagonal 1."""
        return np.asarray(np.sqrt(np.float32(width)))

    def taking_part(self, mask: Array, past: int) -> Array:
        """Return which weights count, ``(B, 1, N, P + N)``."""
        return mask[:, None, past:, None] & mask[:, None, None, :]

    def rounded(self, weights: Array) -> Array:
        """Return E rounded as matrix multiplications read it."""
        if self.dtype == "float16":
            return weights.astype(np.float16).astype(np.float32)
        if self.dtype == "bfloat16":  # to tf32, which has 11 bits
            return ((weights.view(np.int32) + 0x1000) & ~0x1FFF).view(np.float32)
        return weights

    def weights_of_past(self, weights: Array) -> Array:
        """Return the weights of the cache's tokens."""
        return weights

    def shared(self, tensor: Array, groups: int) -> Array:
        """Return a key/value head for each query head."""
        return np.repeat(tensor, groups, axis=1)

    def softmax_keys(self, keys: Array) -> Array:
        """Return the keys that queries are multiplied with."""
        return keys

    def cached_keys(self, keys: Array) -> Array:
        """Return the keys of a model's cache as its graph returns them."""
        return keys

    def seen_in_buffer(self, mask: Array) -> Array:
        """Return which rows of a cache's buffer decoding treats as tokens, given the mask."""
        return mask

    def decay_before_reading(self, decay: Array) -> Array:
        """Return a factor of the decayed state that a token's correction reads; 1 is right."""
        return np.ones_like(decay)

    def read_by_queries(self, weights: Array) -> Array:
        """Return each query's weights of the corrections, ``(B, H, N, N)``."""
        return weights

    def kept_in_state(self, decay: Array) -> Array:
        """Return how much of each correction is in the state at the end, ``(B, H, N, 1)``."""
        return decay

    def stored(self, tensor: Array) -> Array:
        """Return a tensor in the type that it is stored in."""
        return tensor.astype(NUMPY[self.dtype])
