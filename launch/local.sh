#!/usr/bin/env bash
# Trains with N processes on this machine, which exchange over its network interface (gloo): for tests, and for machines
# of several sockets.
#
#   launch/local.sh 2 --config=configs/quickstart.py --workdir=runs/two
#
# DEVICES simulates so many devices in each process (default 1), PYTHON names the interpreter, PORT a free port. What the
# processes after the first say is marked with their number. Exit status: 0 all finished; 75 all stopped and saved;
# otherwise that of the first process that failed.
set -euo pipefail

case "${1:-}" in
  '' | *[!0-9]* | 0*) echo "usage: launch/local.sh N --config=FILE --workdir=DIR [train.py's other arguments]" >&2; exit 2 ;;
esac
processes=$1
shift
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
train=$(dirname "$0")/../train.py

pids=()
for ((i = 0; i < processes; i++)); do
  together=(--coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i")
  if ((i == 0)); then
    "$python" "$train" "$@" "${together[@]}" &
  else
    "$python" "$train" "$@" "${together[@]}" > >(sed -u "s/^/[$i] /") 2> >(sed -u "s/^/[$i] /" >&2) &
  fi
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

status=0
for pid in "${pids[@]}"; do
  while :; do
    one=0
    wait "$pid" || one=$?
    kill -0 "$pid" 2>/dev/null || break # a signal to this script ends `wait` early
  done
  if ((one != 0 && (status == 0 || status == 75))); then status=$one; fi
done
exit "$status"
