"""What of a layer is kept for the backward pass, and what is computed again."""

import dataclasses
import fnmatch
import functools

import jax
from flax import nnx

KINDS = ('none', 'full', 'selective', 'offload')
# By `jax.ad_checkpoint.checkpoint_name`. In bfloat16 products are rounded, kept as such, and named 'residual' too.
NAMES = ('product', 'residual', 'dropout_mask')


@dataclasses.dataclass(frozen=True)
class Remat:
  """How the backward pass finds what it needs of a layer.

  Attributes:
    kind: 'none' keeps all; 'full' keeps what enters a module and computes all of it again (Chen et al. 2016);
      'selective' keeps what is named besides (Korthikanti et al. 2022, section 5); 'offload' moves that to the memory
      of the host meanwhile.
    modules: path patterns of the modules that this is about, such as '*/mlp' or 'layers/block_1'; with none whole
      blocks. In a module that matches, those inside are part of it.
    kept: of `NAMES`. 'product': what linear layers and experts compute. 'residual': the stream between sublayers and,
      in bfloat16, what kernels need, attention's output among it (in float32 kernels run again). 'dropout_mask': which
      places are zeroed.
  """

  kind: str = 'none'
  modules: tuple[str, ...] = ()
  kept: tuple[str, ...] = ('product', 'residual')

  def __post_init__(self):
    if self.kind == 'none' and self.modules:
      raise ValueError(
        f"model.remat_modules={self.modules} of model.remat='none'; set model.remat='full', or model.remat_modules=()"
      )
    if self.kind in ('selective', 'offload') and not self.kept:
      raise ValueError(f"model.remat='{self.kind}' keeps nothing of model.remat_kept=(); set model.remat='full'")

  @classmethod
  def of(cls, model_config) -> 'Remat':
    """That of a config. Raises ValueError where its values do not go together."""
    return cls(model_config.remat, tuple(model_config.remat_modules), tuple(model_config.remat_kept))

  def check_backend(self, platform: str) -> None:
    """Raises ValueError where the devices have no other memory than the host's."""
    if self.kind == 'offload' and platform == 'cpu':
      raise ValueError(
        "model.remat='offload' moves what is kept from a device to the memory of its host, which is the same on "
        "platform 'cpu'; set model.remat='selective', which keeps it where it is, or run on tpu or gpu"
      )

  def applied(self, block, prevent_cse: bool = True):
    """The block, whose modules are differentiated so.

    Args:
      block: nnx module with its parameters; changed in place.
      prevent_cse: as for `jax.checkpoint`; False in the body of a scan, which nothing is moved out of.
    """
    if self.kind == 'none':
      return block
    again = functools.partial(jax.checkpoint, policy=self._policy(), prevent_cse=prevent_cse)
    for path, module in nnx.iter_modules(block):
      name = '/'.join((block.scope, *map(str, path)))
      if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.modules or (block.scope,)):
        module.differentiated = again
    return block

  def _policy(self):
    policies = jax.checkpoint_policies
    if self.kind == 'full':
      return policies.nothing_saveable
    if self.kind == 'selective':
      return policies.save_only_these_names(*self.kept)
    return policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(self.kept),
      offload_src='device',
      offload_dst='pinned_host',
    )


KEEP_ALL = Remat()
