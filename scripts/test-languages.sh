#!/usr/bin/env bash
# test-languages.sh MODULE FOLDER: runs the programs of examples/ on one server and in a cluster of three nodes. Their
# packages are downloaded into FOLDER. A program fails if it says so, or if a node of the cluster had to redirect one of
# its calls. SERVER names another server's program.
set -euo pipefail
module=$(realpath "${1:?usage: test-languages.sh MODULE FOLDER}")
mkdir -p "${2:?usage: test-languages.sh MODULE FOLDER}"
folder=$(cd "$2" && pwd)
server=${SERVER:-redis-server}
cli=${server%-server}-cli
examples=$(dirname "$0")/../examples

fail() {
  echo "$1" >&2
  exit 1
}

data=$(mktemp -d)
started=()
stop() {
  [[ ${#started[@]} -eq 0 ]] || kill "${started[@]}" 2>/dev/null || true
  wait
  rm -rf "$data"
}
trap stop EXIT

# ask PORT WORD …: the reply of the server at a port.
ask() {
  timeout 10 "$cli" -p "$1" "${@:2}"
}

# wait_until WHAT COMMAND …
wait_until() {
  local deadline=$((SECONDS + 60))
  until "${@:2}" 2>/dev/null; do
    [[ $SECONDS -lt $deadline ]] && kill -0 "${started[-1]}" ||
      { tail -n 20 "$data"/*/log >&2; fail "$server: expected that $1."; }
    sleep 0.1
  done
}

answers() { [[ $(ask "$1" PING) == PONG ]]; }

serves_all_slots() { [[ $(ask "$1" CLUSTER INFO) == *cluster_state:ok* ]]; }

# start PORT [OPTION VALUE …]
start() {
  mkdir "$data/$1"
  "$server" --port "$1" --bind 127.0.0.1 --dir "$data/$1" --save '' --loadmodule "$module" "${@:2}" \
    >"$data/$1/log" 2>&1 &
  started+=($!)
  wait_until 'it answers' answers "$1"
}

# form_cluster PORT …: gives each node its share of the slots.
form_cluster() {
  local slots=16384 count=$# number=0
  for port in "$@"; do
    {
      # Two nodes with the same epoch would have to resolve that first.
      ask "$port" CLUSTER SET-CONFIG-EPOCH "$((number + 1))"
      ask "$port" CLUSTER ADDSLOTSRANGE "$((slots * number / count))" "$((slots * (number + 1) / count - 1))"
      ask "$1" CLUSTER MEET 127.0.0.1 "$port" "${bus_port[$port]}"
    } >/dev/null
    number=$((number + 1))
  done
  for port in "$@"; do wait_until 'its cluster serves all slots' serves_all_slots "$port"; done
}

# What the nodes were asked beside the calls: those of another node, and COMMAND GETKEYS.
detours() {
  for port in "${nodes[@]}"; do ask "$port" INFO everything; done |
    awk -F '[=,]' '/^errorstat_MOVED:|^cmdstat_command\|getkeys:/ { count += $2 } END { print count + 0 }'
}

get_packages() {
  local node_version
  node_version=$(node --print 'process.versions.node')
  [[ ${node_version%%.*} -ge 20 ]] ||
    fail "Node: expected version 20 or newer, got $node_version. https://nodejs.org has newer ones."
  python3 -m venv --clear "$folder/python"
  "$folder/python/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$examples/python/requirements.txt"
  rm -rf "$folder/node"
  mkdir "$folder/node"
  cp "$examples"/node/{*.js,package*.json,.npmrc} "$folder/node"
  (cd "$folder/node" && npm ci --no-audit --no-fund --loglevel error >/dev/null)
}

# run PROGRAM PORT
run() {
  local program=(node "$folder/$1")
  [[ $1 == node/* ]] || program=(env PYTHONDONTWRITEBYTECODE=1 "$folder/python/bin/python" "$examples/$1")
  timeout 120 "${program[@]}" "redis://127.0.0.1:$2" >"$folder/log" 2>&1 && return
  sed 's/^/    /' "$folder/log"
  return 1
}

get_packages
mapfile -t ports < <("$folder/python/bin/python" -c 'import socket
for listener in [socket.create_server(("127.0.0.1", 0)) for _ in range(7)]:
    print(listener.getsockname()[1])')
alone=${ports[0]} nodes=("${ports[@]:1:3}")
declare -A bus_port
start "$alone"
for at in "${!nodes[@]}"; do
  bus_port[${nodes[at]}]=${ports[at + 4]}
  start "${nodes[at]}" --cluster-enabled yes --cluster-port "${ports[at + 4]}"
done
form_cluster "${nodes[@]}"

failed=0
for program in python/one_server.py python/one_server_asyncio.py node/node_redis.js node/ioredis.js; do
  if run "$program" "$alone"; then echo "$program: passed"; else failed=1 && echo "$program: failed"; fi
done
for program in python/cluster.py node/node_redis_cluster.js node/ioredis_cluster.js; do
  before=$(detours)
  if ! run "$program" "${nodes[0]}"; then
    failed=1
    echo "$program: failed"
    continue
  fi
  took=$(($(detours) - before))
  if [[ $took -eq 0 ]]; then
    echo "$program: passed, every call went to the node of its key"
  else
    failed=1
    echo "$program: failed, expected no redirect and no COMMAND GETKEYS, got $took"
  fi
done
exit "$failed"
