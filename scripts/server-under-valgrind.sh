#!/usr/bin/env bash
# Runs a server under valgrind. Its findings go to one file per process in VALGRIND_LOGS.
# Debian's server allocates with jemalloc; valgrind intercepts its functions by the library's name.
exec valgrind --quiet --log-file="${VALGRIND_LOGS:?a folder}/%p.log" --soname-synonyms=somalloc='*jemalloc*' \
  --leak-check=full --show-leak-kinds=definite --track-origins=yes "${SERVER:-redis-server}" "$@"
