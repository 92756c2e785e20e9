#!/usr/bin/env bash
# Checks what building and testing needs: a C compiler, libclang (the module's bindings are generated from the
# server's header), a Redis server, and the programs named as arguments. On Debian and its derivatives the script
# installs what is missing and says so; on other systems it says what to install.
set -euo pipefail

has_libclang() {
  [[ -n ${LIBCLANG_PATH:-} ]] && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null && return 0
  command -v clang >/dev/null
}

if ! command -v cargo >/dev/null; then
  echo "Rust is missing: install it from https://rustup.rs, then try again." >&2
  exit 1
fi

missing=()
command -v cc >/dev/null || missing+=(cc)
has_libclang || missing+=(libclang)
# A user who sets PMCPTASK_SERVER installs that server.
[[ -n ${PMCPTASK_SERVER:-} ]] || command -v redis-server >/dev/null || missing+=(redis-server)
for program in "$@"; do
  command -v "$program" >/dev/null || missing+=("$program")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if ! command -v apt-get >/dev/null; then
  cat >&2 <<TEXT
Missing: ${missing[*]}. Please install and try again:
  Fedora:  dnf install gcc clang redis     (or valkey)
  Arch:    pacman -S gcc clang valkey
If libclang is in an unusual place, set LIBCLANG_PATH to its folder. To use another server, set PMCPTASK_SERVER.
TEXT
  exit 1
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "Missing: ${missing[*]}. Run this as root once, or install sudo." >&2; exit 1; }
  as_root=(sudo)
fi

echo "Missing: ${missing[*]}. Updating the package lists."
"${as_root[@]}" apt-get update -qq
packages=()
for what in "${missing[@]}"; do
  case $what in
    cc) packages+=(gcc libc6-dev) ;;
    redis-server) packages+=(redis-server) ;;
    valgrind) packages+=(valgrind) ;;
    libclang)
      # The default version of this system release. The library and its headers are enough.
      version=$(apt-cache depends libclang-dev | sed -n 's/.*Depends: libclang-\([0-9]*\)-dev.*/\1/p' | head -n 1)
      packages+=("libclang1-$version" "libclang-common-$version-dev")
      ;;
  esac
done
echo "Installing with apt-get: ${packages[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
if [[ " ${packages[*]} " == *' redis-server '* && -d /run/systemd/system ]]; then
  echo "The package has started its own server on port 6379. This project does not use or change that server;"
  echo "'systemctl disable --now redis-server' stops it."
fi
echo "Installed."
