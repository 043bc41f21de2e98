"""Run by ``test_flash_recurrence.py`` where flash-linear-attention can be imported: its recurrences and its classes."""

from __future__ import annotations

import sys
import warnings

import torch

from tests.model.families.flash_model import MODELS, Flash, plain_recurrence

EXACT = 1e-12  # float64 in another order
warnings.simplefilter("ignore")


def main() -> None:
    """Compare our written-out layers with the same layers around the published recurrence; exit with what differs."""
    from fla.models.delta_net import DeltaNetConfig, DeltaNetForCausalLM
    from fla.models.gated_deltanet import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    from lucid_deploy.model.float64 import all_in_float64

    def plain(q, k, v, log_decay, beta):  # type: ignore[no-untyped-def]
        turned = (x.transpose(1, 2) for x in (q, k, v, beta))
        with all_in_float64():  # its code casts to float32
            return delta_rule_recurrence(*turned)[0].transpose(1, 2)

    def gated(q, k, v, log_decay, beta):  # type: ignore[no-untyped-def]
        with all_in_float64():
            return naive_recurrent_gated_delta_rule(q, k, v, beta, log_decay)[0]

    ids = torch.randint(61, (2, 50), generator=torch.Generator().manual_seed(0))
    ids[1, 10:30] = 7
    for name, given in MODELS.items():
        model = Flash(given)
        published = model.logits(ids, gated if model.gated else plain)
        own = model.logits(ids, plain_recurrence)
        if not (published - own).norm() <= EXACT * own.norm():
            sys.exit(f"{name}: the published recurrence differs by {(published - own).norm() / own.norm():.1e}")
        if "attn" in model.raw:
            continue  # its attention needs flash-attn, which needs a GPU
        config, kind = (
            (GatedDeltaNetConfig, GatedDeltaNetForCausalLM) if model.gated else (DeltaNetConfig, DeltaNetForCausalLM)
        )
        made = kind(config(**{key: value for key, value in model.raw.items() if key != "model_type"}))
        shapes = {key: tuple(x.shape) for key, x in made.state_dict().items()}
        if shapes != {key: tuple(x.shape) for key, x in model.tensors.items()}:
            sys.exit(f"{name}: its class has other tensors: {shapes}")
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
