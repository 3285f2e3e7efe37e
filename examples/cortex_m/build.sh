#!/bin/sh
# build.sh FIRMWARE OUTPUT.elf: builds this example with the folder that `onebit export --emit-c-header` wrote, and says what
# it takes of flash and RAM. Run it with
#   qemu-system-arm -M mps2-an386 -nographic -semihosting -kernel OUTPUT.elf
# Needs the Debian packages gcc-arm-none-eabi and qemu-system-arm.
set -e
firmware=$1
output=$2
here=$(cd "$(dirname "$0")" && pwd)
# No product and sum in one instruction: the same bits as everywhere else.
arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -std=c11 -O2 -ffreestanding -nostdlib \
  -ffp-contract=off -fno-math-errno -ffunction-sections -fdata-sections -Wall -Wextra -Werror ${PROMPT:+"-DPROMPT=\"$PROMPT\""} \
  -I"$firmware" -I"$firmware/include" "$here/main.c" "$here/board.c" "$firmware"/src/*.c "$firmware"/src/kernels/*.c \
  -Wl,--gc-sections,-T,"$here/board.ld" -lgcc -o "$output"
arm-none-eabi-size "$output" | awk 'NR == 2 {printf "flash: %d bytes, RAM: %d bytes (of which 16384 of stack)\n", $1 + $2, $2 + $3}'
