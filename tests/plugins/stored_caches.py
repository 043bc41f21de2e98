"""Decode steps over a cache in another type, and their exact results from the same stored numbers."""

from __future__ import annotations

import torch

from lucid_deploy.cache.storage import cache_tensors, encode_layer
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from tests.plugins.cpu_sessions import keys


def problem(past, width, groups, batch=1, dtype="float32", correlation=0.9, heads=2):
    """Return Q, K_new, V_new in the model's type, and K, Y of the past in float32."""
    generator = torch.Generator().manual_seed(past + width + groups)
    k = keys(generator, batch, heads, past + 1, width, correlation)
    y = torch.randn(batch, heads, past + 1, width, generator=generator)
    q = 2 * torch.randn(batch, heads * groups, 1, width, generator=generator)
    kind = getattr(torch, dtype)
    return (q.to(kind), k[:, :, past:].to(kind), y[:, :, past:].to(kind)), k[:, :, :past], y[:, :, :past]


def store(k, y, cache_dtype):
    return tuple(
        map(torch.from_numpy, encode_layer((k.numpy(), y.numpy()), cache_tensors(cache_dtype, *k.shape[1::2])))
    )


def read(stored, dtype, work=None):
    """Return K and Y of stored rows, multiplied by their scales in ``work`` and rounded to ``dtype``."""
    rows = [x.to(work or dtype) for x in stored[:2]]
    return (
        [(x * scale.to(x.dtype)).to(dtype) for x, scale in zip(rows, stored[2:], strict=True)] if stored[2:] else rows
    )


def paths(new, stored, mask, training=False):
    """Return the results in float64, and those of converting all stored rows to the model's type first."""
    kind, double = new[0].dtype, torch.float64
    options = {"mask": mask, "implementation": "reference", "training_diagonal": training}
    exact = decode_attention(*(x.double() for x in new), *read(stored, double), **options)
    k, y = read(stored, kind, torch.float32)
    plain = decode_attention(*(x.float() for x in (*new, k, y)), **options)
    return exact, [x.to(kind) for x in plain]


def padded_mask(past):
    """Return a mask of four rows: padding on the left, a buffer that is filled in part, holes, and nothing at all."""
    mask = torch.ones(4, past + 1, dtype=torch.bool)
    mask[0, :1100] = False  # a whole chunk and more
    mask[1, 150:past] = False
    mask[2, [3, 700, past]] = False  # the new token is padding: its Y is its V
    mask[3, :past] = False
    return mask


def scaled(past, of_k, of_y, seed=0, batch=2):
    """Return a problem whose rows are multiplied by 10 to the power of up to ``of_k`` and ``of_y``."""
    new, k, y = problem(past, 64, 4, batch)
    generator = torch.Generator().manual_seed(seed)
    low_k, low_y = (10.0 ** (span * torch.rand(batch, 2, past, 1, generator=generator)) for span in (of_k, of_y))
    return new, k * low_k, y * low_y
