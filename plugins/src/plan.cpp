#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace lucid
{
namespace
{

constexpr int64_t kMinWidth = 16;
constexpr int64_t kMaxWidth = 256;
constexpr int64_t kCompiledUnit = 4; // head widths are multiples of this; the library holds no other kernels
constexpr int64_t kQueryRows[] = {16, 32};
constexpr int64_t kTargetPrograms = 256;
constexpr int64_t kMaxSplits = 128;
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

int64_t ceilDiv(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

int64_t paddedWidth(int64_t width)
{
    int64_t padded = 32;
    while (padded < width)
    {
        padded *= 2;
    }
    return padded;
}

int64_t widthUnit(Sizes const& sizes)
{
    return sizes.width % 8 == 0 && sizes.type != Type::kFloat32 ? 8 : kCompiledUnit;
}

int64_t queryRows(int64_t groups)
{
    return kQueryRows[0] > groups ? kQueryRows[0] : kQueryRows[1];
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

} // namespace

void checkSizes(Sizes const& sizes)
{
    if (sizes.width < kMinWidth || sizes.width > kMaxWidth || sizes.width % kCompiledUnit != 0)
    {
        throw std::invalid_argument("head width " + std::to_string(sizes.width)
            + " is not supported: multiples of 4 from 16 to 256 are");
    }
    if (sizes.batch < 1 || sizes.heads < 1 || sizes.groups < 1 || sizes.newTokens < 1 || sizes.past < 0)
    {
        throw std::invalid_argument("batch, heads and new tokens must be at least 1");
    }
}

size_t preconditionWorkspace(Sizes const& sizes)
{
    return static_cast<size_t>(1 + sizes.batch * sizes.heads) * sizeof(int32_t);
}

size_t decodeWorkspace(Sizes const& sizes)
{
    // Enough for every smaller batch too: fewer heads take more splits, up to kTargetPrograms programs in all.
    return static_cast<size_t>(std::max(sizes.batch * sizes.heads, kTargetPrograms))
        * static_cast<size_t>((sizes.groups + 1) * (sizes.width + 2)) * sizeof(float);
}

std::vector<Step> planPrecondition(Sizes const& sizes, PreconditionPointers const& pointers, int32_t arch)
{
    checkSizes(sizes);
    int64_t const unit = widthUnit(sizes);
    int64_t const batchHeads = sizes.batch * sizes.heads;
    Kernel const& kernel = findKernel(variant("precondition", sizes, unit, 0), arch);
    return {Step{&kernel, {programs(ceilDiv(sizes.newTokens, kernel.blockM) * batchHeads), 1, 1},
        {pointers.k, pointers.v, pointers.kPast, pointers.yPast, pointers.mask, pointers.y, pointers.workspace,
            narrow(sizes.newTokens), narrow(sizes.past), narrow(sizes.heads), narrow(batchHeads),
            narrow(sizes.width / unit), sizes.epsilon, scale(sizes), shift(sizes)}}};
}

std::vector<Step> planDecode(Sizes const& sizes, DecodePointers const& pointers, int32_t arch)
{
    checkSizes(sizes);
    int64_t const unit = widthUnit(sizes);
    int64_t const rows = queryRows(sizes.groups);
    int64_t const batchHeads = sizes.batch * sizes.heads;
    Kernel const& split = findKernel(variant("decode_split", sizes, unit, rows), arch);
    Kernel const& combine = findKernel(variant("decode_combine", sizes, kCompiledUnit, 0), arch);
    int64_t const splits = std::max<int64_t>(
        1, std::min({ceilDiv(sizes.past, split.blockN), kMaxSplits, kTargetPrograms / batchHeads}));
    uint32_t const chunks = programs(ceilDiv(sizes.groups, rows - 1));
    Step const splitStep{&split, {programs(batchHeads), programs(splits), chunks},
        {pointers.q, pointers.kNew, pointers.k, pointers.y, pointers.mask, pointers.workspace, narrow(sizes.past),
            narrow(sizes.heads), narrow(sizes.groups), narrow(splits), narrow(sizes.width / unit), sizes.epsilon,
            scale(sizes), shift(sizes)}};
    Step const combineStep{&combine, {programs(batchHeads), programs(sizes.groups), 1},
        {pointers.q, pointers.kNew, pointers.vNew, pointers.mask, pointers.workspace, pointers.o, pointers.yNew,
            narrow(sizes.past), narrow(sizes.heads), narrow(sizes.groups), narrow(splits),
            narrow(sizes.width / kCompiledUnit), scale(sizes)}};
    return {splitStep, combineStep};
}

} // namespace lucid
