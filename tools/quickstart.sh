#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'END'
usage: tools/quickstart.sh {setup|demo|test} [ARGUMENT ...]

  setup  make the virtual environment .venv in this checkout, with the versions of requirements.txt
  demo   set up, make the demo data set, train RetinaNet on it, test, and draw the detections
  test   set up and run pytest; the arguments are pytest's

Everything runs on the CPU. What is done is skipped, and what was interrupted goes on.

PYTHON          the Python >= 3.10 to use (default: the first found)
PIP_FIND_LINKS  folders or pages with ready-made wheels, searched besides PyPI
END
}

say() { printf '\n==> %s\n' "$*"; }

fail() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

# step NAME DESCRIPTION COMMAND...: run the command once for this folder and these pins.
step() {
    local stamp="$stamps/$1" description=$2 start=$SECONDS
    shift 2
    [[ -e $stamp ]] && return
    say "$description"
    "$@" || fail "this failed: $description"
    mkdir -p "$stamps"
    touch "$stamp"
    echo "    done in $((SECONDS - start)) s"
}

pip() { python -m pip --disable-pip-version-check "$@"; }

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

make_venv() {
    usable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null && return
    local name base=
    for name in ${PYTHON:-python3 python python3.12 python3.11 python3.10 python3.13 python3.14}; do
        usable "$name" && base=$name && break
    done
    [[ -n $base ]] || fail "no Python >= 3.10${PYTHON:+ at '$PYTHON'}; install one or name it:" \
        'PYTHON=/path/to/python3 tools/quickstart.sh ...'
    say "virtual environment $venv with $("$base" --version) (seconds)"
    "$base" -m venv --clear "$venv" || fail "'$base -m venv' does not work;" \
        'Debian and Ubuntu have it in the package python3-venv'
}

install_torch() { pip install -c requirements.txt setuptools wheel ninja numpy torch; }

install_mmcv() {
    local pin wheels
    pin=$(grep -o '^mmcv==[0-9.]*' requirements.txt)
    pip install -q --no-deps --only-binary mmcv "$pin" 2>/dev/null && return
    # A wheel fits one torch and one Python only.
    wheels=$venv-wheels/$(python -c 'import sys, torch
print(f"torch-{torch.__version__}-{sys.implementation.cache_tag}")')
    if ! ls "$wheels"/mmcv-*.whl >/dev/null 2>&1; then
        echo "    there is no ready-made wheel of $pin here: compiling, about 15 min on two cores"
        check_compiler
        compile_mmcv "$pin" "$wheels" || return
    fi
    pip install -q --no-deps "$wheels"/mmcv-*.whl
}

check_compiler() {
    local compiler=${CXX:-c++}
    command -v "$compiler" >/dev/null || fail "mmcv must be compiled, and there is no C++ compiler" \
        "'$compiler'; install one (Debian and Ubuntu: g++, macOS: xcode-select --install)"
    python -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        fail "mmcv must be compiled, and the headers of Python are missing;" \
            'Debian and Ubuntu have them in the package python3-dev'
}

compile_mmcv() {
    local pin=$1 wheels=$2 source log=$2/mmcv.log
    source=$wheels/${pin/==/-}
    mkdir -p "$wheels"
    if [[ ! -e $source ]]; then
        rm -rf "$wheels/unpacked"
        mkdir "$wheels/unpacked"
        pip download -q --no-deps --no-build-isolation --no-binary mmcv -d "$wheels" "$pin" &&
            tar -xzf "$source.tar.gz" -C "$wheels/unpacked" || return
        # From Python 3.13 on, locals() does not hold what exec() defines.
        sed -i.orig "s/return locals()\['__version__'\]/return '${pin#mmcv==}'/" \
            "$wheels/unpacked/${pin/==/-}/setup.py" || return
        mv "$wheels/unpacked/${pin/==/-}" "$source"
    fi
    # The objects stay in the source folder, so an interrupted compilation goes on.
    MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)} \
        pip wheel -v --no-deps --no-build-isolation -w "$wheels" "$source" 2>&1 |
        tee "$log" | show_progress
    ls "$wheels"/mmcv-*.whl >/dev/null 2>&1 && return
    tail -n 30 "$log"
    echo "the whole log is $log"
    return 1
}

show_progress() {
    local files
    { grep --line-buffered -oE '^ *\[[0-9]+/[0-9]+\]' || true; } | while read -r files; do
        printf '    compiled %s files\n' "$files"
    done
}

install_others() { pip install --no-build-isolation -r requirements.txt; }

install_package() {
    pip install -q --no-build-isolation --no-deps -e . || return
    python -c 'import mmcv.ops' || {
        echo 'The wheel of mmcv was made for another torch: remove it from PIP_FIND_LINKS' \
            "(${PIP_FIND_LINKS:-not set}), and $venv, and run this again."
        return 1
    }
    python -W ignore -c 'import mmdet, mmseg
from mmmobilemamba.ops import available_backends
if "native" not in available_backends():
    print("    The compiled operators could not be built (is there a C++ compiler?). All works without them, only slower.")'
}

setup() {
    make_venv
    PATH=$PWD/$venv/bin:$PATH
    step torch 'PyTorch (1 to 5 min, by the connection)' install_torch
    step mmcv 'mmcv (seconds with a ready-made wheel, else about 15 min on two cores)' install_mmcv
    step others 'the other packages of requirements.txt (1 min)' install_others
    step package 'this package and its compiled operators (1 to 2 min)' install_package
}

demo() {
    local config=configs/det/demo/retinanet_mobilemamba_demo.py data=data/demo work=work_dirs/demo checkpoint
    say "demo data set $data (seconds)"
    python tools/make_demo_data.py "$data" || fail 'the demo data set could not be made'
    say "training (about 10 min on two cores; an interrupted run goes on; done again if you remove $work)"
    python -W ignore tools/train.py "$config" --data-root "$data" --work-dir "$work" --resume ||
        fail 'the training failed'
    checkpoint=$(cat "$work/last_checkpoint")
    say 'testing on the validation pictures (seconds)'
    python -W ignore tools/test.py "$config" "$checkpoint" --data-root "$data" --work-dir "$work/test" \
        --show-dir "$work/detections" || fail 'the test failed'
    say "bbox_mAP above is COCO's AP of the boxes, in 0..1. What the demo has made:
    checkpoint   $checkpoint
    detections   $work/detections/ (each picture: labels on the left, detections on the right)"
}

venv=.venv
action=${1:-}
[[ $# -gt 0 ]] && shift
case $action in
    setup | demo | test) ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
esac

# A stamp per finished step; new pins, new operators, or a moved checkout call for every step again.
stamps=$venv/quickstart-$({ echo "$PWD"; cat requirements.txt setup.py mmmobilemamba/ops/csrc/*; } | cksum | tr ' ' '-')
# The default environment holds CPU builds of the compiled operators.
export CUDA_VISIBLE_DEVICES=

setup
case $action in
    setup) say "ready: source $venv/bin/activate" ;;
    demo) demo ;;
    # One thread each: they are many small computations.
    test) OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@" ;;
esac
