#!/usr/bin/env bash
# test-servers.sh FILE: runs every suite with each server that FILE lists (one per line: a name, and the path of the
# server), and prints a table. SUITES and ONLY limit the suites and the servers. All servers load the same build of the
# module.
set -euo pipefail
list=$(realpath "${1:?usage: test-servers.sh FILE}")
[[ -r $list ]] || { echo "There is no file $list." >&2; exit 1; }
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
logs=$target/servers/logs
mkdir -p "$logs"
rm -f "$logs"/*

read -ra suites <<<"${SUITES:-$(basename -s .rs tests/tests/*.rs checkpoint/tests/*.rs | paste -sd ' ')}"
names=() programs=()
# The last line may have no newline.
while read -r name server || [[ -n $name ]]; do
  [[ -z $server || $name == \#* ]] && continue
  [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] && names+=("$name") && programs+=("$server")
done <"$list"
[[ ${#names[@]} -gt 0 ]] || { echo "$list lists no server${ONLY:+ of $ONLY}." >&2; exit 1; }

# Build everything before the first test: a later build would slow down running tests.
cargo build --locked --quiet --package pmcptask
cargo build --locked --quiet --workspace --all-features --bin pmcptask
cargo test --locked --quiet --workspace --all-features --no-run

# verdict LOG: the numbers of passed and failed tests of a run, or that it did not run.
verdict() {
  local result
  result=$(grep '^test result:' "$1" | tail -n 1) || { echo 'did not run'; return; }
  sed -E 's/^test result: ok\. ([0-9]+) passed.*/\1/; s/^test result: FAILED\. ([0-9]+) passed; ([0-9]+) failed.*/**\2 failed**, \1/' \
    <<<"$result"
}

failed=0
for at in "${!names[@]}"; do
  name=${names[at]} server=${programs[at]}
  for suite in "${suites[@]}"; do
    log=$logs/$name.$suite
    PMCPTASK_SERVER=$server cargo test --locked --workspace --all-features --test "$suite" \
      >"$log" 2>&1 </dev/null || failed=1
    echo "$name $suite: $(verdict "$log")"
  done
done

{
  echo "| suite |$(printf ' %s |' "${names[@]}")"
  echo "|---|$(printf -- '---|%.0s' "${names[@]}")"
  for suite in "${suites[@]}"; do
    row="| $suite |"
    for name in "${names[@]}"; do row+=" $(verdict "$logs/$name.$suite") |"; done
    echo "$row"
  done
  echo
  echo 'Skipped, because the server lacks it:'
  grep -H '^skipped: ' "$logs"/* | sed -E "s|^$logs/([^:]*)\.[a-z_]+:skipped: |- \1: |" | sort -u || echo '- nothing'
} | tee "$target/servers/table.md"
[[ $failed -eq 0 ]] || { echo "Some tests failed; their output is in $logs." >&2; exit 1; }
