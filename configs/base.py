"""Every key of a meshlm config, with its default, unit and meaning.

Other files in this folder start from `get_config()` here and change a few keys. The config is locked: a key that
is not here does not exist. A duration (marked "duration") is a number of steps, or a mapping with exactly one of
`steps`, `tokens`, `examples`, `epochs`, `share` (of the run), for example `{'epochs': 3}`.
"""

from ml_collections import config_dict


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the default config: a small pre-norm decoder on the documentation of the Python standard library.

  Raises:
    ValueError: `variant` is not empty; the base config has none.
  """
  if variant:
    raise ValueError(f"configs/base.py has no variant {variant!r}; use --config=configs/base.py")
  config = config_dict.ConfigDict()
  config.seed = 0  # initialisation, data order and dropout all follow from it
  config.init_from = ''  # run directory whose parameters start this run; '' = random initialisation
  config.zero_stage = 0  # 0 = parameters replicated; 3 = parameters and optimizer state sharded over mesh.fsdp
  config.model = _model()
  config.data = _data()
  config.objective = _objective()
  config.optimizer = _optimizer()
  config.train = _train()
  config.mesh = _mesh()
  config.precision = config_dict.ConfigDict()
  config.precision.dtype = 'float32'  # float32 | bfloat16 (matmuls and activations; parameters stay float32)
  return config.lock()


def duration(value) -> config_dict.FieldReference:
  """A config entry that takes a number of steps or a mapping with one unit."""
  return config_dict.FieldReference(value, field_type=object)


def _model():
  model = config_dict.ConfigDict()
  model.family = 'decoder'  # decoder
  model.vocab_size = 0  # tokens; 0 = the tokenizer's, rounded up to a multiple of 64
  model.num_layers = 4  # blocks
  model.embed_dim = 256  # width of the residual stream
  model.num_heads = 4  # query heads
  model.num_kv_heads = 0  # key and value heads, dividing num_heads; 0 = num_heads; 1 = multi-query
  model.head_dim = 0  # width of a head, even; 0 = embed_dim / num_heads
  model.mlp_dim = 0  # hidden width of the feed-forward; 0 = 4 embed_dim, or 8/3 embed_dim rounded up to 64 if gated
  model.max_length = 0  # learned positions only: tokens; 0 = data.sequence_length
  model.positions = 'rope'  # rope | learned | sinusoidal | none
  model.rope_theta = 10000.0  # base of the rotary wavelengths
  model.norm = 'rmsnorm'  # rmsnorm | layernorm
  model.norm_position = 'pre'  # pre | post
  model.norm_epsilon = 1e-5  # added to the variance
  model.activation = 'silu'  # gelu (erf) | gelu_tanh | relu | silu
  model.gated_mlp = True  # activation(gate x) * (up x) instead of activation(up x)
  model.use_bias = False  # biases in linear layers and LayerNorm
  model.tie_embeddings = True  # the head is the embedding table
  model.dropout_rate = 0.0  # after the embedding and on each residual branch
  model.init = 'normal'  # normal (std init_scale) | fan_in | xavier (both times init_scale)
  model.init_scale = 0.02  # standard deviation for normal; factor for fan_in and xavier (usually 1)
  model.init_depth_scaling = True  # residual outputs initialised 1/sqrt(2 num_layers) smaller
  model.layer_loop = 'auto'  # scan | unroll | auto (unroll on CPU, scan elsewhere)
  model.remat = 'none'  # none | full (recompute each block) | selective (keep matmul outputs)
  model.attention = _attention()
  return model


def _attention():
  attention = config_dict.ConfigDict()
  attention.implementation = 'auto'  # auto (on Hopper GPUs its own kernels) | reference | blockwise | tpu
  attention.dropout_rate = 0.0  # on attention probabilities
  attention.qk_norm = False  # RMSNorm on queries and keys, per head
  attention.window = 0  # tokens that a local layer sees, itself included; 0 = there is no local layer
  attention.pattern = ('global',)  # of layers, repeated from the first on: global (sees all) | local (sees the window)
  return attention


def _data():
  data = config_dict.ConfigDict()
  data.corpus = 'python-docs'  # python-docs | python-sources | text | jsonl | parquet | huggingface | mixture
  data.path = ''  # text, jsonl, parquet: file, directory or glob; huggingface: data set name or directory
  data.mixture = ()  # mixture: ({'corpus': ..., 'path': ..., 'weight': ...}, ...); weights are shares of tokens
  data.text_field = 'text'  # jsonl, parquet, huggingface: the field that holds the text
  data.document = 'file'  # text: file (a file is a document) | blank-line (a block between blank lines is)
  data.validation_fraction = 0.05  # share of documents held out, chosen by a hash of their content
  # bytes | characters | words | sentencepiece-bpe | sentencepiece-unigram | wordpiece | byte-bpe | file
  data.tokenizer = 'sentencepiece-bpe'  # one of the above; all but bytes and file are trained on the corpus
  data.tokenizer_path = ''  # tokenizer = file: a sentencepiece .model or a tokenizer.json
  data.vocab_size = 4096  # tokens of a trained tokenizer, special tokens included; words: most frequent are kept
  data.normalization = 'none'  # none | nfc | nfkc | nfkc-lowercase; applied to text before tokenizing
  data.sequence_length = 256  # tokens a row that the model sees
  data.batch_tokens = 4096  # global tokens a step, all devices and accumulation steps together
  data.packing = 'documents'  # documents (packed whole, no attention across) | none (contiguous chunks)
  data.num_workers = 0  # processes that encode text; 0 = one a core
  data.cache_dir = ''  # trained tokenizers and token stores; '' = $XDG_CACHE_HOME/meshlm or ~/.cache/meshlm
  return data


def _objective():
  objective = config_dict.ConfigDict()
  objective.name = 'causal'  # causal
  objective.label_smoothing = 0.0  # probability spread evenly over the vocabulary
  objective.z_loss = 0.0  # weight of log(Z)^2 (PaLM: 1e-4)
  return objective


def _optimizer():
  optimizer = config_dict.ConfigDict()
  optimizer.name = 'adamw'  # adamw | adam | sgd | rmsprop | adafactor | lion | muon
  optimizer.learning_rate = 1e-3  # peak; muon: of the matrices
  optimizer.adam_learning_rate = 1e-3  # muon only: peak for embeddings, head and vectors, trained by adamw
  optimizer.schedule = 'cosine'  # constant | linear | cosine | inverse_sqrt | wsd | step | exponential
  optimizer.warmup = duration(100)  # duration: linear to the peak
  optimizer.decay = duration({'share': 0.2})  # duration: wsd, the final decay; step, exponential: the interval
  optimizer.decay_factor = 0.1  # step, exponential: the learning rate is multiplied by this every `decay`
  optimizer.final_fraction = 0.1  # linear, cosine, wsd: final learning rate / peak
  optimizer.weight_decay = 0.1  # decoupled; on matrices only, never on position tables, norms or biases; adam: none
  optimizer.beta1 = 0.9  # adam, adamw, lion, muon's adamw: decay of the first moment
  optimizer.beta2 = 0.95  # adam, adamw, rmsprop, lion, muon's adamw: decay of the second moment
  optimizer.epsilon = 1e-8  # adam, adamw, rmsprop, muon's adamw
  optimizer.momentum = 0.9  # sgd, rmsprop, muon
  optimizer.clip_norm = 1.0  # global gradient norm; 0 = off
  optimizer.accumulation_steps = 1  # microbatches a step, one after the other
  optimizer.l1_penalty = 0.0  # times the sum of |w| over matrices, added to the loss
  optimizer.l2_penalty = 0.0  # times half the sum of w^2 over matrices, added to the loss
  optimizer.ema_decay = 0.0  # moving average of parameters, used by evaluation and samples; 0 = off
  optimizer.frozen = ()  # path patterns of parameters that stay as they are: 'embedding', '*/mlp', 'layers/attention'
  # (pattern, factor) pairs, the first that matches counts; a factor is a number, or one for each layer that is stacked
  optimizer.learning_rate_scale = ()  # factors on the learning rate by path pattern: (('embedding', 0.1), ...)
  return optimizer


def _train():
  train = config_dict.ConfigDict()
  train.steps = duration(1000)  # duration: length of the run; not a share
  train.log_every = duration(10)  # duration
  train.eval_every = duration(200)  # duration; 0 = only at the end
  train.eval_batches = 0  # batches of the validation split an evaluation reads; 0 = all
  train.checkpoint_every = duration(200)  # duration; 0 = only at the end
  train.keep_last = 2  # checkpoints kept besides the best one
  train.sample_every = duration(0)  # duration; 0 = only at the end
  train.sample_prompts = ('',)  # texts continued in samples.txt; '' starts a new document
  train.sample_tokens = 64  # new tokens a sample
  train.max_bad_steps = 10  # non-finite steps in a row before the run aborts
  train.early_stopping_patience = 0  # evaluations without a better validation loss before stopping; 0 = off
  train.tensorboard = True  # write workdir/tensorboard
  return train


def _mesh():
  mesh = config_dict.ConfigDict()
  mesh.data = -1  # devices over which batches are split; -1 = all that the other axes leave
  mesh.fsdp = 1  # devices over which batches and, at zero_stage 3, parameters are split
  mesh.tensor = 1  # only 1 so far
  mesh.sequence = 1  # only 1 so far
  mesh.pipeline = 1  # only 1 so far
  mesh.expert = 1  # only 1 so far
  return mesh
