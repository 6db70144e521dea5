#!/usr/bin/env bash
# Fill a folder with wheels for a GPU machine without a network: what `python -m benchmarks.gpu_report` imports there, in
# versions that constraints.txt has pinned. docs/gpu.md says how to install them.
#
#   scripts/fill_wheels.sh DIR [PACKAGE...]     default: what the report's tests, plots and comparisons need
#
#   PYTHON_VERSION=3.12                   the GPU machine's Python
#   PLATFORM=manylinux_2_28_x86_64        and system; older manylinux wheels are taken too
#   TORCH=torch==2.11.0                   also torch with all it needs: gigabytes. Default: neither torch nor triton,
#                                         which the machine has to have
#   PYTHON=python3                        the interpreter whose pip downloads
set -euo pipefail

if [[ $# -eq 0 || $1 == -* ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} PYTHON_VERSION=${PYTHON_VERSION:-3.12} PLATFORM=${PLATFORM:-manylinux_2_28_x86_64}
TORCH=${TORCH:-}
needed=(pytest pytest-benchmark rich numpy transformers)
welcome=(matplotlib accelerate datasets liger-kernel cut-cross-entropy quack-kernels flashinfer-python)
[[ $# -eq 0 ]] || needed=("$@") welcome=()

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The pins that hold for the other Python, as pip would read `python_version` as this interpreter's. Those of torch and
# triton are left out: the machine has its own, or TORCH says which.
holds=$([[ $(printf '%s\n3.11\n' "$PYTHON_VERSION" | sort -V | head -1) == 3.11 ]] && echo '>=' || echo '<')
sed -n -e '/^#/d' -e '/^torch==/d' -e '/^triton==/d' -e "s/; python_version $holds \"3.11\"//p" -e '/;/!p' constraints.txt |
  sort -u >"$scratch/constraints.txt"

download() {
  "$PYTHON" -m pip download --quiet --only-binary=:all: --dest "$folder" --find-links "$scratch" \
    --python-version "$PYTHON_VERSION" --implementation cp \
    --platform "$PLATFORM" --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    --constraint "$scratch/constraints.txt" "$@"
}

# Stand-ins for torch and triton of a version above all others, so that what depends on them does not fetch them.
stand_ins() {
  "$PYTHON" - "$scratch" <<'WHEELS'
import sys, zipfile

for name in ("torch", "triton"):
    with zipfile.ZipFile(f"{sys.argv[1]}/{name}-9999-py3-none-any.whl", "w") as wheel:
        about = f"{name}-9999.dist-info"
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9999\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
WHEELS
}

if [[ -n $TORCH ]]; then
  echo "$TORCH" >>"$scratch/constraints.txt"
  needed+=("$TORCH")
else
  stand_ins
fi
download "${needed[@]}"
left_out=()
for package in ${welcome[@]+"${welcome[@]}"}; do # by itself: one that does not fit keeps no other out
  download "$package" || left_out+=("$package")
done
rm -f "$folder"/{torch,triton}-9999-py3-none-any.whl
echo "$(find "$folder" -name '*.whl' | wc -l) wheels in $folder${left_out[*]:+, without ${left_out[*]}}"
