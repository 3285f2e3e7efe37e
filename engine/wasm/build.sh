#!/bin/sh
# Builds the core for WebAssembly with SIMD: build.sh OUTPUT.wasm [further C files and compiler options]. The module imports
# nothing; its exports are the functions of onebit.h's core part, `memory`, and `__heap_base`, from where the memory is free.
# Needs the Debian packages clang-16 and lld-16 (or CLANG, any clang from 16 on with wasm-ld).
set -e
output=$1
shift
engine=$(cd "$(dirname "$0")/.." && pwd)
core=$(ls "$engine"/src/ob_*.c "$engine"/src/kernels/*.c)
mkdir -p "$(dirname "$output")"
# Word-sized copies become instructions of their own (bulk memory): no C library is linked.
exec "${CLANG:-clang-16}" --target=wasm32 -nostdlib -nostdlibinc -std=c11 -O3 -msimd128 -mbulk-memory -ffp-contract=off \
  -fno-math-errno -fvisibility=hidden -Wall -Wextra -I"$engine/include" \
  -Wl,--no-entry,--export-dynamic,--export=__heap_base,-z,stack-size=262144,--gc-sections,--strip-all \
  $core "$@" -o "$output"
