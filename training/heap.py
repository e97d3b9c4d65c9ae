"""Keeps what malloc frees, on a CPU: a step then reuses the memory of the one before.

glibc gives large blocks back to the system as they are freed, and each step faults them in again: gigabytes of pages,
at a price that varies between machines and hours. With one arena (`TUNABLES`, which glibc reads only as a process
starts) and after the first steps told to keep everything, no page is faulted in any more; memory grows up to twofold.
"""

import ctypes
import pathlib
import platform
import resource

# Large pages, and one arena, so that all threads reuse the same memory.
TUNABLES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1'}
GROWTH = 2.0  # peak resident memory with everything kept, over that without
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


def keep_if_it_fits() -> bool:
  """Keeps freed memory from now on, if `GROWTH` times the process's peak so far fits the machine; returns whether."""
  if platform.libc_ver()[0] != 'glibc':
    return False
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  if GROWTH * peak > room():
    return False
  libc = ctypes.CDLL(None)
  return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1))


def room() -> int:
  """Bytes that this process could hold: its own, and what the system or its control group has left."""
  kilobytes = dict(line.split(':') for line in pathlib.Path('/proc/meminfo').read_text().splitlines())
  free = int(kilobytes['MemAvailable'].split()[0]) * 1024
  group = pathlib.Path('/sys/fs/cgroup')
  limit = group / 'memory.max'
  if limit.exists() and (most := limit.read_text().strip()) != 'max':
    free = min(free, int(most) - int((group / 'memory.current').read_text()))
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return free + pages * resource.getpagesize()
