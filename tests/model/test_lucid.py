"""The whole model: what it does beyond its layers."""

from __future__ import annotations

from typing import Any

import torch

from lucid_deploy.model.lucid import LucidForCausalLM
from tests.model.config_samples import LUCID, parse


def model(base: dict[str, Any] = LUCID, implementation: str = "blocked", **changes: Any) -> LucidForCausalLM:
    """Return a random float64 model whose keys are correlated, since its tokens share a direction that keys see."""
    torch.manual_seed(0)
    made = LucidForCausalLM(parse(base, **changes), implementation).double().eval().requires_grad_(False)
    made.model.embed_tokens.weight.mul_(0.5).add_(torch.randn(48).double())
    for layer in made.layers():
        layer.mixer.k_proj.weight.mul_(3)  # type: ignore[union-attr]
    return made


def ids() -> torch.Tensor:
    found = torch.randint(1, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    found[1, 3:9] = 7  # one token repeated
    return found


def test_the_readable_formulas_give_the_same() -> None:
    blocked, reference = model()(ids()), model(implementation="reference")(ids())
    torch.testing.assert_close(blocked[0], reference[0], rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(blocked[1], reference[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_prompt_in_pieces_gives_what_it_gives_whole() -> None:
    made = model()
    whole, cache = made(ids())
    past = None
    for start, end in ((0, 1), (1, 7), (7, 11)):
        _, past = made(ids()[:, start:end], past)
    last, present = made(ids()[:, 11:], past, decode=True)
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(present, cache, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_only_the_last_tokens_logits() -> None:
    made, mask = model(), torch.ones(2, 12)
    mask[0, 9:] = 0  # padding on the right
    whole, _ = made(ids(), attention_mask=mask)
    last, _ = made(ids(), attention_mask=mask, last_only=True)
    torch.testing.assert_close(last[:, 0], torch.stack([whole[0, 8], whole[1, 11]]))


def test_a_static_cache_is_read_as_far_as_it_is_filled() -> None:
    made = model()
    _, cache = made(ids()[:, :11])
    wanted, present = made(ids()[:, 11:], cache, decode=True)
    garbage = torch.full((2, 2, 9, 12), 1e3).double()
    buffers = [tuple(torch.cat([rows, garbage], dim=2) for rows in layer) for layer in cache]
    length = torch.full((2,), 11)
    mask = torch.ones(2, 20)
    got, written = made(ids()[:, 11:], buffers, mask, decode=True, cache_length=length)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(written, present, strict=True):
        for buffer, rows in zip(ours, theirs, strict=True):
            torch.testing.assert_close(buffer[:, :, :12], rows, rtol=1e-9, atol=1e-9)
            assert (buffer[:, :, 12:] == 1e3).all()


def test_a_tied_head_is_the_embedding_again_after_weights_were_assigned() -> None:
    made = model(tie_word_embeddings=True)
    state = {name: torch.zeros_like(value) for name, value in made.state_dict().items()}
    made.load_state_dict(state, assign=True)
    made.tie_weights()
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert model().lm_head.weight is not model().model.embed_tokens.weight
