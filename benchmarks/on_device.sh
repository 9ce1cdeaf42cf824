#!/bin/sh
# One visit to a machine with a GPU, of ten minutes at most and without a network: build, the GPU's tests, gpu.py.
#
#     OUT=found COMMIT=$(git rev-parse HEAD) sh benchmarks/on_device.sh
#
# Leaves build.log, tests.log, gpu.json, gpu.txt and progress.log in $OUT. Ends with 1 if anything of it failed.
set -u
: "${OUT:?names the folder for what is found}"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
begun=$(date +%s)
failed=0

export GRADCAM_FAST_BUILD=require GRADCAM_FAST_CUDA_ARCHS="${GRADCAM_FAST_CUDA_ARCHS:-9.0}"
if ! timeout 240 "$python" -m pip install --no-build-isolation --no-deps -e . >"$OUT/build.log" 2>&1; then
  tail -n 30 "$OUT/build.log"
  exit 1
fi
echo "built in $(($(date +%s) - begun)) s"

# shellcheck disable=SC2046
timeout 180 "$python" -m pytest -q -m gpu $(grep -rl --include='test_*.py' 'mark\.gpu' tests) >"$OUT/tests.log" 2>&1 || failed=1
tail -n 15 "$OUT/tests.log"

# What is left, less a minute to end in.
seconds=$((540 - ($(date +%s) - begun)))
[ "$seconds" -le 420 ] || seconds=420
"$python" benchmarks/gpu.py --minutes "$(awk "BEGIN { print $seconds / 60 }")" --out "$OUT/gpu.json" \
  ${COMMIT:+--commit "$COMMIT"} >"$OUT/gpu.txt" 2>"$OUT/progress.log" || failed=1
tail -n 3 "$OUT/progress.log"
cat "$OUT/gpu.txt"
exit "$failed"
