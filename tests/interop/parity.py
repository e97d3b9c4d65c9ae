"""How far a golden model of transformers is from ours, read as convert.py reads it, and whether it is written back."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import interop
import model as model_lib
from tests.interop import goldens


@dataclasses.dataclass(frozen=True)
class Errors:
  """Of one golden model, in float32.

  Attributes:
    loss: relative.
    outputs: of logits, hidden states and an encoder's output, the largest difference as a share of the largest
      magnitude; by name.
    gradients: relative L2 of the gradient of each tensor, by its name in the original. Below 1e-7 of the largest
      gradient it counts as none: that of a bias on the keys is zero but for rounding, since a softmax does not see it.
  """

  loss: float
  outputs: dict[str, float]
  gradients: dict[str, float]


def measure(name: str, directory: pathlib.Path) -> Errors:
  """Compares loss, outputs and gradients; rows are padded, and what padding says does not count.

  Args:
    name: of the golden file.
    directory: where the original is written.
  """
  golden, pretrained = goldens.load(name), goldens.pretrained(name, directory)
  model = model_lib.create(pretrained.config.model)
  read = _read_pairs if 'source' in golden else _read_rows
  outputs_of, labels, counted = read(model, golden, pretrained.family.name)
  labels = jnp.asarray(labels, jnp.int32)

  def loss(params):
    hidden, outputs = outputs_of(params)
    total = model.cross_entropy(params, hidden, labels).total
    return total / jnp.sum(labels >= 0), outputs | {'logits': model.logits(params, hidden)}

  (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(pretrained.params())
  return Errors(
    abs(float(value) / float(golden['loss']) - 1),
    {key: _share(outputs[key] * counted[key][:, :, None], golden[key]) for key in outputs if key in golden},
    _gradient_errors(pretrained, gradients, goldens.arrays(golden, 'gradients')),
  )


def comes_back(name: str, directory: pathlib.Path, with_origin: bool) -> bool:
  """Whether an export has every tensor of the original bit for bit, and reads as the same model.

  Without the origin of the model what was only carried along may be missing, and another family may write the same.
  """
  pretrained = goldens.pretrained(name, directory / 'original')
  leaves = {path: np.empty(shape, np.float32) for path, shape in pretrained.shapes.items()}
  for path, index, part in pretrained.parts():
    leaves[path][index] = part
  read = lambda path, index, dtype: leaves[path][index].astype(dtype)
  origin = interop.Origin.of(pretrained) if with_origin else interop.Origin()
  target = directory / 'back'
  interop.write(target, pretrained.config, pretrained.tokenizer, read, origin, card=lambda family: '')
  before, again = goldens.arrays(goldens.load(name), 'weights'), interop.read(target)
  after = safetensors.numpy.load_file(target / 'model.safetensors')
  lost = set() if with_origin else pretrained.carried.keys()
  return (
    before.keys() - lost <= after.keys() <= before.keys()
    and all(after[key].tobytes() == before[key].tobytes() for key in before.keys() - lost)
    and again.config.model == pretrained.config.model
    and (not with_origin or again.family is pretrained.family and again.original == pretrained.original)
  )


def _read_rows(model, golden, family):
  """What one stack reads: (outputs of parameters, labels, where each output counts)."""
  given = {key: jnp.asarray(golden[key], jnp.int32) for key in ('order', 'token_types') if key in golden}
  tokens, positions, mask = (jnp.asarray(golden[key], jnp.int32) for key in ('tokens', 'positions', 'mask'))
  stream = model_lib.Stream(tokens, positions, mask, **given)
  tokens, mask = golden['tokens'], golden['mask']
  if 'targets' in golden:
    targets = golden['targets']
    labels, counted = np.take_along_axis(tokens, np.maximum(targets, 0), axis=1), targets >= 0
    labels = np.where(counted, labels, -1)
  else:
    labels, follows = (np.pad(array[:, 1:], ((0, 0), (0, 1))) for array in (tokens, mask))
    labels, counted = np.where(mask * follows, labels, -1), mask
  visibility = model_lib.Visibility.BIDIRECTIONAL if family == 'xlnet' else None

  def outputs(params):
    if 'targets' in golden:
      hidden, _ = model.hidden_two_streams(params, stream, jnp.asarray(golden['targets'], jnp.int32))
    else:
      hidden, _ = model.hidden(params, stream, visibility=visibility)
    return hidden, {'hidden': hidden}

  return outputs, labels, {'hidden': counted, 'logits': counted}


def _read_pairs(model, golden, family):
  """As `_read_rows`, of an encoder-decoder."""
  del family
  source, target = (_stream(golden[f'{side}'], golden[mask]) for side, mask in _SIDES)

  def outputs(params):
    return model.hidden(params, source, target)[0], {'encoded': model.encode(params, source)[0]}

  return outputs, golden['labels'], {'encoded': golden['source_mask'], 'logits': golden['mask']}


_SIDES = (('source', 'source_mask'), ('tokens', 'mask'))


def _stream(tokens, mask):
  tokens = jnp.asarray(tokens, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  return model_lib.Stream(tokens, positions, jnp.asarray(mask, jnp.int32))


def _share(actual, expected):
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _gradient_errors(pretrained, gradients, wanted):
  assert wanted.keys() == pretrained.places.keys() | pretrained.carried.keys()
  assert not any(np.any(wanted[tensor]) for tensor in pretrained.carried)
  flat = jax.tree_util.tree_flatten_with_path(gradients)[0]
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf) for path, leaf in flat}
  slack = 1e-7 * max(np.linalg.norm(gradient) for gradient in wanted.values())
  errors = {}
  for tensor, place in pretrained.places.items():
    actual = place.join([leaves[path][place.index] for path in place.paths])
    error, size = np.linalg.norm(actual - wanted[tensor]), np.linalg.norm(wanted[tensor])
    errors[tensor] = float(error / size) if error > slack else 0.0
  return errors
