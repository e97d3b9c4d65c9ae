"""A plain GPT of nanoGPT's shape in PyTorch: the model, its optimizer and its training step.

Imported by the baselines beside it, which another interpreter runs; nothing here needs meshlm.
"""

import contextlib
import dataclasses

import torch
from torch import nn
from torch.nn import functional

MODES = ('float32-eager', 'float32-compile', 'bfloat16-eager', 'bfloat16-compile')


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a model and its batch; no biases, no dropout, tied head, as in nanoGPT's own configs."""

  num_layers: int
  num_heads: int
  embed_dim: int
  sequence_length: int
  rows: int
  vocab_size: int


class Block(nn.Module):
  def __init__(self, shape):
    super().__init__()
    width = shape.embed_dim
    self.num_heads = shape.num_heads
    self.attention_norm = nn.LayerNorm(width, bias=False)
    self.qkv = nn.Linear(width, 3 * width, bias=False)
    self.out = nn.Linear(width, width, bias=False)
    self.mlp_norm = nn.LayerNorm(width, bias=False)
    self.up = nn.Linear(width, 4 * width, bias=False)
    self.down = nn.Linear(4 * width, width, bias=False)

  def forward(self, x):
    x = x + self.attention(self.attention_norm(x))
    return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))

  def attention(self, x):
    rows, length, width = x.shape
    heads = (t.view(rows, length, self.num_heads, -1).transpose(1, 2) for t in self.qkv(x).split(width, dim=2))
    y = functional.scaled_dot_product_attention(*heads, is_causal=True)
    return self.out(y.transpose(1, 2).reshape(rows, length, width))


class GPT(nn.Module):
  def __init__(self, shape):
    super().__init__()
    self.tokens = nn.Embedding(shape.vocab_size, shape.embed_dim)
    self.positions = nn.Embedding(shape.sequence_length, shape.embed_dim)
    self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
    self.final_norm = nn.LayerNorm(shape.embed_dim, bias=False)
    for name, parameter in self.named_parameters():
      if parameter.dim() == 2:
        residual = name.endswith(('out.weight', 'down.weight'))
        nn.init.normal_(parameter, std=0.02 / (2 * shape.num_layers) ** 0.5 if residual else 0.02)

  def forward(self, inputs, targets):
    x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
    for block in self.blocks:
      x = block(x)
    logits = functional.linear(self.final_norm(x), self.tokens.weight)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Trainer:
  """The model in one of MODES with AdamW and clipping; `step` does one update."""

  def __init__(self, shape, mode, *, learning_rate, beta2):
    dtype, execution = mode.split('-')
    torch.manual_seed(1337)
    model = GPT(shape)
    groups = [
      {'params': [p for p in model.parameters() if p.dim() == 2], 'weight_decay': 0.1},
      {'params': [p for p in model.parameters() if p.dim() == 1], 'weight_decay': 0.0},
    ]
    self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)
    self.parameters = list(model.parameters())
    self.num_parameters = sum(p.numel() for p in self.parameters)
    self.model = torch.compile(model) if execution == 'compile' else model
    self.autocast = torch.autocast('cpu', dtype=torch.bfloat16) if dtype == 'bfloat16' else contextlib.nullcontext()

  def loss(self, inputs, targets):
    with self.autocast:
      return self.model(inputs, targets)

  def step(self, inputs, targets, learning_rate=None):
    if learning_rate is not None:
      for group in self.optimizer.param_groups:
        group['lr'] = learning_rate
    loss = self.loss(inputs, targets)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(self.parameters, 1.0)
    self.optimizer.step()
    return loss.detach()


def random_rows(data, shape, generator):
  """A batch of windows at random places of a 1-D array of token ids, and the same one token later."""
  starts = torch.randint(len(data) - shape.sequence_length, (shape.rows,), generator=generator)
  return (
    torch.stack([data[i : i + shape.sequence_length] for i in starts]),
    torch.stack([data[i + 1 : i + 1 + shape.sequence_length] for i in starts]),
  )
