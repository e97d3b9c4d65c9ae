"""Every key of a meshlm config, with its default, unit and meaning.

Other files in this folder start from `get_config()` here and change a few keys. A key that is not here does not exist,
and each says what it may hold: `count` is a whole number, at least 0 where nothing else is said, `number` any finite
one, `choice` one of its arguments, the first by default. A `duration` is a number of steps, or a mapping with exactly
one of `steps`, `tokens`, `examples`, `epochs`, `share` (of the run), for example `{'epochs': 3}`.
"""

from configs.values import Group, choice, count, duration, flag, number, one_or_many, pair_of, record, text, tuple_of

# New paths of keys by the old ones, under which the config.json of an older version has them.
MOVED = {
  'model.rope_theta': 'model.rope.theta',
  'model.qk_norm': 'model.attention.qk_norm',
  'model.attention_dropout_rate': 'model.attention.dropout_rate',
  'model.attention_implementation': 'model.attention.implementation',
}
# A key that a config.json lacks, since its version did not have it, takes the default; unless that is not what the
# version did: then the value here.
AS_BEFORE = {}

_CORPORA = ('python-docs', 'python-sources', 'text', 'jsonl', 'parquet', 'huggingface')
_UL2 = tuple(
  {'mode': mode, 'mask_rate': rate, 'mean_span': span, 'weight': 1.0}
  for mode, rate, span in (
    ('R', 0.15, 3.0),
    ('R', 0.15, 8.0),
    ('S', 0.25, 0.0),
    ('X', 0.5, 3.0),
    ('X', 0.5, 8.0),
    ('X', 0.15, 64.0),
    ('X', 0.5, 64.0),
  )
)


def get_config(variant: str = '') -> Group:
  """Returns the default config: a small pre-norm decoder on the documentation of the Python standard library.

  Raises:
    ValueError: `variant` is not empty; the base config has none.
  """
  if variant:
    raise ValueError(f'configs/base.py has no variant {variant!r}; use --config=configs/base.py')
  config = _group()
  config.seed = count(0, at_most=2**31 - 1)  # initialisation, data order and dropout all follow from it
  config.init_from = text('')  # run directory whose parameters start this run; '' = random initialisation
  config.zero_stage = choice(0, 1, 2, 3)  # over mesh.fsdp: 1 = optimizer state, 2 = gradients too, 3 = parameters too
  config.model = _model()
  config.data = _data()
  config.objective = _objective()
  config.optimizer = _optimizer()
  config.train = _train()
  config.mesh = _mesh()
  config.precision = _precision()
  return config.lock()


def _group(name=''):
  return Group(name, MOVED)


def _model():
  model = _group('model')
  model.family = choice('decoder', 'encoder', 'encoder_decoder')  # which stacks of blocks
  model.vocab_size = count(0)  # tokens; 0 = the tokenizer's, rounded up to a multiple of 64
  model.num_layers = count(4, at_least=1)  # blocks; encoder_decoder: of the decoder
  model.embed_dim = count(256, at_least=1)  # width of the residual stream
  model.num_heads = count(4, at_least=1)  # query heads
  model.num_kv_heads = count(0)  # key and value heads, dividing num_heads; 0 = num_heads; 1 = multi-query
  model.head_dim = count(0)  # width of a head, even; 0 = embed_dim / num_heads
  model.mlp_dim = count(0)  # width of the feed-forward; 0 = 4 embed_dim, or 8/3 embed_dim rounded up to 64 if gated
  model.max_length = count(0)  # learned positions only: tokens; 0 = data.sequence_length
  model.positions = choice(
    'rope', 'learned', 'sinusoidal', 'none', 'alibi', 't5', 'shaw', 'xlnet'
  )  # how a token's place is told
  model.position_offset = count(0)  # learned: row of the first position; RoBERTa, BART: 2
  model.token_types = count(0)  # kinds of tokens that are told apart (BERT's segments: 2); 0 = none
  model.embedding_norm = flag(False)  # a norm after the embedding; BERT, BLOOM
  model.embedding_scale = number(1.0, above=0)  # factor on embedded tokens; Gemma, Vaswani et al.: sqrt(embed_dim)
  model.norm = choice('rmsnorm', 'layernorm')  # of the residual stream
  model.norm_position = choice('pre', 'post', 'sandwich')  # before a sublayer, after adding its output, on both sides
  model.norm_epsilon = number(1e-5, above=0)  # added to the variance
  model.norm_unit_offset = flag(False)  # scales are kept as differences from 1; Gemma
  model.first_norm = flag(True)  # a norm before the first attention; ModernBERT: False, its embedding has one
  model.parallel_blocks = flag(False)  # x + attention(norm x) + mlp(norm x); GPT-NeoX
  model.activation = choice('silu', 'gelu', 'gelu_tanh', 'relu', 'swiglu_oss')  # of the feed-forward; gelu is by erf
  model.gated_mlp = flag(True)  # activation(gate x) * (up x) instead of activation(up x)
  model.use_bias = flag(False)  # biases in linear layers and LayerNorm
  model.tie_embeddings = flag(True)  # the head is the embedding table
  model.head_transform = flag(False)  # norm(activation(dense x)) before the head; BERT
  model.head_bias = flag(False)  # a bias for each token
  model.logit_scale = number(1.0, above=0)  # factor on logits; tied T5: 1/sqrt(embed_dim)
  model.logit_softcap = number(0.0, at_least=0)  # logits become cap * tanh(logits / cap); 0 = off
  # encoder_decoder: the token with which every target starts; -1 = by the vocabulary, see `data.tokenizers.Special`
  model.start_token = count(-1, at_least=-1)  # (without one: 0)
  model.forced_first_token = count(-1, at_least=-1)  # encoder_decoder: with which generated text begins; -1 = none
  model.forced_last_token = count(-1, at_least=-1)  # the same, with which it ends at the limit of its length; BART: 2
  model.dropout_rate = number(0.0, at_least=0, below=1)  # after the embedding and on each residual branch
  model.init = choice('normal', 'fan_in', 'xavier')  # normal (std init_scale); fan_in and xavier, times init_scale
  model.init_scale = number(0.02, at_least=0)  # standard deviation for normal; factor for the others (usually 1)
  model.init_depth_scaling = flag(True)  # residual outputs initialised 1/sqrt(2 num_layers) smaller
  model.layer_loop = choice('auto', 'scan', 'unroll')  # auto: unroll on CPU, scan elsewhere
  # What the backward pass computes again: nothing, all, or all but what remat_kept names, which offload moves away.
  model.remat = choice('none', 'full', 'selective', 'offload')  # offload: to the memory of the host, on tpu and gpu
  model.remat_modules = tuple_of(text('*/mlp'))  # path patterns of modules that this is about; () = whole blocks
  model.remat_kept = tuple_of(
    choice('product', 'residual', 'dropout_mask'), default=('product', 'residual')
  )  # selective, offload: outputs of linear layers; what kernels need and the stream between sublayers; masks
  model.encoder = _encoder()
  model.rope = _rope()
  model.relative = _relative()
  model.attention = _attention()
  model.moe = _moe()
  return model


def _encoder():
  encoder = _group('model.encoder')  # encoder_decoder only
  encoder.num_layers = count(0)  # blocks; 0 = as the decoder
  encoder.num_heads = count(0)  # heads of queries, keys and values; 0 = as the decoder
  encoder.head_dim = count(0)  # width of a head, even; 0 = model.head_dim, or embed_dim / num_heads where that is 0
  encoder.mlp_dim = count(0)  # width of the feed-forward; 0 = as the decoder
  return encoder


def _rope():
  rope = _group('model.rope')  # rope only
  rope.theta = number(10000.0, above=0)  # base of the wavelengths
  rope.local_theta = number(0.0, at_least=0)  # base of local layers, which are then not rescaled; 0 = as the others
  rope.fraction = number(1.0, above=0)  # share of a head's dimensions that is rotated, at most 1
  rope.interleaved = flag(False)  # pairs that turn are neighbours, not half the rotated share apart; DeepSeek
  rope.scaling = choice('none', 'linear', 'dynamic', 'yarn', 'llama3')  # of wavelengths, for longer texts
  rope.factor = number(1.0, above=0)  # by which texts are longer than in training
  rope.original_length = count(0)  # dynamic, yarn, llama3: tokens of a text in training
  rope.low_freq_factor = number(1.0, above=0)  # llama3: turns in a text below which a wave is stretched in full
  rope.high_freq_factor = number(4.0, above=0)  # llama3: turns in a text above which a wave is kept
  rope.beta_fast = number(32.0, above=0)  # yarn: turns in a text above which a wave is kept
  rope.beta_slow = number(1.0, above=0)  # yarn: turns in a text below which a wave is stretched in full
  rope.truncate = flag(True)  # yarn: between them from a whole dimension to a whole dimension
  rope.attention_factor = number(0.0, at_least=0)  # yarn: factor on cosines and sines; 0 = by factor and mscale
  rope.mscale = number(0.0, at_least=0)  # yarn: with mscale_all_dim, weighs log(factor); 0 = 1
  rope.mscale_all_dim = number(0.0, at_least=0)  # yarn: by which the former is divided; 0 = none
  return rope


def _relative():
  relative = _group('model.relative')
  relative.num_buckets = count(32, at_least=4)  # t5: distances that are told apart, of keys on either side together
  relative.max_distance = count(128, at_least=1)  # t5: where the last bucket begins; shaw: beyond it all are alike
  return relative


def _attention():
  attention = _group('model.attention')
  attention.qk_norm = flag(False)  # RMSNorm on queries and keys, per head
  attention.bias = choice('model', 'none', 'qkv', 'all')  # which projections have one; model: as model.use_bias
  attention.scale = number(0.0, at_least=0)  # factor on products of queries and keys; 0 = 1/sqrt(head_dim); T5: 1
  attention.softcap = number(0.0, at_least=0)  # those become cap * tanh(product / cap); 0 = off
  attention.sinks = flag(False)  # a learned logit a head that takes probability and has no value; gpt-oss
  attention.dropout_rate = number(0.0, at_least=0, below=1)  # on attention probabilities
  # auto takes the best that can serve the call (on Hopper GPUs its own kernels); any other does it or says why not.
  attention.implementation = choice('auto', 'reference', 'blockwise', 'cudnn', 'hopper', 'tpu')  # the kernel
  # Where mesh.sequence splits rows: keys go round the devices, or each has all tokens of some of the heads (Ulysses).
  attention.context_parallel = choice('ring', 'all_to_all')  # how devices see each other's keys
  attention.window = count(0)  # tokens that a local layer sees to a side, itself included; 0 = there is none
  attention.pattern = tuple_of(choice('global', 'local'), default=('global',))  # of layers, repeated from the first on
  attention.latent = _latent()
  return attention


def _latent():
  latent = _group('model.attention.latent')  # DeepSeek-V2; model.head_dim is the whole width of queries and keys
  latent.key_value_rank = count(0)  # width of the vector that keys and values are made from; 0 = off
  latent.query_rank = count(0)  # width of the vector that queries are made from; 0 = from the residual stream
  latent.rotary_dim = count(0)  # part of head_dim that rope turns, whose key all heads share
  latent.value_dim = count(0)  # width of a value; 0 = head_dim
  return latent


def _moe():
  moe = _group('model.moe')
  moe.num_experts = count(0)  # feed-forwards of a layer that tokens choose from; 0 = dense layers only
  moe.experts_per_token = count(2, at_least=1)  # that a token passes; expert_choice: on average
  moe.mlp_dim = count(0)  # width of an expert; 0 = model.mlp_dim
  moe.shared_mlp_dim = count(0)  # width of the feed-forward that every token passes besides; 0 = none
  moe.first_dense = count(0)  # layers before the first that may have experts
  moe.every = count(1, at_least=1)  # behind them one layer of each run of so many has experts
  moe.place = count(0)  # which of a run it is, from 1 on; 0 = the last
  moe.router = choice('softmax', 'sigmoid', 'expert_choice')  # scores of experts; or experts choose tokens
  moe.router_bias = flag(False)  # learned, in the router's logits
  moe.selection_bias = flag(False)  # added to scores for the choice alone, follows the load: see expert_bias_rate
  moe.num_groups = count(1, at_least=1)  # groups of neighbouring experts
  moe.groups_per_token = count(1, at_least=1)  # groups that a token's experts may come from
  moe.normalize = flag(False)  # the gates of a token are divided by their sum
  moe.routed_scale = number(1.0, above=0)  # factor of all gates
  moe.capacity_factor = number(0.0, at_least=0)  # choices that experts take of a row / their equal share; 0 = all
  moe.expert_capacity = count(0)  # choices that an expert takes of a row; 0 = by capacity_factor
  moe.balance_loss = number(0.01, at_least=0)  # times num_experts * sum(share of choices * mean probability)
  moe.z_loss = number(0.0, at_least=0)  # times the mean of logsumexp(router logits)^2 (ST-MoE: 1e-3)
  moe.jitter = number(0.0, at_least=0, below=1)  # the router reads x times 1 +- this in training (Switch: 0.01)
  moe.exchange = choice('auto', 'ragged', 'gather')  # without a capacity a device sends experts their rows, or all
  moe.implementation = choice('auto', 'blocks', 'ragged_dot')  # the grouped product without a capacity
  return moe


def _data():
  data = _group('data')
  data.corpus = choice(*_CORPORA, 'pairs', 'mixture')  # where the text comes from; pairs: sources with targets
  data.path = text('')  # text, jsonl, parquet, pairs: file, directory or glob; huggingface: data set or directory
  data.mixture = tuple_of(
    record({'corpus': 'text', 'weight': 0.5}, corpus=choice(*_CORPORA), path=text(''), weight=number(1.0, above=0))
  )  # mixture: weights are shares of tokens
  data.text_field = text('text')  # jsonl, parquet, huggingface: the field that holds the text
  data.source_field = text('source')  # pairs: field of .jsonl; column of .tsv by its header, or without one from 0 on
  data.target_field = text('target')  # pairs: the same, of what is predicted
  data.document = choice('file', 'blank-line')  # text: a file is a document, or a block between blank lines is
  data.validation_fraction = number(0.05, at_least=0, below=1)  # share of documents held out, by a hash of the content
  # All but bytes and file are trained on the corpus.
  data.tokenizer = choice(
    'sentencepiece-bpe', 'sentencepiece-unigram', 'wordpiece', 'byte-bpe', 'words', 'characters', 'bytes', 'file'
  )  # what a token is
  data.tokenizer_path = text('')  # tokenizer = file: a .model, a tokenizer.json or a run's tokenizer/
  data.vocab_size = count(4096, at_least=1)  # of a trained tokenizer, special tokens included; words: the most frequent
  data.normalization = choice('none', 'nfc', 'nfkc', 'nfkc-lowercase')  # applied to text before tokenizing
  data.sequence_length = count(256, at_least=1)  # tokens a row that the model sees; of an encoder-decoder, as source
  data.target_length = count(0)  # pairs: tokens a row of the targets; 0 = data.sequence_length
  data.batch_tokens = count(4096, at_least=1)  # global tokens a step, all devices and accumulation steps together
  data.packing = choice('documents', 'none')  # packed whole, no attention across; or contiguous chunks
  data.num_workers = count(0)  # processes that encode text; 0 = one a core
  data.cache_dir = text('')  # trained tokenizers and token stores; '' = $XDG_CACHE_HOME/meshlm or ~/.cache/meshlm
  data.augmentation = _augmentation()
  return data


def _augmentation():
  augmentation = _group('data.augmentation')  # of training rows, anew in every epoch; labels stay what they are
  augmentation.token_dropout = number(0.0, at_least=0, below=1)  # share of input tokens that become the mask token
  augmentation.token_replacement = number(0.0, at_least=0, below=1)  # share of input tokens that become a random token
  augmentation.random_crop = flag(False)  # a piece of a document longer than a row is cut at a random place of it
  return augmentation


def _objective():
  objective = _group('objective')
  objective.name = choice(
    'causal', 'masked', 'span_corruption', 'prefix', 'permutation', 'denoising', 'ul2', 'seq2seq'
  )  # what is predicted
  objective.label_smoothing = number(0.0, at_least=0, below=1)  # probability spread evenly over the vocabulary
  objective.z_loss = number(0.0, at_least=0)  # weight of log(Z)^2 (PaLM: 1e-4)
  objective.mask_rate = number(0.15, above=0, below=1)  # masked, span_corruption: share of tokens that are predicted
  objective.random_rate = number(0.1, at_least=0, below=1)  # masked: share of these that become a random token
  objective.keep_rate = number(0.1, at_least=0, below=1)  # masked: share of these that stay; the others are hidden
  objective.whole_words = flag(False)  # masked: all tokens of a word or none
  objective.mean_span = number(3.0, at_least=1)  # span_corruption: tokens a span
  objective.num_sentinels = count(100, at_least=1)  # span_corruption, ul2: that a trained tokenizer reserves
  objective.partial_prediction = count(6, at_least=1)  # permutation: one of so many tokens is predicted
  objective.max_span = count(5, at_least=1)  # permutation: tokens of a span, 1 to this
  objective.denoising = _denoising()
  objective.denoisers = tuple_of(  # ul2: the mixture, by default the seven of Tay et al. 2022, table 1
    record(
      {'mode': 'R', 'mask_rate': 0.15, 'mean_span': 3.0, 'weight': 1.0},
      mode=choice('R', 'S', 'X'),
      mask_rate=number(0.15, above=0, below=1),
      mean_span=number(3.0, at_least=0),
      weight=number(1.0, above=0),
    ),
    default=_UL2,
  )  # mode token, share of tokens, tokens a span (0 = one span at the end of each text), how often
  return objective


def _denoising():
  denoising = _group('objective.denoising')
  denoising.permute_sentences = flag(True)  # the sentences of a text in a random order
  denoising.deletion_rate = number(0.0, at_least=0, below=1)  # share of tokens left out
  denoising.masking_rate = number(0.0, at_least=0, below=1)  # share of tokens replaced by a mask each
  denoising.infilling_rate = number(0.3, at_least=0, below=1)  # share of tokens in spans replaced by one mask each
  denoising.infilling_mean = number(3.0, above=0)  # tokens of such a span in the mean, a Poisson number
  denoising.rotation_rate = number(0.0, at_least=0, below=1)  # share of texts that begin at a random token
  return denoising


def _optimizer():
  optimizer = _group('optimizer')
  optimizer.name = choice('adamw', 'adam', 'sgd', 'rmsprop', 'adafactor', 'lion', 'muon')  # muon: of the matrices
  optimizer.learning_rate = number(1e-3, above=0)  # peak; muon: of the matrices
  optimizer.adam_learning_rate = number(1e-3, above=0)  # muon only: peak for embeddings, head and vectors, by adamw
  optimizer.schedule = choice(
    'cosine', 'linear', 'constant', 'inverse_sqrt', 'wsd', 'step', 'exponential'
  )  # the learning rate after warmup
  optimizer.warmup = duration(100)  # linear to the peak
  optimizer.decay = duration({'share': 0.2})  # wsd: the final decay; step, exponential: the interval
  optimizer.decay_factor = number(0.1, above=0)  # step, exponential: multiplies the learning rate every `decay`
  optimizer.final_fraction = number(0.1, at_least=0)  # linear, cosine, wsd: final learning rate / peak
  optimizer.weight_decay = number(0.1, at_least=0)  # decoupled; matrices only, no position tables; adam: none
  optimizer.beta1 = number(0.9, at_least=0, below=1)  # adam, adamw, lion, muon's adamw: decay of the first moment
  optimizer.beta2 = number(0.95, at_least=0, below=1)  # the same and rmsprop: decay of the second moment
  optimizer.epsilon = number(1e-8, above=0)  # adam, adamw, rmsprop, muon's adamw
  optimizer.momentum = number(0.9, at_least=0, below=1)  # sgd, rmsprop, muon
  optimizer.clip_norm = number(1.0, at_least=0)  # global gradient norm; 0 = off
  optimizer.accumulation_steps = count(1, at_least=1)  # microbatches a step, one after the other
  optimizer.l1_penalty = number(0.0, at_least=0)  # times the sum of |w| over matrices, added to the loss
  optimizer.l2_penalty = number(0.0, at_least=0)  # times half the sum of w^2 over matrices, added to the loss
  optimizer.expert_bias_rate = number(1e-3, at_least=0)  # a step of model.moe.selection_bias (DeepSeek-V3: 1e-3)
  optimizer.ema_decay = number(0.0, at_least=0, below=1)  # moving average of parameters, for evaluation; 0 = off
  optimizer.frozen = tuple_of(text('embedding'))  # path patterns of parameters that stay as they are: 'layers/mlp', ...
  # Factors on the learning rate by path pattern, the first that matches counts: a number, or one for each layer.
  optimizer.learning_rate_scale = tuple_of(  # (('embedding', 0.1), ...)
    pair_of(text('embedding'), one_or_many(number(0.1, at_least=0)))
  )  # pattern and factor
  return optimizer


def _train():
  train = _group('train')
  train.steps = duration(1000, share=False, at_least=1)  # length of the run
  train.allow_new_length = flag(False)  # a run goes on after train.steps changed, which changes its learning rates
  train.log_every = duration(10, at_least=1)  # between two lines of metrics
  train.eval_every = duration(200)  # 0 = only at the end
  train.eval_batches = count(0)  # batches of the validation split an evaluation reads; 0 = all
  train.checkpoint_every = duration(200)  # 0 = only at the end
  train.keep_last = count(2, at_least=1)  # checkpoints kept besides the best one
  train.sample_every = duration(0)  # 0 = only at the end
  train.sample_prompts = tuple_of(text(''), default=('',))  # texts continued in samples.txt; '' starts a new document
  train.sample_tokens = count(64, at_least=1)  # new tokens a sample
  train.max_bad_steps = count(10, at_least=1)  # non-finite steps in a row before the run aborts
  train.early_stopping_patience = count(0)  # evaluations without a better validation loss before stopping; 0 = off
  # Several processes: seconds without a finished step (the first one aside), batch of an evaluation or checkpoint,
  # after which a process takes the others for lost and ends.
  train.step_timeout = number(1800.0, at_least=0)  # 0 = never
  train.tensorboard = flag(True)  # write workdir/tensorboard
  return train


def _mesh():
  mesh = _group('mesh')
  # Devices along each axis; one of them may be -1: all that the others leave.
  mesh.data = count(-1, at_least=-1)  # that split the rows of a batch
  mesh.fsdp = count(1, at_least=-1)  # that split the rows, and what zero_stage says
  mesh.tensor = count(1, at_least=-1)  # that split heads, hidden widths and the vocabulary
  mesh.sequence = count(1, at_least=-1)  # that split the length of rows
  mesh.pipeline = count(1, at_least=-1)  # that split the layers
  mesh.expert = count(1, at_least=-1)  # that split the rows, and experts
  mesh.microbatches = count(0)  # pipeline > 1: that rows go through it in, a multiple of it; 0 = as many as it
  mesh.pipeline_rounds = count(1, at_least=1)  # how often each goes round it, which divides idle time; layers divide
  mesh.sequence_parallel = flag(False)  # norms, dropout and residual additions split the length over tensor
  mesh.slices = count(1, at_least=1)  # groups of devices linked fast; the outermost axis they divide lies across
  return mesh


def _precision():
  precision = _group('precision')
  precision.dtype = choice('float32', 'bfloat16')  # of matmuls and activations; parameters stay float32
  precision.float32 = tuple_of(text('*/router'))  # path patterns of modules whose matmuls stay float32 all the same
  return precision
