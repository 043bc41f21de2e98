// float16 to float32 and back by integer arithmetic (subnormals by float32 arithmetic), for processors without F16C.
#pragma once

#include <cstdint>
#include <cstring>

namespace lucid {

inline float half_to_float(uint16_t bits) {
    uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu, word;
    if (magnitude >= 0x7c00u) {
        word = 0x7f800000u | (magnitude & 0x3ffu) << 13; // infinity or NaN
    } else if (magnitude >= 0x400u) {
        word = (magnitude << 13) + (112u << 23);
    } else {
        float value = static_cast<float>(magnitude) * 0x1p-24f; // subnormal: exact
        std::memcpy(&word, &value, sizeof word);
    }
    word |= sign;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// Rounds to nearest, ties to even.
inline uint16_t float_to_half(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    uint32_t sign = (word >> 16) & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u); // NaN
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u); // rounds beyond 65504
    if (magnitude < 0x38800000u) { // subnormal: adding 0.5 leaves the rounded multiple of 2⁻²⁴ in the low bits
        float small, half = 0.5f;
        std::memcpy(&small, &magnitude, sizeof small);
        small += half;
        uint32_t low;
        std::memcpy(&low, &small, sizeof low);
        return static_cast<uint16_t>(sign | (low - 0x3f000000u));
    }
    uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

} // namespace lucid
