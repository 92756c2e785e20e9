#!/usr/bin/env bash
# third-party-licences.sh FOLDER: writes the licences of all foreign code in the module and the command into FOLDER. The
# code that the linker adds (LLVM's unwinder) asks for no notice in programs.
set -euo pipefail
mkdir -p "${1:?usage: third-party-licences.sh FOLDER}"
platform=x86_64-unknown-linux-gnu

crates() {
  cargo tree --locked --package pmcptask --package pmcptask-cli --edges normal,no-proc-macro --no-dedupe --prefix none \
    --target "$platform" --format '{p}|{l}|{r}' | sort -u | grep '|' | grep -v ' (/' |
    # The name that this repository had before.
    sed 's|/paiml/rust-mcp-sdk$|/paiml/pmcp|'
}

# Folders of the sources, which are named by crate and version.
sources=$(cargo metadata --locked --format-version 1 --filter-platform "$platform" | tr ',' '\n' |
  sed -n 's|^"manifest_path":"\(.*\)/Cargo.toml"$|\1|p')

texts_of() {
  local source
  source=$(grep "/$1\$" <<<"$sources")
  find "$source" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) | sort
}

declare -A folder_of_repository
# A crate without a text of its own has that of a crate of the same repository.
while IFS='|' read -r crate licence repository; do
  [[ -z $(texts_of "${crate/ v/-}") ]] || folder_of_repository[$repository]=${crate/ v/-}
done < <(crates)

# The text of the Apache licence names nobody, so that it is the same for all.
apache() {
  local crate licence repository
  while IFS='|' read -r crate licence repository; do
    texts_of "${crate/ v/-}" | grep -m 1 -i 'apache$' && return
  done < <(crates)
}

while IFS='|' read -r crate licence repository; do
  printf '== %s (%s)\n   %s\n\n' "$crate" "$licence" "$repository"
  texts=$(texts_of "${crate/ v/-}")
  sister=${folder_of_repository[$repository]-}
  [[ -n $texts || -z $sister ]] || texts=$(texts_of "$sister")
  [[ -n $texts || $licence != *Apache-2.0* ]] || texts=$(apache)
  [[ -n $texts ]] || { echo "There is no text of the licence of $crate." >&2; exit 1; }
  while read -r text; do
    cat "$text"
    printf '\n'
  done <<<"$texts"
done < <(crates) >"$1/crates.txt"

notices=$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html
[[ -r $notices ]] || { echo "This Rust has no file $notices. Use a toolchain of rustup." >&2; exit 1; }
cp "$notices" "$1/rust-standard-library.html"
