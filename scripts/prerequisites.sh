#!/usr/bin/env bash
# prerequisites.sh check|install [PROGRAM …]: looks for Rust, a C compiler, libclang (the module's bindings are
# generated from the server's header) and the programs named; python3-venv is Python with its module venv. `check`
# says what is missing and which command installs it. `install` runs that command on Debian and its derivatives,
# after a yes: at the terminal, or by YES=1 or CI=1.
set -euo pipefail
mode=${1:?usage: prerequisites.sh check|install [PROGRAM …]}
shift

has_libclang() {
  [[ -n ${LIBCLANG_PATH:-} ]] && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang[.-][s0-9]*' >/dev/null &&
    compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null && return 0
  command -v clang >/dev/null
}

has_venv() {
  python3 -c 'import ensurepip, venv' 2>/dev/null
}

is_yes() {
  case ${1,,} in
    1 | y | yes | true) return 0 ;;
    *) return 1 ;;
  esac
}

if ! command -v cargo >/dev/null; then
  echo "Rust is missing: install it from https://rustup.rs, then try again." >&2
  [[ -z ${SUDO_USER:-} ]] ||
    echo "If only $SUDO_USER has it: run make without sudo. make install calls sudo itself." >&2
  exit 1
fi

missing=() missing_cargo=()
command -v cc >/dev/null || missing+=(cc)
has_libclang || missing+=(libclang)
for program in "$@"; do
  # A user who sets PMCPTASK_SERVER installs that server.
  [[ $program == redis-server && -n ${PMCPTASK_SERVER:-} ]] && continue
  [[ $program == python3-venv ]] && has_venv && continue
  command -v "$program" >/dev/null && continue
  case $program in
    cargo-*) missing_cargo+=("$program") ;;
    *) missing+=("$program") ;;
  esac
done

# Compiling these takes minutes, so that is left to the user.
if [[ ${#missing_cargo[@]} -gt 0 ]]; then
  echo "Missing: ${missing_cargo[*]}. To install it, run:" >&2
  echo "  cargo install --locked ${missing_cargo[*]}" >&2
  mode=check
fi
if [[ ${#missing[@]} -eq 0 ]]; then
  [[ ${#missing_cargo[@]} -eq 0 ]] && exit 0
  exit 1
fi

if ! command -v apt-get >/dev/null; then
  cat >&2 <<TEXT
Missing: ${missing[*]}. Please install and try again:
  Fedora:  dnf install gcc clang redis     (or valkey)
  Arch:    pacman -S gcc clang valkey
If libclang is in an unusual place, set LIBCLANG_PATH to its folder. To use another server, set
PMCPTASK_SERVER.
TEXT
  exit 1
fi

# The library and its headers are enough, but their names have the version of the system's release. Before the
# first update of the package lists, only the larger package that depends on them is known.
libclang_packages() {
  local version
  version=$(apt-cache depends libclang-dev 2>/dev/null |
    sed -n 's/.*Depends: libclang-\([0-9]*\)-dev.*/\1/p' | head -n 1) || true
  if [[ -n $version ]]; then
    printf '%s\n' "libclang1-$version" "libclang-common-$version-dev"
  else
    echo libclang-dev
  fi
}

packages() {
  for what in "${missing[@]}"; do
    case $what in
      cc) printf '%s\n' gcc libc6-dev ;;
      libclang) libclang_packages ;;
      node) echo nodejs ;;
      *) echo "$what" ;;
    esac
  done
}

mapfile -t wanted < <(packages)
command="apt-get update && apt-get install --no-install-recommends ${wanted[*]}"
as_root=()

echo "Missing: ${missing[*]}." >&2
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "To install it, run as root:" >&2
    echo "  $command" >&2
    exit 1
  fi
  as_root=(sudo)
  command=${command//apt-get/sudo apt-get}
fi
if [[ $mode == check ]]; then
  echo "To install it, run:" >&2
  echo "  $command" >&2
  exit 1
fi
if [[ " ${wanted[*]} " == *' redis-server '* && -d /run/systemd/system ]]; then
  echo "The package redis-server starts a server of its own on port 6379. This project does not use or" >&2
  echo "change that server; 'systemctl disable --now redis-server' stops it." >&2
fi
if ! is_yes "${YES:-}" && ! is_yes "${CI:-}"; then
  if [[ ! -t 0 ]]; then
    echo "To install it, set YES=1, or run:" >&2
    echo "  $command" >&2
    exit 1
  fi
  # Without an answer (Ctrl-D), the answer is no.
  answer=
  read -r -p "Run '$command'? [y/N] " answer || echo >&2
  is_yes "$answer" || { echo "Nothing was installed." >&2; exit 1; }
fi

"${as_root[@]}" apt-get update -qq
mapfile -t wanted < <(packages)
echo "Installing with apt-get: ${wanted[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
echo "Installed."
