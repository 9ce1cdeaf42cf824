#!/bin/sh
# Builds, runs the GPU's tests and gpu.py on a machine with a GPU, in ten minutes at most and without a network.
#
#     OUT=results COMMIT=$(git rev-parse HEAD) sh benchmarks/on_device.sh
#
# Writes build.log, tests.log, gpu.json, gpu.txt and progress.log to $OUT. Exits with 1 if a step failed.
set -u
: "${OUT:?must name the folder for the results}"
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

# The remaining time, less a minute.
seconds=$((540 - ($(date +%s) - begun)))
[ "$seconds" -le 420 ] || seconds=420
"$python" benchmarks/gpu.py --minutes "$(awk "BEGIN { print $seconds / 60 }")" --out "$OUT/gpu.json" \
  ${COMMIT:+--commit "$COMMIT"} >"$OUT/gpu.txt" 2>"$OUT/progress.log" || failed=1
tail -n 3 "$OUT/progress.log"
cat "$OUT/gpu.txt"
exit "$failed"
