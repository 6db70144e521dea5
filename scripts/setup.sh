#!/usr/bin/env bash
# Make .venv with dllm (editable) and everything its tests and its demo need; quick when nothing has changed.
#
#   PYTHON=python3.12       the interpreter to use. Default: one that has a fitting torch, else the first that works.
#   TORCH='torch==2.12.0'   the torch to install: a requirement, wheel or address. Default: the one that PYTHON has,
#                           if it is 2.10 or later, else the one pinned in constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-} TORCH=${TORCH:-}

stamp=.venv/ready # written last, so what was interrupted starts afresh; line 1: the choice, line 2: the files
torch_pin=$(grep '^torch==' constraints.txt)
files=$(cat pyproject.toml setup.py constraints.txt scripts/setup.sh scripts/transformers/*.txt | cksum)
say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

# What an interpreter offers: "ok", "old" or "novenv"; its path; the folder and version of its torch, if that fits.
probe() {
  "$1" - 2>/dev/null <<'PROBE'
import sys

torch = ("", "")
try:
    import ensurepip, venv
    from importlib import metadata

    found = metadata.distribution("torch")
    if tuple(map(int, found.version.split(".")[:2])) >= (2, 10):
        torch = (str(found.locate_file("")), found.version)
    state = "ok"
except ImportError as error:  # PackageNotFoundError is one
    state = "novenv" if error.name in ("ensurepip", "venv") else "ok"
print("old" if sys.version_info < (3, 10) else state, sys.executable, *torch, sep="|")
PROBE
}

# Sets python, torch_folder and torch_version. 3.11 comes first because that is the version continuous integration runs.
choose_python() {
  python="" torch_folder="" torch_version="" python_missing="Python 3.10 or later"
  local candidate state path folder version candidates=(python3.11 python3.12 python3.13 python3.10 python3 python)
  [[ -z $PYTHON ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    IFS='|' read -r state path folder version < <(probe "$candidate") || continue
    case $state in
      ok)
        if [[ -z $python || (-z $torch_folder && -n $folder) ]]; then
          python=$path torch_folder=$folder torch_version=$version
        fi ;;
      novenv) python_missing="Python's venv module (for $path)" ;;
    esac
  done
}

check_tools() {
  local missing=()
  command -v git >/dev/null || missing+=("git")
  command -v make >/dev/null || missing+=("make")
  compiler=${CXX:-$(command -v c++ || command -v g++ || command -v clang++ || true)}
  command -v "${compiler%% *}" >/dev/null || missing+=("a C++ compiler")
  [[ -n $python ]] || missing+=("$python_missing${PYTHON:+ (PYTHON=$PYTHON)}")
  [[ ${#missing[@]} -eq 0 ]] && return
  printf 'setup: missing: %s\n' "${missing[@]}" >&2
  cat >&2 <<'HELP'
Install what is missing, then run the same command again:
  Debian, Ubuntu   apt-get install git make g++ python3 python3-venv
  Fedora           dnf install git make gcc-c++ python3
  macOS            xcode-select --install; and Python from python.org
PYTHON=... names another interpreter.
HELP
  exit 1
}

make_venv() {
  choose_python
  check_tools
  say "Python: $python"
  "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip
  if [[ -n $torch_folder && -z $TORCH ]]; then
    say "torch: the installed $torch_version is used, from $torch_folder"
    .venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" | {
      read -r packages
      echo "$torch_folder" >"$packages/installed-torch.pth"
    }
    return
  fi
  if [[ -n $TORCH ]]; then
    say "torch: installing $TORCH"
    .venv/bin/python -m pip install "$TORCH"
  else
    say "torch: installing $torch_pin (TORCH=... chooses another). To download: about 200 MB for a CPU build, up to 3 GB" \
      "with CUDA, which is what a plain package index serves on Linux."
    .venv/bin/python -m pip install --constraint constraints.txt "$torch_pin"
  fi
}

install_project() {
  say "dllm, and what its tests and its demo need"
  # the pins of torch and triton are for each other: another torch comes with its own triton
  local pins=.venv/constraints.txt
  cp constraints.txt "$pins"
  if ! .venv/bin/python -c "import sys; from importlib.metadata import version
sys.exit('torch==' + version('torch').split('+')[0] != '$torch_pin')"; then
    grep -vE '^(torch|triton)==' constraints.txt >"$pins"
  fi
  .venv/bin/python -m pip install --constraint "$pins" --editable '.[test]'
  .venv/bin/python -c "import dllm.fast"
}

# What depends on the version of transformers is tested under other versions too (tests/test_other_transformers.py).
install_other_transformers() {
  local requirements folder
  rm -rf .venv/transformers
  for requirements in scripts/transformers/*.txt; do
    folder=.venv/transformers/$(basename "$requirements" .txt)
    .venv/bin/python -m pip install --quiet --no-deps --no-compile --target "$folder" \
      --requirement "$requirements" && continue
    rm -rf "$folder"
    say "$requirements could not be installed: its tests are skipped"
  done
}

choice="$PWD | $torch_pin | PYTHON=$PYTHON | TORCH=$TORCH"
was="" was_files=""
if [[ -f $stamp ]] && .venv/bin/python -c ''; then
  { read -r was && read -r was_files; } <"$stamp" || true
  [[ -z $PYTHON$TORCH && $was == "$PWD | $torch_pin | "* ]] && choice=$was
fi
[[ $choice == "$was" && $files == "$was_files" ]] && exit 0
rm -f "$stamp"
[[ $choice == "$was" ]] || make_venv
install_project
install_other_transformers
printf '%s\n' "$choice" "$files" >"$stamp"
say "ready: .venv"
