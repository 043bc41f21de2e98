// DecodeAttention(Q [B,H·G,N,D], K_new [B,H,N,D], V_new [B,H,N,D], K [B,H,P,D], Y [B,H,P,D], mask [B,P+N])
//   -> (O [B,H·G,N,D], Y_new [B,H,N,D]), N from 1 to 16
// DecodeAttentionFloat8 has K and Y in E4M3 and, before the mask, K_scale and Y_scale [B,H,P,1] in float32.
#include "hosts/tensorrt/logging.h"
#include "hosts/tensorrt/operator_plugin.h"

#include <algorithm>

using namespace nvinfer1;

namespace lucid
{
namespace
{

using InModelType = table::DecodeAttention::In;
using InFloat8 = table::DecodeAttentionFloat8::In;
using Out = table::DecodeAttention::Out;

// As in plan.py.
constexpr int64_t kQueryRows[] = {16, 32, 64};
constexpr int64_t kFewRows = 8;
constexpr int64_t kFloat32Numbers = 4096; // most rows times padded width
constexpr int64_t kHalfNumbers = 8192;
constexpr int32_t kWarpGroups[] = {9, 10}; // major compute capabilities: 16 or 64 rows a tile, and twice these numbers
constexpr int64_t kMostNew = 16;
constexpr int64_t kFloat8Unit = 8;
constexpr int64_t kTargetPrograms = 256;
constexpr int64_t kMaxSplits = 128;

//! Rows of one key/value head: its queries and its new keys.
int64_t headRows(Sizes const& sizes)
{
    return (sizes.groups + 1) * sizes.newTokens;
}

//! Rows per tile in kernels compiled for a compute capability.
int64_t queryRows(Sizes const& sizes, int32_t arch)
{
    int64_t const wanted = headRows(sizes);
    bool const inGroups = arch / 10 == kWarpGroups[0] || arch / 10 == kWarpGroups[1];
    int64_t const numbers = (sizes.type == Type::kFloat32 ? kFloat32Numbers : kHalfNumbers) * (inGroups ? 2 : 1);
    int64_t const most = std::min(kQueryRows[2], numbers / paddedWidth(sizes.width));
    int64_t const step = inGroups ? 4 : 2;
    int64_t rows = kQueryRows[0];
    while (rows < wanted && rows * step <= most)
    {
        rows *= step;
    }
    return rows;
}

//! Common base of the two operators; `In` holds the positions of the operator's inputs.
template <class In>
class DecodePlugin : public OperatorPlugin
{
public:
    using OperatorPlugin::OperatorPlugin;

    int32_t getNbOutputs() const noexcept override { return Out::kCount; }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* outputs,
        int32_t, IExprBuilder&) noexcept override
    {
        return guarded(-1, [&] {
            require(nbInputs == inputCount() && inputs[In::Q].nbDims == 4, "Q must be (batch, heads, tokens, width)");
            outputs[Out::O] = inputs[In::Q];
            outputs[Out::Y_new] = inputs[In::V_new];
            return 0;
        });
    }

protected:
    //! The name of the kernel that reads the cache, and the node's inputs that it takes before the mask.
    virtual char const* splitKernel() const = 0;
    virtual std::vector<Argument> splitTensors(void const* const* inputs) const = 0;

    int32_t inputCount() const override { return In::kCount; }

    Sizes readSizes(Shapes const& inputs) const override
    {
        Dims const& q = inputs[In::Q];
        Dims const& knew = inputs[In::K_new];
        Dims const& k = inputs[In::K];
        require(q.nbDims == 4 && knew.nbDims == 4 && k.nbDims == 4 && inputs[In::mask].nbDims == 2,
            "Q, K_new and K must have 4 dimensions and mask 2");
        for (int32_t i = 0; i < 4; ++i)
        {
            require(inputs[In::V_new].nbDims == 4 && inputs[In::V_new].d[i] == knew.d[i],
                "K_new and V_new must have one shape");
            require(inputs[In::Y].nbDims == 4 && inputs[In::Y].d[i] == k.d[i], "K and Y must have one shape");
            require(i == 2 || knew.d[i] == k.d[i], "K_new and K may differ in their tokens only");
        }
        require(q.d[2] == knew.d[2], "Q and K_new must have the same new tokens");
        require(knew.d[2] <= kMostNew, "there may be up to 16 new tokens");
        require(q.d[0] == k.d[0] && q.d[3] == k.d[3] && k.d[1] > 0 && q.d[1] % k.d[1] == 0,
            "Q must have the batch and width of K and a multiple of its heads");
        return {k.d[0], k.d[1], q.d[1] / k.d[1], knew.d[2], k.d[2], k.d[3], Type::kFloat32, mAttributes.epsilon, mAttributes.diagonal};
    }

    //! Enough for every smaller batch too, which has more splits, up to kTargetPrograms programs in all.
    size_t workspaceBytes(Sizes const& sizes) const override
    {
        return static_cast<size_t>(std::max(sizes.batch * sizes.heads, kTargetPrograms))
            * static_cast<size_t>(headRows(sizes) * (sizes.width + 2)) * sizeof(float);
    }

    size_t zeroedBytes(Sizes const&) const override { return 0; }

    //! The same launches as plan.py.
    std::vector<Step> plan(Sizes const& sizes, void const* const* inputs, void* const* outputs, void* workspace,
        int32_t arch) const override
    {
        // The library may have code for an older compute capability only, which is then few.arch.
        Kernel const& few = findKernel(variant(splitKernel(), sizes, widthUnit(sizes), kQueryRows[0]), arch);
        int64_t rows = queryRows(sizes, few.arch);
        int64_t const padded = paddedWidth(sizes.width);
        int64_t const unit = rows == kQueryRows[0] && sizes.width == padded ? padded : widthUnit(sizes);
        if (headRows(sizes) <= kFewRows && unit == padded && hasKernel(variant(splitKernel(), sizes, unit, kFewRows), arch))
        {
            rows = kFewRows;
        }
        int64_t const batchHeads = sizes.batch * sizes.heads;
        bool const one = sizes.newTokens == 1;
        Kernel const& split = findKernel(variant(splitKernel(), sizes, unit, rows), arch);
        Kernel const& combine
            = findKernel(variant(one ? "decode_combine" : "verify_combine", sizes, kCompiledUnit, 0), arch);
        int64_t const splits = std::max<int64_t>(
            1, std::min({ceilDiv(sizes.past, split.blockN), kMaxSplits, kTargetPrograms / batchHeads}));
        Step splitStep{&split, {programs(batchHeads), programs(splits), programs(ceilDiv(headRows(sizes), rows))},
            splitTensors(inputs)};
        splitStep.arguments.insert(splitStep.arguments.end(), {address(inputs[In::mask]), address(workspace)});
        append(splitStep, sizes, true, splits, unit);
        Step combineStep{&combine, {programs(batchHeads), programs(sizes.groups), 1},
            {address(inputs[In::Q]), address(inputs[In::K_new]), address(inputs[In::V_new]), address(inputs[In::mask]),
                address(workspace), address(outputs[Out::O]), address(outputs[Out::Y_new])}};
        append(combineStep, sizes, !one, splits, kCompiledUnit);
        return {splitStep, combineStep};
    }

private:
    //! Appends the scalars after the tensors; the combine kernel for one new token takes no number of tokens.
    static void append(Step& step, Sizes const& sizes, bool withNew, int64_t splits, int64_t unit)
    {
        std::vector<Argument>& all = step.arguments;
        all.insert(all.end(), {narrow(sizes.past), narrow(sizes.heads), narrow(sizes.groups)});
        if (withNew)
        {
            all.emplace_back(narrow(sizes.newTokens));
        }
        all.insert(all.end(), {narrow(splits), narrow(sizes.width / unit), sizes.epsilon, scale(sizes), shift(sizes),
            sizes.diagonal});
    }
};

class DecodeAttentionPlugin final : public DecodePlugin<InModelType>
{
public:
    explicit DecodeAttentionPlugin(Attributes attributes)
        : DecodePlugin(table::DecodeAttention::kName, makeDecodeAttention, attributes)
    {
    }

protected:
    char const* splitKernel() const override { return "decode_split"; }

    std::vector<Argument> splitTensors(void const* const* inputs) const override
    {
        using In = InModelType;
        return {address(inputs[In::Q]), address(inputs[In::K_new]), address(inputs[In::K]), address(inputs[In::Y])};
    }
};

//! Attention over a cache of E4M3 with one scale per row.
class DecodeAttentionFloat8Plugin final : public DecodePlugin<InFloat8>
{
public:
    explicit DecodeAttentionFloat8Plugin(Attributes attributes)
        : DecodePlugin(table::DecodeAttentionFloat8::kName, makeDecodeAttentionFloat8, attributes)
    {
    }

protected:
    using In = InFloat8;

    char const* splitKernel() const override { return "decode_split_float8"; }

    std::vector<Argument> splitTensors(void const* const* inputs) const override
    {
        return {address(inputs[In::Q]), address(inputs[In::K_new]), address(inputs[In::K]), address(inputs[In::Y]),
            address(inputs[In::K_scale]), address(inputs[In::Y_scale])};
    }

    bool takes(DataType type) const override { return type == DataType::kHALF || type == DataType::kBF16; }

    DataType typeOf(int32_t position, DataType type) const override
    {
        switch (position)
        {
        case In::K:
        case In::Y: return DataType::kFP8;
        case In::K_scale:
        case In::Y_scale: return DataType::kFLOAT;
        default: return DecodePlugin::typeOf(position, type);
        }
    }

    Sizes readSizes(Shapes const& inputs) const override
    {
        Dims const& k = inputs[In::K];
        require(k.nbDims == 4 && k.d[3] % kFloat8Unit == 0, "head widths with an FP8 cache are multiples of 8");
        for (int32_t const scales : {In::K_scale, In::Y_scale})
        {
            Dims const& each = inputs[scales];
            require(each.nbDims == 4 && each.d[0] == k.d[0] && each.d[1] == k.d[1]
                    && each.d[2] == k.d[2] && each.d[3] == 1,
                "K_scale and Y_scale must have one number for each row of K and Y");
        }
        return DecodePlugin::readSizes(inputs);
    }
};

} // namespace

std::unique_ptr<IPluginV3> makeDecodeAttention(Attributes attributes)
{
    return std::make_unique<DecodeAttentionPlugin>(attributes);
}

std::unique_ptr<IPluginV3> makeDecodeAttentionFloat8(Attributes attributes)
{
    return std::make_unique<DecodeAttentionFloat8Plugin>(attributes);
}

} // namespace lucid
