// From shapes to launches, as plugins/kernels/plan.py does it for PyTorch.
#pragma once

#include "kernels.h"

namespace lucid
{

enum class Type
{
    kFloat32,
    kFloat16,
    kBFloat16
};

//! Sizes of one call; `newTokens` is 1 and `groups` counts when decoding.
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
};

struct PreconditionPointers
{
    CUdeviceptr k, v, kPast, yPast, mask, y, workspace;
};

struct DecodePointers
{
    CUdeviceptr q, kNew, vNew, k, y, mask, o, yNew, workspace;
};

//! Throws std::invalid_argument that says which size is not supported.
void checkSizes(Sizes const& sizes);

size_t preconditionWorkspace(Sizes const& sizes);
size_t decodeWorkspace(Sizes const& sizes);

std::vector<Step> planPrecondition(Sizes const& sizes, PreconditionPointers const& pointers, int32_t arch);
std::vector<Step> planDecode(Sizes const& sizes, DecodePointers const& pointers, int32_t arch);

} // namespace lucid
