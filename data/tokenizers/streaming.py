"""Text from ids that come one at a time."""

from collections.abc import Sequence

from data.tokenizers import base


class StreamDecoder:
  """Decodes ids as they come: the texts of all pushes, and of `finish`, joined are the text of all ids.

  A character whose bytes are spread over several tokens comes out with its last byte.

  Args:
    tokenizer: the tokenizer whose ids come.
    context: ids before the first push, whose text is not repeated (a prompt). Tokenizers that drop the space at the
      beginning of a text need them to keep it in the middle of one.
  """

  def __init__(self, tokenizer: base.Tokenizer, context: Sequence[int] = ()):
    self._tokenizer = tokenizer
    self._ids = [int(i) for i in context]
    self._shown = len(self._ids)  # ids whose text is out; they stay because neighbours decide about spaces

  def push(self, token_id: int) -> str:
    """Returns the text that `token_id` completes, often '' within a character."""
    self._ids.append(int(token_id))
    before, after = self._texts()
    if len(after) <= len(before) or after.endswith(base.REPLACEMENT):
      return ''
    self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
    return after[len(before) :]

  def finish(self) -> str:
    """Returns what is held back: characters that were begun and never ended."""
    before, after = self._texts()
    self._shown = len(self._ids)
    return after[len(before) :]

  def _texts(self):
    return self._tokenizer.decode(self._ids[: self._shown]), self._tokenizer.decode(self._ids)
