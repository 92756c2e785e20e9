#!/usr/bin/env bash
# Runs a server under valgrind; what valgrind finds goes to a file for each process in VALGRIND_LOGS.
# Debian's server allocates with jemalloc, whose functions valgrind takes over by the library's name.
exec valgrind --quiet --log-file="${VALGRIND_LOGS:?a folder}/%p.log" --soname-synonyms=somalloc='*jemalloc*' \
  --leak-check=full --show-leak-kinds=definite --track-origins=yes "${SERVER:-redis-server}" "$@"
