#!/bin/sh
# Builds an image and runs it: .ci/docker_smoke_test.sh [export|gpu]. CONTAINERS names another engine, such as podman.
set -eu
cd "$(dirname "$0")/.."
target=${1:-export}
engine=${CONTAINERS:-docker}
case $target in export | gpu) ;; *) echo "usage: $0 [export|gpu]" >&2; exit 2 ;; esac
command -v "$engine" >/dev/null || { echo "$engine is not there; install it, or name another in CONTAINERS." >&2; exit 2; }
image=lucid-deploy:$target
"$engine" build --target "$target" -t "$image" .
gpus=
[ "$target" = export ] || gpus="--gpus all"
inside='set -eu
if command -v g++ >/dev/null; then echo "the image has a compiler, so this shows nothing about the wheel" >&2; exit 1; fi
lucid-deploy doctor
lucid-deploy export demo --output artifact
lucid-deploy run artifact --prompt "fox has red lamp, owl has blue cup. fox has" --json | tee answer.json
grep -q "\"kernels\": \"library\"" answer.json
lucid-deploy verify artifact --quick'
[ "$target" = export ] || inside="$inside
lucid-deploy build artifact --max-batch 2 --max-context 512
lucid-deploy verify artifact --runtime tensorrt"
# shellcheck disable=SC2086
"$engine" run --rm $gpus --entrypoint sh "$image" -c "$inside"
echo "The image $image works."
