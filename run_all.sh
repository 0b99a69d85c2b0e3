#!/usr/bin/env bash
# One command: set up, train what is not done, collect, draw.
#   ./run_all.sh                  the laptop protocol into results/local
#   ./run_all.sh --protocol NAME  (and every flag of `python -m suite run`)
#   ./run_all.sh test             set up, check style and imports, run the tests; `test all`: the slow ones too
#   ./run_all.sh figures          only redraw
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "run_all.sh: $1" >&2; exit "${2:-1}"; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"; return
        fi
    done
    local found
    found=$("${PYTHON:-python3}" --version 2>&1 | head -n 1) || true
    fail "needs Python 3.11 or newer (found: $found); install one or name it: PYTHON=/path/to/python ./run_all.sh"
}

setup() {
    local stamp=.venv/lock.sha256 want
    want=$("$1" -c 'import hashlib; print(hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest())')
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge 3000 ] || fail "set-up needs 3 GB of free disk space here, there are $free MB; make room and call again"
    echo "setting up .venv from requirements.lock (once) ..." >&2
    rm -rf .venv
    "$1" -m venv .venv 2>.venv.log || fail "cannot make .venv with $1: $(tail -n 1 .venv.log)"
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock >.venv.log 2>&1; then
        if grep -q 'No space left' .venv.log; then fail "the disk is full; make room and call again"; fi
        if grep -Eq 'Max retries|NewConnectionError|Could not fetch URL|Temporary failure in name resolution|Connection (refused|reset)|timed out' .venv.log; then
            fail "the package index cannot be reached; check the network, or pip's index settings (PIP_INDEX_URL); log: .venv.log"
        fi
        fail "installation failed: $(grep -m 1 '^ERROR' .venv.log || tail -n 1 .venv.log); log: .venv.log"
    fi
    rm -f .venv.log
    echo "$want" >"$stamp"
}

results=results/local protocol=laptop
scan=("$@")
for ((i = 0; i < ${#scan[@]}; i++)); do
    case "${scan[i]}" in
        --results) results=${scan[i + 1]:-} ;;
        --results=*) results=${scan[i]#*=} ;;
        --protocol) protocol=${scan[i + 1]:-} ;;
        --protocol=*) protocol=${scan[i]#*=} ;;
    esac
done

python=$(find_python) || exit 1
case "${1:-}" in
    test | figures) ;;
    -h | --help)
        sed -n '2,6s/^# \{0,1\}//p' "$0"
        "$python" -m suite run --help
        exit
        ;;
    "" | --*)  # every flag is checked before the set-up, which takes minutes
        "$python" - "$protocol" "$@" <<'PY' || exit 2
import sys
from suite.cli import parser
from suite.presets import PROTOCOLS
parser().parse_args(["run", *sys.argv[2:]])
if sys.argv[1] not in PROTOCOLS:
    sys.exit(f"run_all.sh: unknown protocol {sys.argv[1]!r}; known: {', '.join(PROTOCOLS)}")
PY
        ;;
    *) fail "unknown word '$1'; use test, figures, or flags of python -m suite run" 2 ;;
esac
setup "$python"
suite() { .venv/bin/python -m suite "$@"; }

case "${1:-}" in
    test)
        shift
        slow=()
        if [ "${1:-}" = all ]; then shift; slow=(-m "slow or not slow"); fi
        .venv/bin/python -m ruff check --quiet --no-cache . || fail "ruff has found what is named above; mend it, or try: .venv/bin/ruff check --fix"
        imports=$(.venv/bin/lint-imports --no-cache --no-logo 2>&1) || fail "the order of the rooms (pyproject.toml) does not hold:
$imports"
        # one thread in each of two processes; a file stays in one of them, with its fixtures; in this order, which ends with light ones
        OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n 2 --no-loadscope-reorder --dist loadfile ${slow[@]+"${slow[@]}"} "$@"
        ;;
    figures)
        shift
        suite figures "$@"
        exit
        ;;
esac

status=0
suite run "$@" || status=$?
[ "$status" -le 1 ] || exit "$status"
suite collect --results "$results" --protocol "$protocol" || status=1
suite figures --results "$results" || status=1
exit "$status"
