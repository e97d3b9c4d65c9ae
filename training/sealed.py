"""JSON records that tell whether they are what was written."""

import json
import zlib


def seal(record) -> dict:
  """The record, JSON-able, with its checksum."""
  return {'record': record, 'crc32': _crc32(record)}


def unseal(text: str):
  """The record of a text that holds `seal(record)`.

  Raises:
    ValueError: the text is not what was written.
  """
  try:
    sealed = json.loads(text)
    record, crc32 = sealed['record'], sealed['crc32']
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'cannot be read ({error!r})') from error
  if _crc32(record) != crc32:
    raise ValueError('does not have the checksum it was saved with')
  return record


def _crc32(record) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())
