/* What stands in for an operating system on Arm's MPS2 board, as qemu plays it: the vector table, a serial port, the end of
 * the program, and the three functions that a compiler calls by itself. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t stack_top, data_begin, data_end, data_source, bss_begin, bss_end;
int main(void);
void put_text(const char *text, size_t bytes);

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    unsigned char *t = to;
    const unsigned char *f = from;
    while (bytes--) *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t bytes) {
    unsigned char *t = to;
    while (bytes--) *t++ = (unsigned char)byte;
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    unsigned char *t = to;
    const unsigned char *f = from;
    if (t < f) return memcpy(to, from, bytes);
    while (bytes--) t[bytes] = f[bytes];
    return to;
}

/* UART 0: data, state (bit 0: full), control (bit 0: transmit), interrupts, baud rate divider. */
static volatile uint32_t *const uart = (volatile uint32_t *)0x40004000;

void put_text(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        while (uart[1] & 1) {}
        uart[0] = (unsigned char)text[i];
    }
}

/* Semihosting: SYS_EXIT_EXTENDED with ADP_Stopped_ApplicationExit and the program's result. */
static void leave(int result) {
    const uint32_t block[2] = {0x20026, (uint32_t)result};
    register uint32_t operation __asm__("r0") = 0x20;
    register const uint32_t *argument __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(argument) : "memory");
    for (;;) {}
}

static void stop(void) { leave(99); } /* any fault */

__attribute__((noreturn)) void reset(void) {
    *(volatile uint32_t *)0xe000ed88 |= 0xf << 20; /* the floating point unit on */
    __asm__ volatile("dsb\n isb");
    for (uint32_t *to = &data_begin, *from = &data_source; to < &data_end;) *to++ = *from++;
    for (uint32_t *to = &bss_begin; to < &bss_end;) *to++ = 0;
    uart[4] = 16;
    uart[2] = 1;
    leave(main());
    for (;;) {}
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)stop, (const void *)stop, (const void *)stop, (const void *)stop, (const void *)stop};
