#!/bin/sh
# Builds the core for WebAssembly with SIMD: build.sh OUTPUT.wasm [further C files and compiler options]. The module imports
# nothing; its exports are the functions of onebit.h's core part, `memory`, and `__heap_base`, from where the memory is free.
# With RELAXED=1 it uses relaxed SIMD's dot products, which are faster and not in every browser yet.
# Needs the Debian packages clang-16 and lld-16 (or CLANG, any clang from 16 on with wasm-ld). OBJECTS names a folder for the
# core's objects; a later call finds them there and only links, so sources and RELAXED must be the same.
set -e
output=$1
shift
engine=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$(dirname "$output")"
# Word-sized copies become instructions of their own (bulk memory): no C library is linked.
compile="${CLANG:-clang-16} --target=wasm32 -nostdlib -nostdlibinc -std=c11 -O3 -msimd128 ${RELAXED:+-mrelaxed-simd} -mbulk-memory
  -ffp-contract=off -fno-math-errno -fvisibility=hidden -Wall -Wextra"
if [ -z "$OBJECTS" ]; then
  OBJECTS=$(mktemp -d)
  trap 'rm -rf "$OBJECTS"' EXIT
fi
if [ ! -e "$OBJECTS/complete" ]; then
  mkdir -p "$OBJECTS"
  (cd "$OBJECTS" && printf '%s\0' "$engine"/src/ob_*.c "$engine"/src/kernels/*.c |
    xargs -0 -n 1 -P "$(getconf _NPROCESSORS_ONLN)" $compile -I"$engine/include" -c)
  touch "$OBJECTS/complete"
fi
$compile -I"$engine/include" \
  -Wl,--no-entry,--export-dynamic,--export=__heap_base,-z,stack-size=262144,--gc-sections,--strip-all \
  "$OBJECTS"/*.o "$@" -o "$output"
