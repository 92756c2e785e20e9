#!/usr/bin/env bash
# install.sh FILE DESTINATION …: copies built programs, with sudo if the caller may not write there. install(1)
# makes a new file, so servers that run go on with the old one.
set -euo pipefail

# copy FILE DESTINATION
copy() {
  local folder command=(install -D -m 755 "$1" "$2")
  folder=$(dirname "$2")
  # Folders that do not exist are made in the first one that does.
  until [[ -e $folder ]]; do folder=$(dirname "$folder"); done
  if [[ ! -w $folder ]]; then
    if ! command -v sudo >/dev/null; then
      echo "$folder is not yours to write. Set PREFIX= to a folder of yours, or run as root:" >&2
      echo "  ${command[*]}" >&2
      return 1
    fi
    command=(sudo "${command[@]}")
  fi
  echo "${command[*]}"
  "${command[@]}"
}

failed=0
while [[ $# -gt 0 ]]; do
  copy "$1" "${2:?usage: install.sh FILE DESTINATION …}" || failed=1
  shift 2
done
exit "$failed"
