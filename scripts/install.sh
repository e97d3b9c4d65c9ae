#!/bin/sh
# Makes .venv and installs the project into it with the tested versions; does nothing when that was done already.
set -eu
cd "$(dirname "$0")/.."

python=.venv/bin/python
record=.venv/installed-from

identity() {
  "$1" -c 'import sys; print(sys.version, sys.base_prefix)'
}

chosen=''
if ! $python -c 'import pip' 2>/dev/null; then
  chosen=$(scripts/find_python.sh)
elif [ -n "${PYTHON:-}" ]; then
  chosen=$(scripts/find_python.sh)
  [ "$(identity "$chosen")" != "$(identity $python)" ] || chosen=''
fi

if [ -n "$chosen" ]; then
  echo "Making .venv with $chosen"
  "$chosen" -m venv --clear .venv
fi

constraints=constraints/py$($python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
sources=$(cksum setup.cfg pyproject.toml "$constraints"; pwd)
if [ ! -f $record ] || [ "$(cat $record)" != "$sources" ]; then
  echo "Installing the versions of $constraints into .venv (once, some minutes)"
  $python -m pip install --quiet --quiet --disable-pip-version-check --constraint "$constraints" --editable '.[test]'
  echo "$sources" >$record
fi
