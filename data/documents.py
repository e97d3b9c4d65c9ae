"""Documents: the unit that is cleaned, deduplicated, split and, later, tokenized.

Every reader in `corpora` yields `Document`s, and every stage between a reader and the tokenizer is a function from
documents to documents that adds what it did to `counts`.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator

Counts = collections.Counter  # what cleaning saw, by name, for the report

_BYTE_ORDER_MARK = '\ufeff'


@dataclasses.dataclass(frozen=True)
class Document:
  """A text and where it came from (`file` or `file:line`); of a pair the source and its target."""

  text: str
  source: str
  target: str | None = None

  @functools.cached_property
  def digest(self) -> bytes:
    """128 bits that name the content: equal texts have equal digests."""
    content = self.text if self.target is None else f'{self.text}\0{self.target}'
    return hashlib.blake2b(content.encode(), digest_size=16).digest()

  @functools.cached_property
  def fraction(self) -> float:
    """A number in [0, 1) that depends on the content only."""
    return int.from_bytes(self.digest[:6], 'big') / 2**48


def decode(content: bytes, source: str) -> str:
  """The text of a file's bytes, without a byte order mark.

  Raises:
    ValueError: `content` is not UTF-8 or holds a NUL byte; names `source`, the line and the byte (from 0).
  """
  try:
    text = content.decode('utf-8')
  except UnicodeDecodeError as error:
    found, position = f'invalid UTF-8 (0x{content[error.start]:02x})', error.start
  else:
    if (position := content.find(b'\0')) < 0:
      return text.removeprefix(_BYTE_ORDER_MARK)
    found = 'a NUL byte'
  line = content.count(b'\n', 0, position) + 1
  raise ValueError(
    f'{source}: {found} at line {line}, byte {position}; text must be UTF-8 without NUL bytes. '
    f'If the file has another encoding, convert it: iconv -f ENCODING -t UTF-8'
  )


def clean(documents: Iterable[Document], counts: Counts) -> Iterator[Document]:
  """Turns CRLF into LF and drops documents without any visible character, pairs with such a side; counts both.

  Raises:
    ValueError: a text holds a NUL character or a lone surrogate, which no UTF-8 file can; names the source.
  """
  for document in documents:
    text = _clean_text(document.text, document.source, counts)
    target = None if document.target is None else _clean_text(document.target, document.source, counts)
    if text != document.text or target != document.target:
      document = Document(text, document.source, target)
    if any(side is not None and (not side or side.isspace()) for side in (text, target)):
      counts['empty_documents'] += 1
    else:
      yield document


def _clean_text(text: str, source: str, counts: Counts) -> str:
  if '\0' in text:
    raise ValueError(f'{source}: a NUL character in the text; remove it')
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{source}: {text[error.start]!r} at character {error.start} is half a surrogate pair, not a character'
    ) from None
  if crlf := text.count('\r\n'):
    counts['crlf_lines'] += crlf
    text = text.replace('\r\n', '\n')
  return text


def unique(documents: Iterable[Document], seen: set[bytes], counts: Counts) -> Iterator[Document]:
  """Drops documents whose exact text is in `seen` (digests, extended here) already; counts them."""
  for document in documents:
    if document.digest in seen:
      counts['duplicates'] += 1
    else:
      seen.add(document.digest)
      yield document


def blank_line_blocks(document: Document) -> Iterator[Document]:
  """The blocks of lines between blank lines, each a document of its own with the line where it starts."""
  lines = enumerate(document.text.split('\n'), 1)
  for blank, block in itertools.groupby(lines, key=lambda line: not line[1].strip()):
    if not blank:
      numbers, texts = zip(*block, strict=True)
      yield Document('\n'.join(texts), f'{document.source}:{numbers[0]}')


def split(documents: list[Document], validation_fraction: float) -> tuple[list[Document], list[Document]]:
  """(train, validation): a document is held out when the hash of its content falls below `validation_fraction`.

  So a document stays on its side whatever else the corpus holds. Only where a side would be empty does it get the one
  document nearest to the threshold.

  Raises:
    ValueError: there are fewer than two documents to split.
  """
  if validation_fraction == 0:
    return documents, []
  if len(documents) < 2:
    raise ValueError(
      f'the corpus has {len(documents)} document(s), and holding some out for validation takes at least 2. '
      f'Text with blank lines: --config.data.document=blank-line; no validation: --config.data.validation_fraction=0'
    )
  fractions = sorted(document.fraction for document in documents)
  threshold = min(max(validation_fraction, fractions[1]), fractions[-1])
  train = [document for document in documents if document.fraction >= threshold]
  return train, [document for document in documents if document.fraction < threshold]
