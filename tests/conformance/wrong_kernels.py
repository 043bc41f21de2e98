"""Sixteen wrong kernels, each with a mistake that somebody once made; each must fail at least one case."""

from __future__ import annotations

import numpy as np

from lucid_deploy.conformance.formulas import Array, normalized
from lucid_deploy.conformance.problems import NUMPY, single
from tests.conformance.plain_kernels import PlainKernels

EPSILON = 1e-5


class ValuesAreNotPreconditioned(PlainKernels):
    """Y = V."""

    def solve(self, weights: Array, right: Array) -> Array:
        return right

    def weights_of_past(self, weights: Array) -> Array:
        return np.zeros_like(weights)


class NormalizedKeysCached(PlainKernels):
    """The cache gets K̂ instead of the raw keys."""

    def cached_keys(self, keys: Array) -> Array:
        return normalized(keys, EPSILON)


class DiagonalFromEpsilon(PlainKernels):
    """The diagonal of L is exp(K̂·K̂/√d − √d), a little below 1 since eps is in K̂, instead of 1."""

    def solve(self, weights: Array, right: Array) -> Array:
        diagonal = np.diagonal(weights, axis1=2, axis2=3)[..., None]
        diagonal = np.where(diagonal > 0, diagonal, 1)  # padding
        return super().solve(weights / diagonal, right / diagonal)


class NoMaskInTheSolve(PlainKernels):
    """Padding is hidden from the softmax alone, and takes part in the solve."""

    def taking_part(self, mask: Array, past: int) -> Array:
        return super().taking_part(np.ones_like(mask), past)


class StaleBufferRow(PlainKernels):
    """Decoding sees one row of the buffer behind the last token, and a buffer keeps a row that was to be replaced."""

    def seen_in_buffer(self, mask: Array) -> Array:
        seen = mask.copy()
        for row in seen:
            hidden = np.flatnonzero(~row[1:] & row[:-1]) + 1
            row[hidden[:1]] = True
        return seen

    def scatter_row(self, cache: Array, row: Array, index: Array) -> tuple[Array, ...]:
        (present,) = super().scatter_row(cache, row, index)
        present[-1] = cache[-1]
        return (present,)


class PastOffByOne(PlainKernels):
    """The last token of the cache is left out of what the new ones receive."""

    def weights_of_past(self, weights: Array) -> Array:
        return weights * (np.arange(weights.shape[-1]) < weights.shape[-1] - 1)


class GroupedHeadsTiled(PlainKernels):
    """Query head i reads key/value head i mod H, instead of i div G."""

    def shared(self, tensor: Array, groups: int) -> Array:
        return np.tile(tensor, (1, groups, 1, 1))


class WeightsInBfloat16(PlainKernels):
    """E is rounded to bfloat16's 8 bits."""

    def rounded(self, weights: Array) -> Array:
        return weights.astype(NUMPY["bfloat16"]).astype(np.float32)


class NilpotentProduct(PlainKernels):
    """L⁻¹ = ∏(I + X^(2^k)) with X = I − L: exact on paper, binomial growth in floating point."""

    def solve(self, weights: Array, right: Array) -> Array:
        size = right.shape[2]
        power = -np.tril(weights, -1)
        inverse = np.eye(size, dtype=np.float32) + power
        for _ in range(max(size - 1, 1).bit_length() - 1):
            power = power @ power
            inverse = inverse + inverse @ power
        return np.asarray(inverse @ right)


class ShiftMissing(PlainKernels):
    """The exponents lack −√d: L = tril(exp(K̂K̂ᵀ/√d)), with a diagonal of 1."""

    def shift(self, width: int) -> Array:
        return np.zeros((), np.float32)


class SoftmaxOverNormalizedKeys(PlainKernels):
    """Queries are multiplied with K̂ instead of the raw keys."""

    def softmax_keys(self, keys: Array) -> Array:
        return single(normalized(keys, EPSILON))


class RowFinishedTooEarly(PlainKernels):
    """The first row of a block of 32 is finished before the last row of the block before is subtracted."""

    def solve(self, weights: Array, right: Array) -> Array:
        early = weights.copy()
        for row in range(32, right.shape[2], 32):
            early[:, :, row, row - 1] = 0
        return super().solve(early, right)


class DecayMissingInTheCorrection(PlainKernels):
    """The delta rule corrects v − S_{t−1}ᵀk instead of v − α S_{t−1}ᵀk."""

    def decay_before_reading(self, decay: Array) -> Array:
        return 1 / decay


class QueryBeforeTheCorrection(PlainKernels):
    """A query of the delta rule reads the state before its own token has corrected it."""

    def read_by_queries(self, weights: Array) -> Array:
        return np.tril(weights, -1)


class LastTokenNotInState(PlainKernels):
    """The state that is passed on lacks the last token's correction."""

    def kept_in_state(self, decay: Array) -> Array:
        return decay * (np.arange(decay.shape[2]) < decay.shape[2] - 1)[:, None]


class ProductsInOrderOfExperts(PlainKernels):
    """Products stay sorted by expert instead of returning to the order of the rows."""

    def places(self, order: Array) -> Array:
        return np.arange(len(order))


WRONG: tuple[type[PlainKernels], ...] = (
    ValuesAreNotPreconditioned,
    NormalizedKeysCached,
    DiagonalFromEpsilon,
    NoMaskInTheSolve,
    StaleBufferRow,
    PastOffByOne,
    GroupedHeadsTiled,
    WeightsInBfloat16,
    NilpotentProduct,
    ShiftMissing,
    SoftmaxOverNormalizedKeys,
    RowFinishedTooEarly,
    DecayMissingInTheCorrection,
    QueryBeforeTheCorrection,
    LastTokenNotInState,
    ProductsInOrderOfExperts,
)
