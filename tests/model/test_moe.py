"""Experts against the plain sum over all of them; routing, losses and metrics by their definitions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harness.layouts import make_layout

import model as model_lib
import objectives
import precision
from configs import base
from model import Stream, Visibility, moe, pattern
from model.context import for_self_attention
from parallel import axes as ax
from training import counting

BATCH, LENGTH, EMBED, EXPERTS = 2, 11, 16, 8
REAL = np.ones((BATCH, LENGTH), bool)
REAL[1, 8:] = False

CASES = {
  'switch': {'experts_per_token': 1, 'z_loss': 0.1, 'jitter': 0.3, 'model': {'gated_mlp': False, 'activation': 'relu'}},
  'qwen': {'experts_per_token': 3, 'shared_mlp_dim': 10},
  'gpt_oss': {'router_bias': True, 'normalize': True, 'model': {'use_bias': True, 'activation': 'swiglu_oss'}},
  'deepseek': {
    'router': 'sigmoid',
    'selection_bias': True,
    'num_groups': 4,
    'groups_per_token': 2,
    'experts_per_token': 3,
    'normalize': True,
    'routed_scale': 2.5,
    'shared_mlp_dim': 20,
  },
}


def config_of(*, model=None, **moe_changes):
  model_config = base.get_config().model
  sizes = {'vocab_size': 64, 'num_layers': 2, 'embed_dim': EMBED, 'num_heads': 2, 'mlp_dim': 12, 'init_scale': 0.4}
  model_config.update(sizes | (model or {}))
  model_config.moe.update({'num_experts': EXPERTS} | moe_changes)
  return model_lib.resolve(model_config)


def context_of(real=REAL, visibility=Visibility.CAUSAL):
  segment_ids = jnp.asarray(real, jnp.int32)
  return for_self_attention(Stream(segment_ids, segment_ids, segment_ids), visibility)


class Layer:
  """A layer of experts as functions of its parameters, which are all random."""

  def __init__(self, visibility=Visibility.CAUSAL, **changes):
    self.config = config_of(**changes)
    self.graph, params = nnx.split(moe.MoE('mlp', self.config, rngs=nnx.Rngs(params=0)))
    leaves, structure = jax.tree.flatten(nnx.to_pure_dict(params))
    random = np.random.default_rng(0)
    self.params = jax.tree.unflatten(structure, [x + 0.2 * random.normal(size=x.shape).astype('f') for x in leaves])
    if 'selection_bias' in self.params['router']:
      self.params['router']['selection_bias'] -= 1.0  # scores below 0 stand against what is ruled out
    self.x = jnp.asarray(random.normal(size=(BATCH, LENGTH, EMBED)), jnp.float32)
    self.weight = jnp.asarray(random.normal(size=(BATCH, LENGTH, EMBED)) * REAL[..., None], jnp.float32)
    self.visibility = visibility
    self.call = jax.jit(self._call)
    self.gradient = jax.jit(jax.value_and_grad(self._loss, (0, 1), has_aux=True))

  def _module(self, params=None):
    return nnx.merge(self.graph, params or self.params)

  def _call(self, params, x, key=None):
    return self._module(params)(x, context_of(visibility=self.visibility), key)

  def _loss(self, params, x):
    y, found = self._call(params, x)
    auxiliary = sum(metric.total for name, metric in found.items() if name.startswith('aux/'))
    return jnp.sum(y * self.weight) + auxiliary, (y, found)


layer = functools.cache(lambda case: Layer(**CASES[case]))


def expert(config, weights, x):
  """One feed-forward, written out."""
  linear = lambda name, x: x @ weights[name]['kernel'] + weights[name].get('bias', 0)
  up, gate = linear('up', x), linear('gate', x) if config.gated_mlp else None
  if config.activation == 'relu':
    return linear('down', jnp.maximum(up, 0))
  if config.activation == 'silu':
    return linear('down', gate / (1 + jnp.exp(-gate)) * up)
  gate, up = jnp.where(gate > 7, 7, gate), jnp.where(up > 7, 7, jnp.where(up < -7, -7, up))
  return linear('down', (up + 1) * gate / (1 + jnp.exp(-1.702 * gate)))


def plain(config, params, x, kept_BxLxE, chosen_BxLxE, weight):
  """Every expert on every token, those not kept times 0; the losses by their definitions. Routing is given."""
  moe_config, router = config.moe, params['router']
  logits = x @ router['kernel'] + router.get('bias', 0)
  exp = jnp.exp(logits)
  scores = 1 / (1 + 1 / exp) if moe_config.router == 'sigmoid' else exp / exp.sum(-1, keepdims=True)
  gates = scores * kept_BxLxE
  if moe_config.normalize:
    gates = gates / jnp.where(REAL, gates.sum(-1), 1)[..., None]
  outputs_ExBxLxD = jax.vmap(lambda weights: expert(config, weights, x))(params['experts'])
  y = moe_config.routed_scale * jnp.einsum('BLE,EBLD->BLD', gates, outputs_ExBxLxD)
  if 'shared' in params:
    y = y + expert(config, params['shared'], x)
  probabilities = (scores / scores.sum(-1, keepdims=True))[REAL].mean(0)
  share = chosen_BxLxE[REAL].mean(0) / moe_config.experts_per_token
  loss = 0.01 * EXPERTS * jnp.sum(share * probabilities)
  loss += moe_config.z_loss * jnp.mean(jnp.log(exp.sum(-1))[REAL] ** 2)
  return jnp.sum(y * weight) + loss, y


def written_out(one, kept, chosen):
  function = jax.value_and_grad(functools.partial(plain, one.config), (0, 1), has_aux=True)
  return jax.jit(function)(one.params, one.x, kept, chosen, one.weight)


def select(config, params, x):
  """The choice of experts [B, L, E] in numpy float64, as the papers say it, one token after another."""
  moe_config, router = config.moe, jax.tree.map(np.float64, params['router'])
  chosen = np.zeros((BATCH, LENGTH, EXPERTS))
  for b, t in zip(*np.nonzero(REAL)):
    logits = np.float64(x[b, t]) @ router['kernel'] + router.get('bias', 0)
    ranked = (1 / (1 + np.exp(-logits)) if moe_config.router == 'sigmoid' else logits) + router.get('selection_bias', 0)
    size = EXPERTS // moe_config.num_groups
    groups = ranked.reshape(-1, size)
    merit = np.sort(groups, axis=1)[:, -2:].sum(1)
    for group in np.argsort(-merit)[moe_config.groups_per_token :]:
      ranked[group * size : (group + 1) * size] = -np.inf
    chosen[b, t, np.argsort(-ranked)[: moe_config.experts_per_token]] = 1
  return chosen


@pytest.mark.parametrize('case', ['switch', 'gpt_oss', 'deepseek'])
def test_value_and_gradients_are_those_of_the_sum_over_all_experts(case):
  one = layer(case)
  chosen = select(one.config, one.params, one.x)
  (_, (y, found)), gradients = one.gradient(one.params, one.x)
  (_, expected), expected_gradients = written_out(one, chosen, chosen)
  np.testing.assert_allclose(y[REAL], expected[REAL], atol=2e-5)
  if case == 'deepseek':
    excess = chosen[REAL].mean(0) / 3 - 1 / EXPERTS
    bias = gradients[0]['router'].pop('selection_bias')
    np.testing.assert_allclose(bias, 1e-6 * excess, rtol=1e-4, atol=1e-12)
    expected_gradients[0]['router'].pop('selection_bias')
  for (path, a), b in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, err_msg=jax.tree_util.keystr(path))
  share = chosen[REAL].mean(0) / one.config.moe.experts_per_token
  np.testing.assert_allclose(found['moe/max_load'].value, EXPERTS * share.max(), rtol=1e-5)
  assert found['moe/dropped_share'].value == 0


def test_gates_need_not_add_up_to_1_and_padding_passes_the_shared_expert_alone():
  one = layer('qwen')
  chosen = select(one.config, one.params, one.x)
  y, _ = one.call(one.params, one.x)
  _, expected = plain(one.config, one.params, one.x, chosen, chosen, one.weight)
  np.testing.assert_allclose(y[REAL], expected[REAL], atol=2e-5)
  shared = expert(one.config, one.params['shared'], one.x)
  np.testing.assert_allclose(y[~REAL], shared[~REAL], atol=1e-5)


def test_the_order_of_experts_does_not_matter():
  one = layer('qwen')
  order = np.random.default_rng(1).permutation(EXPERTS)
  shuffled = {
    **one.params,
    'router': {'kernel': one.params['router']['kernel'][:, order]},
    'experts': jax.tree.map(lambda x: x[order], one.params['experts']),
  }
  y, found = one.call(one.params, one.x)
  again, found_again = one.call(shuffled, one.x)
  np.testing.assert_allclose(y, again, atol=1e-5)
  for name in found:
    np.testing.assert_allclose(found[name].value, found_again[name].value, rtol=1e-5, err_msg=name)


def test_losses_and_entropy_of_a_router_that_knows_nothing():
  one = layer('switch')
  params = {**one.params, 'router': {'kernel': jnp.zeros((EMBED, EXPERTS))}}
  _, found = one.call(params, one.x)
  assert found['aux/balance_loss'].value == pytest.approx(0.01, rel=1e-5)
  assert found['aux/z_loss'].value == pytest.approx(0.1 * math.log(EXPERTS) ** 2, rel=1e-5)
  assert found['moe/router_entropy'].value == pytest.approx(math.log(EXPERTS), rel=1e-5)
  assert found['moe/max_load'].value == EXPERTS


def test_an_expert_beyond_its_capacity_drops_the_later_choices_of_a_row():
  one, of_three = Layer(experts_per_token=2, capacity_factor=1.1), Layer(experts_per_token=2, expert_capacity=3)
  capacity = math.ceil(1.1 * 2 * LENGTH / EXPERTS)
  assert (one._module()._capacity(LENGTH), of_three._module()._capacity(LENGTH)) == (capacity, 3)
  chosen = select(one.config, one.params, one.x)
  kept = chosen * (np.cumsum(chosen, axis=1) <= capacity)
  (_, (y, found)), gradients = one.gradient(one.params, one.x)
  assert 0 < 1 - kept.sum() / chosen.sum() < 1
  assert found['moe/dropped_share'].value == pytest.approx(1 - kept.sum() / chosen.sum())
  (_, expected), expected_gradients = written_out(one, kept, chosen)
  np.testing.assert_allclose(y[REAL], expected[REAL], atol=2e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, expected_gradients)


def test_experts_that_choose_have_equal_loads():
  changes = {'router': 'expert_choice', 'experts_per_token': 2, 'balance_loss': 0}
  one = Layer(**changes, visibility=Visibility.BIDIRECTIONAL)
  y, found = one.call(one.params, one.x)
  logits = np.float64(one.x) @ np.float64(one.params['router']['kernel'])
  scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  capacity = math.ceil(2 * LENGTH / EXPERTS)
  chosen = np.zeros_like(scores)
  for b in range(BATCH):
    for e in range(EXPERTS):
      real = np.flatnonzero(REAL[b])
      chosen[b, real[np.argsort(-scores[b, real, e])[:capacity]], e] = 1
  _, expected = plain(one.config, one.params, one.x, chosen, chosen, one.weight)
  np.testing.assert_allclose(y[REAL], expected[REAL], atol=2e-5)
  assert found['moe/max_load'].value == pytest.approx(1, rel=1e-6)
  assert found['moe/dropped_share'].value == pytest.approx(1 - chosen.any(-1)[REAL].mean(), abs=1e-6)
  with pytest.raises(ValueError, match="router='softmax'"):
    Layer(**changes).call(one.params, one.x)


def test_jitter_needs_a_key_and_moves_the_router_alone():
  one = layer('switch')
  same = functools.partial(one.call, one.params, one.x)
  np.testing.assert_array_equal(same()[0], same()[0])
  moved = same(jax.random.key(1))[0]
  assert float(jnp.abs(moved - same()[0]).max()) > 1e-3
  flat = {**one.params, 'router': {'kernel': jnp.zeros((EMBED, EXPERTS))}}
  call = functools.partial(one.call, flat, one.x)
  np.testing.assert_array_equal(call(jax.random.key(1))[0], call()[0])


def test_work_grows_with_the_experts_of_a_token_and_not_with_their_number():
  def flops(num_experts, experts_per_token):
    changes = {'num_experts': num_experts, 'experts_per_token': experts_per_token, 'capacity_factor': 1.0}
    config = config_of(model={'embed_dim': 64, 'mlp_dim': 128}, **changes)
    graph, params = nnx.split(moe.MoE('mlp', config, rngs=nnx.Rngs(params=0)))
    context = context_of(np.ones((4, 64), bool))
    call = lambda params, x: nnx.merge(graph, params)(x, context, None)[0]
    return jax.jit(call).lower(params, jnp.zeros((4, 64, 64))).cost_analysis()['flops']

  few = flops(4, 1)
  assert flops(32, 1) < 1.3 * few and 1.8 * few < flops(4, 2) < 2.2 * few


def products(fn, *args):
  """(path, dtypes of the operands) of each product and kernel, also within other equations."""

  def walk(jaxpr, outer):
    for eqn in jaxpr.eqns:
      path = '/'.join(filter(None, [outer, str(eqn.source_info.name_stack)]))
      if eqn.primitive.name in ('dot_general', 'kernel'):
        yield path, {str(var.aval.dtype) for var in eqn.invars[: 1 if eqn.primitive.name == 'kernel' else 2]}
      for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
        if hasattr(value, 'eqns'):
          yield from walk(getattr(value, 'jaxpr', value), path)

  return list(walk(jax.make_jaxpr(fn)(*args).jaxpr, ''))


def small_model(num_layers=1):
  config = base.get_config()
  config.model.update({'vocab_size': 64, 'num_layers': num_layers, 'embed_dim': EMBED, 'num_heads': 1, 'mlp_dim': 12})
  config.model.update({'positions': 'none', 'init_scale': 0.4})
  config.model.moe.update({'num_experts': 4, 'shared_mlp_dim': 8, 'router': 'sigmoid', 'selection_bias': True})
  model = model_lib.create(config.model)
  return model, objectives.create(config.objective).loss(model)


def batch_of(rows, length=9):
  random = np.random.default_rng(0)
  tokens = random.integers(0, 64, (rows, length)).astype(np.int32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
  segment_ids = np.ones_like(tokens)
  segment_ids[0, 5:] = 0
  labels = np.where(segment_ids > 0, random.integers(0, 64, tokens.shape), -1).astype(np.int32)
  return {'tokens': tokens, 'labels': labels, 'segment_ids': segment_ids, 'positions': positions}


def test_the_router_stays_float32_where_everything_else_is_bfloat16():
  model, loss = small_model(num_layers=2)
  params = jax.eval_shape(model.init, jax.random.key(0))
  found = products(precision.bf16(loss), params, batch_of(2), None)
  of = lambda name: [dtypes for path, dtypes in found if name in path]
  assert of('mlp/router') == [{'float32'}] * 2
  assert all(dtypes == {'bfloat16'} for dtypes in of('mlp/experts/up') + of('mlp/shared/up')) and of('mlp/experts/up')


@pytest.mark.slow
def test_bfloat16_gradients_stay_near():
  one = layer('qwen')
  (_, (y, _)), gradients = one.gradient(one.params, one.x)
  narrow = jax.jit(jax.value_and_grad(precision.bf16(one._loss), (0, 1), has_aux=True))
  (_, (narrow_y, _)), narrow_gradients = narrow(one.params, one.x)
  for a, b in zip(*map(jax.tree.leaves, ((y, gradients), (narrow_y, narrow_gradients))), strict=True):
    assert 1e-5 < float(jnp.linalg.norm(a - b)) / float(jnp.linalg.norm(a)) < 0.02


def test_each_device_of_a_mesh_passes_its_own_tokens_and_all_share_the_losses():
  one = layer('deepseek')
  (expected, (y, found)), gradients = one.gradient(one.params, one.x)

  def gradient(params, x):
    with ax.activation_sharding(make_layout(data=2)):
      return jax.value_and_grad(one._loss, (0, 1), has_aux=True)(params, ax.constrain(x, ('batch', 'length', 'embed')))

  (total, (other_y, other_found)), other = jax.jit(gradient)(one.params, one.x)
  np.testing.assert_allclose(other_y, y, atol=2e-5)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), other, gradients)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other_found, found)


def test_dense_layers_come_first_and_experts_in_the_last_of_each_run():
  def segments(num_layers, attention=(), **moe_changes):
    config = base.get_config().model
    config.num_layers = num_layers
    config.attention.update(dict(attention))
    config.moe.update({'num_experts': 4} | moe_changes)
    return [([(spec.window, spec.experts) for spec in part.pattern], part.repeats) for part in pattern.segments(config)]

  dense, sparse = (0, False), (0, True)
  assert segments(6) == [([sparse], 6)]
  assert segments(6, every=2) == [([dense, sparse], 3)]
  assert segments(6, first_dense=2) == [([dense], 2), ([sparse], 4)]
  assert segments(6, first_dense=1, every=2) == [([dense], 1), ([dense, sparse], 2), ([dense], 1)]
  assert segments(6, first_dense=1, num_experts=0) == [([dense], 6)]
  local = {'window': 4, 'pattern': ('local', 'global')}
  assert segments(6, local) == [([(4, True), sparse], 3)]
  assert segments(5, local, first_dense=1) == [([(4, False)], 1), ([sparse, (4, True)], 2)]
  assert segments(8, local, every=4) == [([(4, False), dense, (4, False), sparse], 2)]


@pytest.mark.slow
def test_scanned_and_unrolled_layers_are_the_same_function_and_metrics_count_layers_with_experts():
  results = []
  for layer_loop in ('scan', 'unroll'):
    config = base.get_config()
    config.model.update({'vocab_size': 64, 'num_layers': 5, 'embed_dim': 8, 'num_heads': 1, 'mlp_dim': 8})
    config.model.update({'init_scale': 0.4, 'layer_loop': layer_loop, 'remat': 'full'})
    config.model.moe.update({'num_experts': 4, 'first_dense': 1, 'every': 2})
    model, params = model_lib.build(config.model)
    loss = objectives.create(config.objective).loss(model)
    results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch_of(2), None))
  scanned, unrolled = results
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), scanned, unrolled)
  assert scanned[0][1]['aux/balance_loss'].weight == 2


@pytest.mark.slow
def test_a_text_read_token_by_token_gives_the_logits_of_the_whole():
  model, _ = small_model()
  params, tokens = model.init(jax.random.key(0)), jnp.asarray(batch_of(2)['tokens'])
  stream = lambda length: Stream(
    tokens[:, :length], jnp.broadcast_to(jnp.arange(length), (2, length)), jnp.ones((2, length), jnp.int32)
  )
  whole = model.logits(params, jax.jit(model.hidden)(params, stream(9))[0])
  logits, cache = jax.jit(model.prefill, static_argnums=2)(params, stream(7), 9)
  np.testing.assert_allclose(logits, whole[:, 6], atol=1e-4)
  for i in (7, 8):
    logits, cache = jax.jit(model.extend)(params, cache, tokens[:, i], jnp.full(2, i))
    np.testing.assert_allclose(logits, whole[:, i], atol=1e-4)


def test_flops_count_the_experts_that_a_token_passes():
  flops = lambda **changes: counting.flops_per_token(model_lib.create(config_of(**changes)), 32)
  added = flops(experts_per_token=3, mlp_dim=20, shared_mlp_dim=5) - flops(num_experts=0)
  assert added == 6 * 2 * (EMBED * 3 * (3 * 20 + 5 - 12) + EMBED * EXPERTS)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'experts_per_token': 9}, 'experts_per_token=9 is more than model.moe.num_experts=8'),
    ({'num_groups': 3}, 'num_groups=3 and groups_per_token=1 do not fit num_experts=8'),
    ({'num_groups': 8}, 'do not fit num_experts=8 and experts_per_token=2'),
    ({'first_dense': 2}, 'leave none of model.num_layers=2 an expert'),
    ({'experts_per_token': 1, 'normalize': True}, 'set model.moe.normalize=False'),
    ({'capacity_factor': 1.0, 'expert_capacity': 3}, 'say the same twice'),
    ({'router': 'expert_choice'}, 'set model.moe.balance_loss=0'),
    ({'router': 'expert_choice', 'balance_loss': 0, 'normalize': True}, 'set model.moe.normalize=False'),
    ({'model': {'activation': 'swiglu_oss', 'gated_mlp': False}}, 'set model.gated_mlp=True'),
  ],
)
def test_mistakes_are_refused_in_words(changes, words):
  with pytest.raises(ValueError, match=words):
    config_of(**changes)
