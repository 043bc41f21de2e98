"""A model of one's own with LUCID, from training to artifact: its attention goes through transformers' registry.

It learns to count. The parts that matter are shown in docs/models.md.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

import lucid_deploy as ld
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.precondition.torch_operator import precondition


def lucid(module, query, key, value, attention_mask, **options):
    """Attend in training; the export replaces this function by its own attention."""
    mask, none = torch.ones(len(key), key.shape[2], dtype=torch.bool), key[:, :, :0]
    y = precondition(key, value, none, none, mask, eps=1e-6)
    return causal_attention(query, key, y, mask).transpose(1, 2), None


AttentionInterface.register("lucid_training", lucid)


class CounterConfig(PreTrainedConfig):
    """The model's sizes."""

    model_type = "counter"
    vocab_size: int = 16
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    max_position_embeddings: int = 64


class Layer(nn.Module):
    """Attention alone, without an MLP and without positions."""

    def __init__(self, config):
        super().__init__()
        self.config, self.heads, self.num_key_value_groups = config, config.num_attention_heads, 1
        self.norm, self.qkv = nn.RMSNorm(config.hidden_size), nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, mask):
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return x + self.out(attend(self, q, k, v, mask, scaling=q.shape[3] ** -0.5)[0].flatten(2))


class Counter(PreTrainedModel, GenerationMixin):
    """The model."""

    config_class = CounterConfig
    _supports_attention_backend = True  # any attention of the registry

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, position_ids=None, **rest):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        mask = create_causal_mask(self.config, x, attention_mask, cache=None, position_ids=position_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return CausalLMOutputWithPast(logits=self.lm_head(x))


model = Counter._from_config(CounterConfig(), attn_implementation="lucid_training")
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(60):  # each token is the one before plus 1, modulo 16
    ids = (torch.randint(16, (32, 1)) + torch.arange(17)) % 16
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.config.attention_type = "lucid"
artifact = ld.export(model.eval(), "counter", keep_checkpoint="counter-checkpoint")
artifact.verify(quick=True).raise_if_failed()
with artifact.open() as opened:
    print(opened.generate([3, 4, 5], max_new_tokens=5).ids)  # [6, 7, 8, 9, 10]
