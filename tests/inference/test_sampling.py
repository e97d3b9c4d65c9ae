"""Logits processors against a sort-based numpy implementation and against Hugging Face transformers."""

import pathlib

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference import sampling

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'sampling.npz')
keep_top_k, keep_top_p, keep_min_p = (
  jax.jit(function) for function in (sampling.keep_top_k, sampling.keep_top_p, sampling.keep_min_p)
)
LOGITS = hypothesis.extra.numpy.arrays(np.float32, (3, 16), elements=st.floats(-20, 20, width=32), unique=True)


def seen(history, vocab_size):
  return np.stack([np.isin(np.arange(vocab_size), row) for row in history])


def kept(logits):
  return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize(
  'name, options',
  [
    ('top_k_7', {'top_k': 7}),
    ('top_p_0.8', {'top_p': 0.8}),
    ('min_p_0.1', {'min_p': 0.1}),
    ('repetition_penalty_1.3', {'repetition_penalty': 1.3}),
    ('all', {'repetition_penalty': 1.3, 'temperature': 0.7, 'top_k': 20, 'top_p': 0.9, 'min_p': 0.02}),
  ],
)
def test_agrees_with_transformers(name, options):
  logits = GOLDEN['logits']
  processed = jax.jit(sampling.process)(logits, sampling.Sampling(**options), seen(GOLDEN['history'], logits.shape[-1]))
  np.testing.assert_allclose(processed, GOLDEN[name], rtol=1e-6)


@hypothesis.given(LOGITS, st.integers(1, 20))
def test_top_k_keeps_the_k_largest(logits, top_k):
  expected = np.argsort(np.argsort(-logits, axis=-1), axis=-1) < top_k
  np.testing.assert_array_equal(kept(keep_top_k(logits, top_k)), expected)


@hypothesis.given(LOGITS, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_with_that_probability(logits, top_p):
  for row, row_kept in zip(logits, kept(keep_top_p(logits, top_p)), strict=True):
    order = np.argsort(-row)
    cumulative = np.cumsum(np.exp(row[order].astype(np.float64)) / np.sum(np.exp(row.astype(np.float64))))
    hypothesis.assume(np.min(np.abs(cumulative - top_p)) > 1e-5)
    count = int(np.searchsorted(cumulative, top_p)) + 1
    assert set(np.flatnonzero(row_kept)) == set(order[:count])


@hypothesis.given(LOGITS, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_probable_beside_the_best(logits, min_p):
  ratio = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
  hypothesis.assume(np.min(np.abs(ratio / min_p - 1)) > 1e-5)
  np.testing.assert_array_equal(kept(keep_min_p(logits, min_p)), ratio >= min_p)


def test_ties_with_the_last_kept_token_are_kept():
  logits = jnp.array([[1.0, 3.0, 1.0, 0.0]])
  np.testing.assert_array_equal(kept(keep_top_k(logits, 2)), [[True, True, True, False]])


def test_a_repetition_penalty_lowers_positive_and_negative_logits_of_seen_tokens():
  processed = sampling.penalize_repetition(
    jnp.array([[2.0, -2.0, 2.0, -2.0]]), jnp.array([[True, True, False, False]]), 2.0
  )
  np.testing.assert_allclose(processed, [[1.0, -4.0, 2.0, -2.0]])


def test_ids_that_are_no_token_are_never_sampled():
  logits = sampling.mask_padding(jnp.zeros((2000, 8)).at[:, 6:].set(50.0), 6)
  tokens = sampling.sample(logits, sampling.Sampling(temperature=3.0), jax.random.split(jax.random.key(0), 2000))
  assert set(np.asarray(tokens)) == set(range(6))


def test_draws_follow_the_distribution():
  probabilities = np.array([0.5, 0.3, 0.15, 0.05])
  logits = np.tile(np.log(probabilities) * 2, (20_000, 1)).astype(np.float32)
  tokens = sampling.sample(logits, sampling.Sampling(temperature=2.0), jax.random.split(jax.random.key(1), 20_000))
  np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 20_000, probabilities, atol=0.015)


def test_nothing_switched_on_is_greedy():
  tokens = sampling.sample(GOLDEN['logits'], sampling.Sampling(), None)
  np.testing.assert_array_equal(tokens, GOLDEN['logits'].argmax(axis=-1))
