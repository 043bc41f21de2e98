// DecodeAttention(Q [B,H·G,N,D], K_new [B,H,N,D], V_new [B,H,N,D], K [B,H,P,D], Y [B,H,P,D], mask [B,P+N])
//   -> (O [B,H·G,N,D], Y_new [B,H,N,D]), N from 1 to 16
#include "hosts/tensorrt/logging.h"
#include "hosts/tensorrt/operator_plugin.h"

#include <algorithm>

using namespace nvinfer1;

namespace lucid
{
namespace
{

using In = table::DecodeAttention::In;
using Out = table::DecodeAttention::Out;

// As in plan.py.
constexpr int64_t kQueryRows[] = {16, 32, 64};
constexpr int64_t kFloat32Width = 64; // float32 heads that are wider have kFloat32Rows at most
constexpr int64_t kFloat32Rows = 32;
constexpr int64_t kMostNew = 16;
constexpr int64_t kTargetPrograms = 256;
constexpr int64_t kMaxSplits = 128;

//! Rows of one key/value head: its queries and its new keys.
int64_t headRows(Sizes const& sizes)
{
    return (sizes.groups + 1) * sizes.newTokens;
}

int64_t queryRows(Sizes const& sizes)
{
    int64_t const wanted = headRows(sizes);
    int64_t const most = sizes.type == Type::kFloat32 && sizes.width > kFloat32Width ? kFloat32Rows : kQueryRows[2];
    int64_t rows = kQueryRows[0];
    while (rows < wanted && rows < most)
    {
        rows *= 2;
    }
    return rows;
}

class DecodeAttentionPlugin final : public OperatorPlugin
{
public:
    explicit DecodeAttentionPlugin(Attributes attributes)
        : OperatorPlugin(table::DecodeAttention::kName, attributes)
    {
    }

    IPluginV3* clone() noexcept override
    {
        return guarded(static_cast<IPluginV3*>(nullptr), [&] { return makeDecodeAttention(mAttributes).release(); });
    }

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

    //! Enough for every smaller batch too: fewer heads take more splits, up to kTargetPrograms programs in all.
    size_t workspaceBytes(Sizes const& sizes) const override
    {
        return static_cast<size_t>(std::max(sizes.batch * sizes.heads, kTargetPrograms))
            * static_cast<size_t>(headRows(sizes) * (sizes.width + 2)) * sizeof(float);
    }

    size_t zeroedBytes(Sizes const&) const override { return 0; }

    //! As plan.py.
    std::vector<Step> plan(Sizes const& sizes, void const* const* inputs, void* const* outputs, void* workspace,
        int32_t arch) const override
    {
        int64_t const unit = widthUnit(sizes);
        int64_t const rows = queryRows(sizes);
        int64_t const batchHeads = sizes.batch * sizes.heads;
        bool const one = sizes.newTokens == 1;
        Kernel const& split = findKernel(variant("decode_split", sizes, unit, rows), arch);
        Kernel const& combine
            = findKernel(variant(one ? "decode_combine" : "verify_combine", sizes, kCompiledUnit, 0), arch);
        int64_t const splits = std::max<int64_t>(
            1, std::min({ceilDiv(sizes.past, split.blockN), kMaxSplits, kTargetPrograms / batchHeads}));
        Step splitStep{&split, {programs(batchHeads), programs(splits), programs(ceilDiv(headRows(sizes), rows))},
            {address(inputs[In::Q]), address(inputs[In::K_new]), address(inputs[In::K]), address(inputs[In::Y]),
                address(inputs[In::mask]), address(workspace)}};
        append(splitStep, sizes, true, splits, unit);
        Step combineStep{&combine, {programs(batchHeads), programs(sizes.groups), 1},
            {address(inputs[In::Q]), address(inputs[In::K_new]), address(inputs[In::V_new]), address(inputs[In::mask]),
                address(workspace), address(outputs[Out::O]), address(outputs[Out::Y_new])}};
        append(combineStep, sizes, !one, splits, kCompiledUnit);
        return {splitStep, combineStep};
    }

private:
    //! What follows the tensors; the step that joins one token's splits is not told how many tokens there are.
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

} // namespace

std::unique_ptr<IPluginV3> makeDecodeAttention(Attributes attributes)
{
    return std::make_unique<DecodeAttentionPlugin>(attributes);
}

} // namespace lucid
