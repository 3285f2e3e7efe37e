#!/bin/sh
# Make .venv ready for work: tools/bootstrap.sh EXTRAS, where EXTRAS is one or more of pyproject's, such as train,dev.
#
# Checks first what only the system can give (Python, its venv module, a C compiler, the C headers) and names the
# Debian package of the first thing missing, then creates .venv, installs torch and the rest under constraints.txt and
# builds the engine in place. A second run changes nothing and takes a moment; after a change of the engine's sources
# it only rebuilds the engine.
#
#   PYTHON=python3.12   the interpreter .venv is made with (default: the first of python3, python3.14 ... that fits)
#   TORCH=torch==2.9.1  another torch than constraints.txt names: any requirement or a path to a wheel
set -eu
cd "$(dirname "$0")/.."
extras=${1:?usage: tools/bootstrap.sh EXTRAS, for example train,dev}
started=$(date +%s)

fail() { echo "error: $*" >&2; exit 1; }
say() { echo "-- $*"; }

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
        return
    fi
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11; do
        if fits "$PYTHON"; then
            # With .venv activated its own python comes first; an environment cannot be made from itself.
            case $(command -v "$PYTHON") in
            "$PWD"/.venv/*) PYTHON=$("$PYTHON" -c 'import sys; print(sys._base_executable)') ;;
            esac
            return
        fi
    done
    fail "no Python 3.11 or newer; on Debian 12 or newer: apt-get install python3 python3-venv"
}

check_venv_module() {
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$PYTHON has no venv module (ensurepip); on Debian: apt-get install python3-venv"
}

check_compiler() {
    for compiler in "${CC:-}" cc gcc clang; do
        if [ -n "$compiler" ] && command -v "${compiler%% *}" >/dev/null 2>&1; then break; fi
        compiler=
    done
    [ -n "$compiler" ] || fail "no C compiler; on Debian: apt-get install gcc libc6-dev"
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' >"$probe.c"
    $compiler "$probe.c" -o "$probe" 2>/dev/null ||
        fail "$compiler finds no C headers or library; on Debian: apt-get install libc6-dev"
}

version_of() { "$2" -c "from importlib.metadata import version; print(version('$1'))" 2>/dev/null || true; }

create_venv() {
    if [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1; then return; fi
    # A torch that the machine already has (often one built for its GPU) is kept: .venv sees it.
    system=
    if [ -z "${TORCH:-}" ] && [ -n "$(version_of torch "$PYTHON")" ]; then system=--system-site-packages; fi
    say "creating .venv with $("$PYTHON" --version)${system:+, keeping its torch $(version_of torch "$PYTHON")}"
    "$PYTHON" -m venv $system .venv
}

# -qq: pip speaks only when it fails; its warnings about mirrors and versions help nobody here.
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

install_torch() {
    case ",$extras," in *,train,*) ;; *) return ;; esac
    installed=$(version_of torch .venv/bin/python)
    wanted=${TORCH:-$(grep '^torch==' constraints.txt)}
    if [ -z "$installed" ] || [ -n "${TORCH:-}" ]; then
        say "installing $wanted (the largest download)"
        pip install -qq "$wanted"
        installed=$(version_of torch .venv/bin/python)
    fi
    say "torch $installed"
}

install_packages() {
    # The torch that is there decides, and the triton that it brought, whatever constraints.txt says.
    cp constraints.txt .venv/constraints.txt
    for package in torch triton; do
        installed=$(version_of "$package" .venv/bin/python)
        if [ -n "$installed" ]; then
            sed -i.before "s/^$package==.*/$package==$installed/" .venv/constraints.txt
        fi
    done
    say "installing the build tools"
    pip install -qq -c .venv/constraints.txt cmake ninja scikit-build-core
    say "building the engine, installing the packages of [$extras] under constraints.txt"
    PATH="$PWD/.venv/bin:$PATH" pip install -qq -c .venv/constraints.txt --no-build-isolation -e ".[$extras]"
}

# What the installation depends on; a checksum, not dates, because a fresh clone has none worth comparing.
fingerprint() {
    {
        echo "${TORCH:-}"
        cat pyproject.toml constraints.txt CMakeLists.txt tools/bootstrap.sh
        find engine -type f | LC_ALL=C sort | xargs cat
    } | cksum
}

# True when an earlier run installed these extras, alone or among others, from the same state.
is_ready() {
    [ -x .venv/bin/python ] || return 1
    for stamp in .venv/.installed-*; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
            have=,${stamp#.venv/.installed-},
            for extra in $(echo "$extras" | tr , ' '); do
                case $have in *,$extra,*) ;; *) continue 2 ;; esac
            done
            return 0
        fi
    done
    return 1
}

state=$(fingerprint)
if is_ready; then exit 0; fi

probe=$(mktemp)
trap 'rm -f "$probe" "$probe.c"' EXIT
find_python
check_venv_module
check_compiler
create_venv
install_torch
install_packages
echo "$state" >".venv/.installed-$extras"
say "ready after $(($(date +%s) - started)) s"
