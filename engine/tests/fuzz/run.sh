#!/bin/sh
# Fuzz the .1bit reader and the tokenizer under AddressSanitizer and UBSan, half of the time each.
#
#   engine/tests/fuzz/run.sh SECONDS [FOLDER]     FOLDER keeps the binaries, the corpus and what is found
#
# With clang: libFuzzer, guided by coverage. Without, or with NO_LIBFUZZER=1: the same targets under standalone.c and cc.
set -eu
seconds=${1:?usage: run.sh SECONDS [FOLDER]}
here=$(cd "$(dirname "$0")" && pwd)
engine=$(cd "$here/../.." && pwd)
folder=${2:-$engine/../build/fuzz}
mkdir -p "$folder"
cd "$folder"

sanitize=-fsanitize=address,undefined
compiler=${CC:-cc}
libfuzzer=
echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }' > probe.c
if [ -z "${NO_LIBFUZZER:-}" ] && ${CLANG:-clang} -fsanitize=fuzzer,address,undefined probe.c -o probe 2>/dev/null; then
    compiler=${CLANG:-clang}
    libfuzzer=yes
    sanitize=-fsanitize=fuzzer-no-link,address,undefined
fi
common="-std=c11 -g -ffp-contract=off -fno-omit-frame-pointer -I$engine/include -I$engine/src -I$engine/src/kernels"
flags="$common -O1 $sanitize -fno-sanitize-recover=all"

# The x86 kernels under both sanitizers take a compiler a minute, optimised several, which a short run does not have: their
# reads and writes are checked there, by calls, and what C leaves undefined is not.
wide='_\(avx2\|avxvnni\|avx512\|amx\)\.c$'
wide_flags="$common -O0 -fsanitize=address --param asan-instrumentation-with-call-threshold=0"
[ -z "$libfuzzer" ] || wide_flags=$flags
jobs=$(getconf _NPROCESSORS_ONLN)

# Compiled again when a source or the command is another than at the last run into this folder.
objects=objects_${libfuzzer:-no}
state=$({ echo "$compiler $flags $wide_flags"; find "$engine/include" "$engine/src" "$here" -type f | LC_ALL=C sort | xargs cat; } | cksum)
if [ "$(cat "$objects/complete" 2>/dev/null)" != "$state" ]; then
    rm -rf "$objects"
    mkdir "$objects"
    # The wide kernels take longest and go first, one file a call, so that no processor waits for the other at the end.
    # shellcheck disable=SC2086
    (cd "$objects" && ls "$engine"/src/kernels/*.c | grep "$wide" | xargs -n 1 -P "$jobs" $compiler $wide_flags -c)
    # shellcheck disable=SC2086
    (cd "$objects" && ls "$engine"/src/*.c "$engine"/src/kernels/*.c "$here"/*.c | grep -v "$wide" |
        xargs -n 1 -P "$jobs" $compiler $flags -c)
    echo "$state" > "$objects/complete"
fi
python=${PYTHON:-$engine/../.venv/bin/python}
[ -x "$python" ] || python=python3
PYTHONPATH="$engine/../src${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/make_seeds.py" "$folder/seeds"

for target in model tokenizer; do
    parts="$objects/fuzz_$target.o $(ls "$objects"/*.o | grep -v -e /fuzz_ -e /standalone)"
    if [ -n "$libfuzzer" ]; then
        $compiler -fsanitize=fuzzer,address,undefined $parts -lpthread -o "fuzz_$target"
        mkdir -p "corpus_$target"
        "./fuzz_$target" -max_total_time=$((seconds / 2)) -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
            -print_final_stats=1 "corpus_$target" "seeds/$target"
    else
        $compiler $sanitize $parts "$objects/standalone.o" -lpthread -o "fuzz_${target}_standalone"
        "./fuzz_${target}_standalone" $((seconds / 2)) "${SEED:-1}" "seeds/$target"/*
    fi
done
