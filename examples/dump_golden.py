"""Record what a PyTorch model computes, for ``lucid-deploy verify ARTIFACT --golden FILE``. Paste it into your code.

It takes any causal language model that is called as Hugging Face's are: model(input_ids), which returns logits or an
object with ``.logits`` and perhaps ``.past_key_values``. Needs torch and safetensors. Best run in float32 or float64.
"""

import argparse

import torch
from safetensors.torch import save_file


@torch.no_grad()
def dump_golden(model, path, tokens=64, rows=2, vocabulary=None, input_ids=None, layers=None, seed=0):
    """Run a model on some tokens and write ids, logits and, where the model returns them, keys and values.

    vocabulary: token ids to draw from; default: the model's config.vocab_size.
    input_ids: int64 (rows, tokens) of your own, in place of random and repeated ones.
    layers: for a model that returns no cache, a function that is called after the model and returns
        {index: (key, value)}, each (rows, key/value heads, tokens, width): the key as it is cached, rotated and not
        normalised for the solve; and Y, or V where attention is standard.
    """
    first = next(model.parameters())
    if input_ids is None:
        size = vocabulary or model.config.vocab_size
        input_ids = torch.randint(size, (rows, tokens), generator=torch.Generator().manual_seed(seed))
        input_ids[:, tokens // 4 : tokens // 2] = input_ids[:, :1]  # one token again and again: where a solve shows
    training = model.training
    model.eval()
    out = model(input_ids.to(first.device))
    model.train(training)

    logits = out if torch.is_tensor(out) else out["logits"] if isinstance(out, dict) else out.logits
    tensors = {"input_ids": input_ids, "logits": logits}
    for index, (key, value) in (_cached(out) if layers is None else layers()).items():
        tensors |= {f"layers.{index}.key": key, f"layers.{index}.value": value}
    kind = torch.get_autocast_dtype(first.device.type) if torch.is_autocast_enabled(first.device.type) else first.dtype
    metadata = {"golden_version": "1", "computed_in": str(kind).removeprefix("torch."), "model": type(model).__name__}
    save_file({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, path, metadata)


def _cached(out):
    """Return {layer: (key, value)} of what transformers returns, new or old; empty if there is nothing."""
    cache = getattr(out, "cache", None) or getattr(out, "past_key_values", None)
    if cache is None:
        return {}
    pairs = [(x.keys, x.values) for x in cache.layers] if hasattr(cache, "layers") else [x[:2] for x in cache]
    return dict(enumerate(pairs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="Checkpoint for transformers' AutoModelForCausalLM.")
    parser.add_argument("--output", required=True, help="The golden file to write.")
    parser.add_argument("--dtype", default="float32", help="Type to compute in.")
    given = parser.parse_args()

    from transformers import AutoModelForCausalLM

    dump_golden(AutoModelForCausalLM.from_pretrained(given.checkpoint, dtype=getattr(torch, given.dtype)), given.output)
