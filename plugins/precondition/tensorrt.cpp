// Precondition(K [B,H,N,D], V [B,H,N,D], K_past [B,H,P,D], Y_past [B,H,P,D], mask [B,P+N]) -> Y [B,H,N,D]
#include "hosts/tensorrt/logging.h"
#include "hosts/tensorrt/operator_plugin.h"

#include <algorithm>

using namespace nvinfer1;

namespace lucid
{
namespace
{

using In = table::Precondition::In;
using Out = table::Precondition::Out;

constexpr int64_t kNormUnit = 4;
constexpr int64_t kPastTokens = 64; // past tokens that share a power of two, as in powers.py
constexpr int64_t kSmallestRows = 16; // as in plan.py: sizes the workspace, since TensorRT asks for it before the device is known
constexpr int64_t kInt8Tiles[] = {16, 32, 64};
constexpr size_t kInt8Alignment = 256;

//! The bytes of a head's int8 tiles, scales and norms, for the tile size that needs the most.
int64_t mostTileBytes(Sizes const& sizes)
{
    int64_t most = 0;
    int64_t const padded = paddedWidth(sizes.width);
    for (int64_t const tokens : kInt8Tiles)
    {
        int64_t const numbers = static_cast<int64_t>(sizeof(float)) * (tokens + padded);
        int64_t const tiles = ceilDiv(sizes.past, tokens) + ceilDiv(sizes.newTokens, tokens);
        most = std::max(most, tiles * (numbers + padded * tokens));
    }
    return most;
}

class PreconditionPlugin final : public OperatorPlugin
{
public:
    explicit PreconditionPlugin(Attributes attributes)
        : OperatorPlugin(table::Precondition::kName, makePrecondition, attributes)
    {
    }

    int32_t getNbOutputs() const noexcept override { return Out::kCount; }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* outputs,
        int32_t, IExprBuilder&) noexcept override
    {
        return guarded(-1, [&] {
            require(nbInputs == inputCount() && inputs[In::K].nbDims == 4, "K must be (batch, heads, tokens, width)");
            outputs[Out::Y] = inputs[In::V];
            return 0;
        });
    }

protected:
    int32_t inputCount() const override { return In::kCount; }

    Sizes readSizes(Shapes const& inputs) const override
    {
        Dims const& k = inputs[In::K];
        Dims const& past = inputs[In::K_past];
        require(k.nbDims == 4 && past.nbDims == 4 && inputs[In::mask].nbDims == 2,
            "K and K_past must have 4 dimensions and mask 2");
        for (int32_t i = 0; i < 4; ++i)
        {
            require(inputs[In::V].nbDims == 4 && inputs[In::V].d[i] == k.d[i], "K and V must have one shape");
            require(inputs[In::Y_past].nbDims == 4 && inputs[In::Y_past].d[i] == past.d[i],
                "K_past and Y_past must have one shape");
            require(i == 2 || past.d[i] == k.d[i], "K and K_past may differ in their tokens only");
        }
        return {k.d[0], k.d[1], 1, k.d[2], past.d[2], k.d[3], Type::kFloat32, mAttributes.epsilon, mAttributes.diagonal};
    }

    //! A ticket, a counter for each head, and the inverse norms of all keys; in float32 also powers of two for rows of Y,
    //! in bfloat16 also int8 tiles.
    size_t workspaceBytes(Sizes const& sizes) const override
    {
        int64_t const heads = sizes.batch * sizes.heads;
        size_t const counters = zeroedBytes(sizes);
        size_t const norms = counters + static_cast<size_t>(heads * (sizes.past + sizes.newTokens)) * sizeof(float);
        if (sizes.type == Type::kFloat32)
        {
            int64_t const powers = ceilDiv(sizes.past, kPastTokens) + ceilDiv(sizes.newTokens, kSmallestRows);
            return norms + static_cast<size_t>(heads * powers) * sizeof(float);
        }
        if (sizes.type != Type::kBFloat16)
        {
            return norms;
        }
        size_t const begin = (counters + kInt8Alignment - 1) / kInt8Alignment * kInt8Alignment;
        return std::max(norms, begin + static_cast<size_t>(heads * mostTileBytes(sizes)));
    }

    size_t zeroedBytes(Sizes const& sizes) const override
    {
        return static_cast<size_t>(1 + sizes.batch * sizes.heads) * sizeof(int32_t);
    }

    //! The same launches as plan.py.
    std::vector<Step> plan(Sizes const& sizes, void const* const* inputs, void* const* outputs, void* workspace,
        int32_t arch) const override
    {
        int64_t const unit = widthUnit(sizes);
        int64_t const batchHeads = sizes.batch * sizes.heads;
        Kernel const& solve = findKernel(variant("precondition", sizes, unit, 0), arch);
        Step const solveStep{&solve, {programs(ceilDiv(sizes.newTokens, solve.blockM) * batchHeads), 1, 1},
            {address(inputs[In::K]), address(inputs[In::V]), address(inputs[In::K_past]), address(inputs[In::Y_past]),
                address(outputs[Out::Y]), address(workspace), narrow(sizes.newTokens), narrow(sizes.past),
                narrow(batchHeads), narrow(sizes.width / unit), sizes.epsilon, scale(sizes), shift(sizes),
                sizes.diagonal}};
        return {keysStep(sizes, inputs, workspace, solve, arch), solveStep};
    }

private:
    //! The launch before the solve: inverse norms, and the powers of two or int8 tiles of past Y that the solve uses.
    Step keysStep(
        Sizes const& sizes, void const* const* inputs, void* workspace, Kernel const& solve, int32_t arch) const
    {
        Kernel const& keys = findKernel(variant(solve.int8 ? "key_tiles" : "key_norms", sizes, kNormUnit, 0), arch);
        require(!solve.int8 || keys.blockN == solve.blockN, "the kernels of the solve were not built together");
        int64_t const tiles = solve.int8 ? ceilDiv(sizes.past, keys.blockN) + ceilDiv(sizes.newTokens, keys.blockN)
                                         : ceilDiv(sizes.past + sizes.newTokens, keys.blockN);
        int64_t const batchHeads = sizes.batch * sizes.heads;
        std::vector<Argument> arguments{address(inputs[In::K]), address(inputs[In::K_past])};
        if (solve.int8 || sizes.type == Type::kFloat32)
        {
            arguments.emplace_back(address(inputs[In::Y_past]));
        }
        arguments.insert(arguments.end(),
            {address(inputs[In::mask]), address(workspace), narrow(sizes.newTokens), narrow(sizes.past),
                narrow(sizes.heads), narrow(batchHeads), narrow(sizes.width / kNormUnit), sizes.epsilon});
        return {&keys, {programs(batchHeads), programs(tiles), 1}, arguments};
    }
};

} // namespace

std::unique_ptr<IPluginV3> makePrecondition(Attributes attributes)
{
    return std::make_unique<PreconditionPlugin>(attributes);
}

} // namespace lucid
