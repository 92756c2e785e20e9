#!/usr/bin/env bash
# dist.sh FOLDER: writes pmcptask-VERSION-linux-x86_64.tar.gz and its checksum into FOLDER, and what it holds into
# FOLDER/contents. The module and the command run with every C library from $oldest_glibc on. The same sources and the
# same toolchain give the same bytes, in whatever folder.
set -euo pipefail
# One order of names everywhere.
export LC_ALL=C
mkdir -p "${1:?usage: dist.sh FOLDER}"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

# The oldest one that Rust's standard library runs with.
oldest_glibc=2.17
platform=x86_64-unknown-linux-gnu
# The linker of zig has the symbols of every version of the C library.
linker=(ziglang==0.17.0 cargo-zigbuild==0.24.0)

target=$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
id=$(cargo pkgid --locked --package pmcptask)
version=${id##*[@#]}
built=$target/$platform/packaged
module=$built/libpmcptask.so
command=$built/pmcptask
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

get_linker() {
  local tools=$target/dist-tools
  if [[ $(cat "$tools/complete" 2>/dev/null) != "${linker[*]}" ]]; then
    echo "Getting a linker for old C libraries into $tools: ${linker[*]}."
    python3 -m venv --clear "$tools"
    "$tools/bin/python" -m pip install --quiet "${linker[@]}"
    echo "${linker[*]}" >"$tools/complete"
  fi
  PATH=$tools/bin:$PATH
}

# cargo-zigbuild also names these folders to libclang, but in a way that not every libclang understands.
name_headers() {
  local library arguments=
  library=$(python -c 'import os, ziglang; print(os.path.dirname(ziglang.__file__) + "/lib")')
  for headers in include libc/include/{x86-linux-gnu,generic-glibc,x86-linux-any,any-linux-any}; do
    arguments+="-isystem '$library/$headers' "
  done
  export BINDGEN_EXTRA_CLANG_ARGS=$arguments
}

# Names of folders would make builds differ. The log of a panic still names files, such as module/src/settings.rs.
build() {
  local sysroot remapped
  sysroot=$(rustc --print sysroot)
  remapped="--remap-path-prefix=$sysroot/lib/rustlib/src/rust=rust"
  for prefix in "${CARGO_HOME:-$HOME/.cargo}/registry/src=crates" "$PWD=pmcptask" "$target=target"; do
    remapped+=$'\x1f'"--remap-path-prefix=$prefix"
  done
  # One after the other: the module does not need what the command asks of the crates of both.
  for package in pmcptask pmcptask-cli; do
    CARGO_ENCODED_RUSTFLAGS=$remapped cargo zigbuild --locked --profile packaged --package "$package" \
      --target "$platform.$oldest_glibc"
  done
}

fail() {
  echo "$1" >&2
  exit 1
}

check() {
  local file newest exported
  for file in "$module" "$command"; do
    newest=$(objdump -T "$file" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
    [[ $(printf '%s\n' "$newest" "GLIBC_$oldest_glibc" | sort -V | tail -n 1) == "GLIBC_$oldest_glibc" ]] ||
      fail "$file needs $newest, which is newer than $oldest_glibc."
    # With what follows them, for short names such as /src are parts of others.
    ! grep -qaF -e "$PWD/module/" -e "$PWD/schema/" -e "$PWD/cli/" -e "$PWD/client/" -e "$target/" -e "$HOME/" "$file" ||
      fail "$file names folders of this machine."
    echo "$file needs $newest at most."
  done
  exported=$(nm -D --defined-only "$module" | awk '{ print $NF }' | sort | paste -sd ' ')
  [[ $exported == 'RedisModule_OnLoad RedisModule_OnUnload' ]] || fail "$module exports $exported."
  echo "The module exports $exported."
}

pack() {
  local name=pmcptask-$version-linux-x86_64 contents=$folder/contents
  rm -rf "$contents"
  install -D -m 755 --target-directory "$contents" "$module" "$command"
  install -m 644 packaging/pmcptask.conf LICENSE packaging/prometheus/* packaging/grafana/* "$contents"
  scripts/third-party-licences.sh "$built/third-party-licences"
  cp -r "$built/third-party-licences" "$contents"
  tar --create --directory "$folder" --transform "s|^contents|$name|" --sort=name --mode=u=rwX,go=rX \
    --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" contents | gzip -n9 >"$folder/$name.tar.gz"
  (cd "$folder" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
}

get_linker
name_headers
build
check
pack
