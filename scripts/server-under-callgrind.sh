#!/usr/bin/env bash
# Runs a server under callgrind, which counts its instructions. Dumps go to files in CALLGRIND_FOLDER.
exec valgrind --quiet --tool=callgrind --trace-children=yes --callgrind-out-file="${CALLGRIND_FOLDER:?a folder}/out.%p" \
  "${CALLGRIND_SERVER:-redis-server}" "$@"
