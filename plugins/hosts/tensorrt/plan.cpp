#include "plan.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace lucid
{
namespace
{

constexpr int64_t kMinWidth = 16;
constexpr int64_t kMaxWidth = 256;
constexpr double kLog2E = 1.4426950408889634;

char const* name(Type type)
{
    switch (type)
    {
    case Type::kFloat32: return "float32";
    case Type::kFloat16: return "float16";
    default: return "bfloat16";
    }
}

} // namespace

int64_t paddedWidth(int64_t width)
{
    int64_t padded = 32;
    while (padded < width)
    {
        padded *= 2;
    }
    return padded;
}

void checkSizes(Sizes const& sizes)
{
    if (sizes.width < kMinWidth || sizes.width > kMaxWidth || sizes.width % kCompiledUnit != 0)
    {
        throw std::invalid_argument("head width " + std::to_string(sizes.width)
            + " is not supported: multiples of 4 from 16 to 256 are");
    }
    if (sizes.valueWidth < 1 || sizes.valueWidth % kCompiledUnit != 0)
    {
        throw std::invalid_argument(
            "value width " + std::to_string(sizes.valueWidth) + " is not supported: multiples of 4 are");
    }
    if (sizes.batch < 1 || sizes.heads < 1 || sizes.groups < 1 || sizes.newTokens < 1 || sizes.past < 0)
    {
        throw std::invalid_argument("batch, heads and new tokens must be at least 1");
    }
}

int64_t ceilDiv(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

int64_t widthUnit(Sizes const& sizes)
{
    return sizes.width % 8 == 0 && sizes.type != Type::kFloat32 ? 8 : kCompiledUnit;
}

float scale(Sizes const& sizes)
{
    return static_cast<float>(kLog2E / std::sqrt(static_cast<double>(sizes.width)));
}

float shift(Sizes const& sizes)
{
    return static_cast<float>(std::sqrt(static_cast<double>(sizes.width)) * kLog2E);
}

std::string variant(char const* kernel, Sizes const& sizes, int64_t unit, int64_t rows)
{
    std::string result = std::string(kernel) + "_" + name(sizes.type) + "_d" + std::to_string(paddedWidth(sizes.width))
        + "_u" + std::to_string(unit);
    return rows == 0 ? result : result + "_r" + std::to_string(rows);
}

int32_t narrow(int64_t value)
{
    if (value > std::numeric_limits<int32_t>::max())
    {
        throw std::invalid_argument("a size of " + std::to_string(value) + " is not supported");
    }
    return static_cast<int32_t>(value);
}

uint32_t programs(int64_t count)
{
    return static_cast<uint32_t>(narrow(count));
}

} // namespace lucid
