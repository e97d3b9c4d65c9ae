"""What layers keep for the backward pass, against a count by hand."""

import jax
import jax.numpy as jnp
import pytest

from training import configs, kept, program

ROWS, LENGTH, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP = 2, 8, 16, 4, 2, 4, 24
SIZES = {
  'model.vocab_size': 64,
  'model.num_layers': 3,
  'model.embed_dim': EMBED,
  'model.num_heads': HEADS,
  'model.num_kv_heads': KV_HEADS,
  'model.mlp_dim': MLP,
}


def config(**changes):
  values = SIZES | {f'model.{key}': value for key, value in changes.items()}
  return configs.load('configs/base.py', [f'{key}={value}' for key, value in values.items()])


def found(**changes):
  batch = dict.fromkeys(('tokens', 'labels', 'positions', 'segment_ids'), jnp.zeros((ROWS, LENGTH), jnp.int32))
  (layers,) = kept.of_layers(config(**changes), batch)
  return layers


def test_the_bytes_are_those_counted_by_hand():
  a_token = 4 * ROWS * LENGTH  # bytes of one float32 a token
  full, selective, none = (found(remat=kind) for kind in ('full', 'selective', 'none'))
  assert full.bytes == full.entering == EMBED * a_token and full.layers == 3
  # Queries, keys and values, the stream behind attention, and the two that make what the feed-forward contracts.
  products = HEADS * HEAD_DIM + 2 * KV_HEADS * HEAD_DIM + EMBED + 2 * MLP
  assert selective.bytes == (EMBED + products) * a_token
  assert full.bytes < selective.bytes < none.bytes
  # A pattern is about its modules alone, of which then what enters them is kept.
  modules = found(remat='full', remat_modules="('*/mlp',)")
  assert selective.bytes < modules.bytes < none.bytes
  assert any(name.startswith('layers/mlp:') for name in none.inside)
  assert not any(name.startswith(('layers/mlp:', 'layers/mlp/')) for name in modules.inside)


def test_the_table_adds_up():
  layers = found(remat='selective')
  lines = kept.table([layers], largest=2).splitlines()
  assert lines[1].split() == ['layers', '3', f'{layers.bytes:,}', f'{3 * layers.bytes:,}']
  assert lines[2].split() == ['what', 'enters', f'{layers.entering:,}'] and len(lines) == 6
  assert lines[-1].split() == ['together', '3', f'{3 * layers.bytes:,}']


def test_offload_without_another_memory_is_refused_before_anything_is_compiled():
  assert jax.default_backend() == 'cpu'
  with pytest.raises(ValueError, match="the same on platform 'cpu'; set model.remat='selective'"):
    program.build(config(remat='offload'))


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'remat_modules': "('*/mlp',)"}, "of model.remat='none'; set model.remat='full'"),
    ({'remat': 'selective', 'remat_kept': '()'}, r"keeps nothing of model.remat_kept=\(\); set model.remat='full'"),
  ],
)
def test_values_that_do_not_go_together_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    found(**changes)
