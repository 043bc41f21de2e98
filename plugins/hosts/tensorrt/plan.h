// Common parts of the operators' launch plans, as in shared/plan.py.
#pragma once

#include "kernels.h"

namespace lucid
{

constexpr int64_t kCompiledUnit = 4; // head widths are multiples of this; the library has no kernels for others

enum class Type
{
    kFloat32,
    kFloat16,
    kBFloat16
};

//! Sizes of one call; `groups` is used by decode attention only.
struct Sizes
{
    int64_t batch;
    int64_t heads; //!< key/value heads
    int64_t groups; //!< query heads per key/value head
    int64_t newTokens;
    int64_t past;
    int64_t width;
    Type type;
    float epsilon;
    float diagonal; //!< 0 for L_ii = 1, 1 for the training diagonal
    int64_t valueWidth = kCompiledUnit; //!< used by the delta rule only
    float scale = 0.0F;
};

//! Throws std::invalid_argument if a size is not supported; the message names it.
void checkSizes(Sizes const& sizes);

int64_t ceilDiv(int64_t a, int64_t b);

//! The width to which kernels pad heads: a power of two, at least 32.
int64_t paddedWidth(int64_t width);

//! Elements of the widest aligned load, a divisor of the width; decode attention also has kernels for whole widths.
int64_t widthUnit(Sizes const& sizes);

//! The scale that makes a product a base-2 exponent, for E and softmax, and the shift to subtract for E.
float scale(Sizes const& sizes);
float shift(Sizes const& sizes);

//! Name of a kernel's compiled variant; `rows` is 0 for kernels without query rows.
std::string variant(char const* kernel, Sizes const& sizes, int64_t unit, int64_t rows);

//! The value as a 32-bit integer. Throws std::invalid_argument when it is larger than INT32_MAX.
int32_t narrow(int64_t value);
uint32_t programs(int64_t count);

} // namespace lucid
