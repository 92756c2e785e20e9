#!/usr/bin/env bash
# run-server.sh MODULE: runs a server with the module in the foreground.
# SERVER (program), PORT and DATA (folder) change the defaults.
set -euo pipefail
module=${1:?usage: run-server.sh MODULE}
server=${SERVER:-redis-server} port=${PORT:-6380} data=${DATA:-data}

if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "Port $port is taken by another program. Choose another port: make run PORT=$((port + 1))" >&2
  exit 1
fi
command -v "$server" >/dev/null || { echo "There is no program '$server': set SERVER to the path of a server." >&2; exit 1; }
mkdir -p "$data"
# A new copy for each start, because CONFIG REWRITE writes into the file that the server was started with.
settings=$data/make-run.conf
cp "$(dirname "$0")/../redis.conf" "$settings"

cat <<TEXT
A server with the pmcptask module starts on 127.0.0.1:$port; its data is in $data. Ctrl-C stops it.
In another terminal, try:

  redis-cli -p $port PMCPTASK.PUT pmcp:tasks:alice:t1 pmcp:idx:alice '{"status":"working"}'
  redis-cli -p $port PMCPTASK.LIST pmcp:idx:alice

TEXT
exec "$server" "$settings" --port "$port" --dir "$data" --loadmodule "$module"
