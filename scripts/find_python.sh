#!/bin/sh
# Prints the path of the newest Python that can run this project: of those on PATH and of those that pyenv or uv
# installed, whether PATH names them or not. A name is not enough: a pyenv shim may exist and fail, a distribution may
# leave out the venv module. PYTHON=NAME asks for one particular interpreter; `find_python.sh 3.11` for one of a version.

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

pyenv=${PYENV_ROOT:-${HOME:-/nowhere}/.pyenv}/versions
uv=${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-/nowhere}/.local/share}/uv/python}
versions=${1:-3.13 3.12 3.11}
newest=0
refused=''

consider() {
  [ -x "$1" ] || return 0
  if ! answer=$(probe "$1"); then
    refused="$refused
  $1 ${answer:-does not run}"
  elif [ "${answer%% *}" -gt "$newest" ] && [ -z "${versions##*3.${answer%% *}*}" ]; then
    newest=${answer%% *}
    found=${answer#* }
  fi
}

IFS=:
for directory in $PATH; do
  for name in python3.13 python3.12 python3.11 python3 python; do
    consider "$directory/$name"
  done
done
for directory in "$pyenv"/*/bin "$uv"/*/bin; do
  for name in python3.13 python3.12 python3.11; do
    consider "$directory/$name"
  done
done

if [ "$newest" -eq 0 ]; then
  echo "$needs; neither PATH nor pyenv nor uv has ${1:-one} that runs.$refused
Install one (Debian, Ubuntu: apt install python3 python3-venv) or name one: make train PYTHON=/path/to/python3" >&2
  exit 1
fi
echo "$found"
