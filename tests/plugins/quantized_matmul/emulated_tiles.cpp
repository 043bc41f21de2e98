// The AVX-512 kernels with the instructions of AMX in plain C++, by Intel's description of them (its manual, volume 2).
// What a processor would refuse or leave undefined aborts.
#include <cpuid.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {
struct Tile {
    size_t rows, bytes;
    uint8_t data[16][64];
};
thread_local Tile tiles[8];
thread_local bool configured;
bool permitted = true;
long products;

void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "AMX: %s\n", what);
    std::abort();
}

void configure(const void* from) {
    const uint8_t* bytes = static_cast<const uint8_t*>(from);
    require(bytes[0] == 1 && bytes[1] == 0, "palette or first row");
    for (int i = 2; i < 64; ++i) require(bytes[i] == 0 || (i >= 16 && i < 32) || (i >= 48 && i < 56), "reserved byte");
    for (int i = 0; i < 8; ++i) {
        uint16_t width;
        std::memcpy(&width, bytes + 16 + 2 * i, 2);
        require(width <= 64 && width % 4 == 0 && bytes[48 + i] <= 16, "shape");
        tiles[i] = {bytes[48 + i], width, {}};
    }
    configured = true;
}

Tile& tile(int number) {
    require(configured && tiles[number].rows > 0 && tiles[number].bytes > 0, "tile without a shape");
    return tiles[number];
}

void multiply(int c, int a, int b) {
    Tile &sums = tile(c), &x = tile(a), &w = tile(b);
    require(sums.rows == x.rows && sums.bytes == w.bytes && x.bytes == 4 * w.rows, "shapes that do not fit");
    ++products;
    for (size_t m = 0; m < x.rows; ++m)
        for (size_t n = 0; n < w.bytes / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, sums.data[m] + 4 * n, 4);
            for (size_t k = 0; k < x.bytes; ++k) sum += static_cast<int8_t>(x.data[m][k]) * w.data[k / 4][4 * n + k % 4];
            std::memcpy(sums.data[m] + 4 * n, &sum, 4);
        }
}

// Linux's answer to a request for the permission to use tiles: feature 18.
long ask(long number, long request, long feature) {
    require(number == SYS_arch_prctl && request == 0x1023 && feature == 18, "system call");
    return permitted ? 0 : -1;
}
} // namespace

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig configure
#define _tile_release() (configured = false)
#define _tile_zero(t) std::memset(tile(t).data, 0, sizeof tiles[t].data)
#define _tile_loadd(t, from, stride)                                                                      \
    for (size_t row = 0; row < tile(t).rows; ++row)                                                       \
    std::memcpy(tiles[t].data[row], reinterpret_cast<const uint8_t*>(from) + row * (stride), tiles[t].bytes)
#define _tile_stored(t, to, stride)                    \
    for (size_t row = 0; row < tile(t).rows; ++row)    \
    std::memcpy(reinterpret_cast<uint8_t*>(to) + row * (stride), tiles[t].data[row], tiles[t].bytes)
#define _tile_dpbsud multiply
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(a) = *(b) = *(c) = 0, *(d) = (leaf) == 7 ? 3u << 24 : 0, 1)
#define syscall ask

#include "hosts/onnxruntime/isa_avx512.cpp"

namespace {
struct Serial : lucid::Pool {
    void run(void (*task)(void*, size_t), size_t count, void* data) const override {
        for (size_t i = 0; i < count; ++i) task(data, i);
    }
};
} // namespace

// Computes a product; returns how many products of tiles it took. The first call decides about permission.
extern "C" __attribute__((visibility("default"))) long product(const lucid::QuantizedMatMulArguments<float>* a, bool granted) {
    permitted = granted;
    products = 0;
    lucid::kAvx512.single.quantized_matmul(*a, Serial());
    return configured ? -1 : products;
}
