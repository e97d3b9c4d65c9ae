"""What objectives and generation know of a vocabulary: special tokens, and what others are in a text. V tokens."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

MASK_NAMES = ('[MASK]', '<mask>')
MODE_NAMES = {'R': ('[R]', '[NLU]'), 'S': ('[S]', '[S2S]'), 'X': ('[X]', '[NLG]')}  # Tay et al. 2022, and their release
_OPENING_NAMES = ('[CLS]', '<s>')
_T5_START_NAME = '<pad>'
_SENTENCE_ENDS = (b'.', b'!', b'?', '\u3002'.encode())


@dataclasses.dataclass(frozen=True, eq=False)
class Special:
  """The special tokens of a vocabulary and the roles of the ordinary ones.

  Attributes:
    eos_id: ends (and, in a stream of documents, begins) a document.
    opening_id: begins the text that an encoder reads: [CLS] or <s> where there is one, else `eos_id`.
    start_id: the first input of the decoder of an encoder-decoder: the <pad> of a vocabulary with sentinels, as in T5,
      else `eos_id`, as in BART.
    mask_id: stands for what is to be predicted; None where there is none.
    sentinel_ids: of <extra_id_0>, <extra_id_1>, ...: they number the spans of a text; may be empty.
    mode_ids: of the tokens that name a denoiser of UL2, by 'R', 'S' and 'X'; those that there are.
    ordinary: bool [V], tokens that are text: those that may be corrupted or put in the place of others.
    opens_word: bool [V], tokens that begin a word whatever stands before them.
    closes_word: bool [V], tokens after which a word begins.
    ends_sentence: bool [V], tokens that end in a full stop or the like.
  """

  eos_id: int
  opening_id: int
  start_id: int
  mask_id: int | None
  sentinel_ids: tuple[int, ...]
  mode_ids: dict[str, int]
  ordinary: np.ndarray
  opens_word: np.ndarray
  closes_word: np.ndarray
  ends_sentence: np.ndarray

  @functools.cached_property
  def ordinary_ids(self) -> np.ndarray:
    """The ids of ordinary tokens, int64, in order."""
    return np.flatnonzero(self.ordinary)


def describe(eos_id: int, names: dict[str, int], pieces: Sequence[bytes]) -> Special:
  """What a vocabulary tells of itself.

  Args:
    eos_id: the token that ends a document.
    names: ids of all named special tokens.
    pieces: UTF-8 of each token within a running text, with the space that it brings; empty for special tokens.
  """
  first = lambda candidates, default: next((names[name] for name in candidates if name in names), default)
  sentinels = []
  while (name := sentinel_name(len(sentinels))) in names:
    sentinels.append(names[name])
  modes = {mode: first(candidates, None) for mode, candidates in MODE_NAMES.items()}
  ordinary = np.array([bool(piece) for piece in pieces])
  ordinary[[eos_id, *names.values()]] = False
  ends = [_ends(piece) for piece in pieces]
  return Special(
    eos_id=eos_id,
    opening_id=first(_OPENING_NAMES, eos_id),
    start_id=first([_T5_START_NAME] if sentinels else [], eos_id),
    mask_id=first(MASK_NAMES, None),
    sentinel_ids=tuple(sentinels),
    mode_ids={mode: i for mode, i in modes.items() if i is not None},
    ordinary=ordinary,
    opens_word=np.array([not within_word for within_word, _ in ends]),
    closes_word=np.array([not within_word for _, within_word in ends]),
    ends_sentence=np.array([piece.rstrip().endswith(_SENTENCE_ENDS) for piece in pieces]),
  )


def sentinel_name(number: int) -> str:
  """The name of a sentinel, counted from 0."""
  return f'<extra_id_{number}>'


def _ends(piece: bytes) -> tuple[bool, bool]:
  """Whether the first character is of a word that may have begun before it, and the last of one that may go on."""
  if not piece:
    return False, False
  try:
    text = piece.decode()
  except UnicodeDecodeError:  # a part of a character that is not ASCII
    return True, True
  return _in_word(text[0]), _in_word(text[-1])


def _in_word(character: str) -> bool:
  # Chinese and Japanese write no spaces: there each character is a word, as in BERT.
  return (character.isalnum() or character == '_') and not '\u2e80' <= character <= '\u9fff'
