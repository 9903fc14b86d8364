// Tests whether this compiler keeps the data that llama.cpp's AMX code stores for `ldtilecfg`. Some compilers assume that
// only its first bytes are used and drop the rest. The next tile instruction is then illegal. Exits with 0 on success.
#include <cstdint>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int ASK_FOR_STATE = 0x1023, TILE_DATA = 18;

struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

__attribute__((noinline)) void configure() {
    alignas(64) Config config;
    for (int tile = 0; tile < 8; tile++) {
        config.bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

int main() {
    if (syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) != 0) return 0;  // llama.cpp does without, too
    configure();
    _tile_zero(4);
    _tile_release();
    return 0;
}
