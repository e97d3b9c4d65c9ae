#!/bin/sh
# Prints the path of the newest Python on PATH that can run this project. A name is not enough: a pyenv shim may
# exist and fail, a distribution may leave out the venv module. PYTHON=NAME asks for one particular interpreter.

check='
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
  print("is Python " + version)
  sys.exit(1)
if sys.implementation.name != "cpython":
  print("is not CPython")
  sys.exit(1)
try:
  import ensurepip, venv
except ImportError:
  print("is Python " + version + " without the venv module")
  sys.exit(1)
print("%d %s" % (sys.version_info[1], sys.executable))'

needs='meshlm needs CPython 3.11, 3.12 or 3.13 with the venv module'

probe() {
  "$1" -c "$check" </dev/null 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
  if answer=$(probe "$PYTHON"); then
    echo "${answer#* }"
    exit 0
  fi
  echo "PYTHON=$PYTHON ${answer:-does not run}; $needs." >&2
  exit 1
fi

newest=0
refused=''
IFS=:
for directory in $PATH; do
  for name in python3.13 python3.12 python3.11 python3 python; do
    candidate=$directory/$name
    [ -x "$candidate" ] || continue
    if ! answer=$(probe "$candidate"); then
      refused="$refused
  $candidate ${answer:-does not run}"
    elif [ "${answer%% *}" -gt "$newest" ]; then
      newest=${answer%% *}
      found=${answer#* }
    fi
  done
done

if [ "$newest" -eq 0 ]; then
  echo "$needs; PATH has none that runs.$refused
Install one (Debian, Ubuntu: apt install python3 python3-venv) or name one: make train PYTHON=/path/to/python3" >&2
  exit 1
fi
echo "$found"
