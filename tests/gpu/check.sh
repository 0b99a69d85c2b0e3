#!/usr/bin/env bash
# What can only be checked on a GPU, in 8 minutes: versions, benchmarks, the test suite on the card, a sweep in groups.
#
#   tests/gpu/check.sh FOLDER        writes there: NN-name.txt for each part, bench-*/bench.csv, results/
#
# Needs a Python with torch and pytest (PYTHON=..., else python3), nothing of run_all.sh, no network and no git. Packages that the
# machine lacks are taken from tests/gpu/wheels, where there is one; fill it where there is a network:
#   pip download --only-binary=:all: --python-version 3.12 --no-deps -d tests/gpu/wheels pytest-xdist ...
# Every part has a time limit and leaves its result as it ends; called again, it goes on: a part that passed is not repeated,
# a sweep trains what is not done. Exit status 1 where a part failed, 0 where all passed or the machine has no GPU to measure.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ $# -eq 1 ] || { echo "usage: tests/gpu/check.sh FOLDER" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd) python=${PYTHON:-python3} failed=0
export PYTHONPATH="$PWD:$out/site" TORCHINDUCTOR_CACHE_DIR="$out/compile-cache" PYTHONDONTWRITEBYTECODE=1

missing() {
    "$python" - "$@" <<'PY'
import importlib.util as u, sys
print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])
PY
}

# part NUMBER-NAME SECONDS COMMAND...: its output in a file, whose last line says how it ended
part() {
    local name=$1 limit=$2 code start=$SECONDS
    shift 2
    local file=$out/$name.txt
    if [ -f "$file" ] && tail -n 1 "$file" | grep -q '^passed'; then
        echo "$name: passed before"
        return 0
    fi
    timeout --kill-after=10 --signal=INT "$limit" "$@" >"$file" 2>&1
    code=$?
    case $code in
        0) echo "passed in $((SECONDS - start)) s" >>"$file" ;;
        124 | 137) echo "not finished in $limit s" >>"$file" ;;
        *) echo "failed with exit status $code after $((SECONDS - start)) s" >>"$file" ;;
    esac
    [ $code -eq 0 ] || failed=1
    echo "$name: $(tail -n 1 "$file")"
}

if [ -d tests/gpu/wheels ] && [ ! -d "$out/site" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" tests/gpu/wheels/*.whl || exit 1
fi
lacks=$(missing torch accelerate torchmetrics sklearn pandas matplotlib seaborn safetensors tqdm pytest pytest_benchmark xdist pytest_timeout hypothesis)
rm -f "$out/1-versions.txt"  # the machine may be another one
part 1-versions 60 "$python" - "$lacks" <<'PY'
import platform, sys
from importlib.metadata import PackageNotFoundError, version

print("python", platform.python_version(), platform.machine())
for name in ("torch", "triton", "accelerate", "torchmetrics", "pandas", "scikit-learn", "datasets", "pytest"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "not installed")
print("lacks:", sys.argv[1] or "nothing")
import torch

if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        print(f"card {i}: {p.name}, {p.total_memory / 2**30:.0f} GiB, {p.multi_processor_count} SMs, CUDA {torch.version.cuda}")
else:
    print("no CUDA device: what needs one is not measured")
PY
if grep -q '^no CUDA device' "$out/1-versions.txt"; then
    for name in 2-step 3-tests 4-sweep; do
        echo "not measured: no CUDA device" | tee "$out/$name.txt" | sed "s/^/$name: /"
    done
    exit $failed
fi
part 2-step 135 "$python" -m suite bench --results "$out/bench-step" --only \
    'cuda and not reference and (100-digits or 400-digits) and (step or heldout or sample)'
spread=(-n 6 --dist loadfile)
part 3-tests 150 "$python" -m pytest -q $([[ " $lacks " == *" xdist "* ]] || echo "${spread[@]}") tests
part 4-sweep 90 "$python" -m suite run --schemes plain,mvsplit --depths 100 --lrs 2e-3,3e-3,4e-3,5e-3 \
    --seeds "$(seq -s, 0 29)" --results "$out/results"
exit $failed
