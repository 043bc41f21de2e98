// DeltaRule(query [B,H,N,D], key [B,H,N,D], value [B,H,N,E], log_decay [B,H,N], beta [B,H,N], state [B,H,D,E])
//   -> (output [B,H,N,E], new_state [B,H,D,E]); log_decay and the states are float32
#include "hosts/tensorrt/logging.h"
#include "hosts/tensorrt/operator_plugin.h"

#include <algorithm>

using namespace nvinfer1;

namespace lucid
{
namespace
{

using In = table::DeltaRule::In;
using Out = table::DeltaRule::Out;

constexpr int64_t kLargestChunk = 32; // as in plan.py: TensorRT asks for the workspace's size before the device is known

class DeltaRulePlugin final : public OperatorPlugin
{
public:
    explicit DeltaRulePlugin(Attributes attributes)
        : OperatorPlugin(table::DeltaRule::kName, makeDeltaRule, attributes)
    {
    }

    int32_t getNbOutputs() const noexcept override { return Out::kCount; }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* outputs,
        int32_t, IExprBuilder&) noexcept override
    {
        return guarded(-1, [&] {
            require(nbInputs == inputCount() && inputs[In::value].nbDims == 4 && inputs[In::state].nbDims == 4,
                "value must be (batch, heads, tokens, width) and state (batch, heads, key width, value width)");
            outputs[Out::output] = inputs[In::value];
            outputs[Out::new_state] = inputs[In::state];
            return 0;
        });
    }

protected:
    int32_t inputCount() const override { return In::kCount; }

    DataType typeOf(int32_t position, DataType type) const override
    {
        bool const isFixed
            = position == In::log_decay || position == In::state || position == In::kCount + Out::new_state;
        return isFixed ? DataType::kFLOAT : type;
    }

    void checkMask(Dims const&, Sizes const&) const override {} // the operator has no mask

    std::vector<PluginField> attributeFields() const override
    {
        return {{table::kScale, &mAttributes.scale, PluginFieldType::kFLOAT32, 1}};
    }

    Sizes readSizes(Shapes const& inputs) const override
    {
        Dims const& key = inputs[In::key];
        Dims const& value = inputs[In::value];
        Dims const& state = inputs[In::state];
        require(key.nbDims == 4 && inputs[In::query].nbDims == 4 && value.nbDims == 4 && state.nbDims == 4,
            "query, key, value and state must have 4 dimensions");
        require(inputs[In::log_decay].nbDims == 3 && inputs[In::beta].nbDims == 3,
            "log_decay and beta must be (batch, heads, tokens)");
        for (int32_t i = 0; i < 4; ++i)
        {
            require(inputs[In::query].d[i] == key.d[i], "query and key must have one shape");
            require(i == 3 || value.d[i] == key.d[i], "key and value may differ in their width only");
            require(i == 3 || (inputs[In::log_decay].d[i] == key.d[i] && inputs[In::beta].d[i] == key.d[i]),
                "log_decay and beta must be (batch, heads, tokens)");
            require(state.d[i] == (i < 2 ? key.d[i] : i == 2 ? key.d[3] : value.d[3]),
                "state must be (batch, heads, key width, value width)");
        }
        return {key.d[0], key.d[1], 1, key.d[2], 0, key.d[3], Type::kFloat32, 0.0F, 0.0F, value.d[3], mAttributes.scale};
    }

    //! T, the attention weights and the decays of every chunk; 0 for one token.
    size_t workspaceBytes(Sizes const& sizes) const override
    {
        int64_t const chunks = sizes.newTokens == 1 ? 0 : ceilDiv(sizes.newTokens, kLargestChunk);
        int64_t const numbers = 2 * kLargestChunk * (kLargestChunk + 1);
        return static_cast<size_t>(sizes.batch * sizes.heads * chunks * numbers) * sizeof(float);
    }

    size_t zeroedBytes(Sizes const&) const override { return 0; }

    //! Makes the same launches as plan.py does in Python.
    std::vector<Step> plan(Sizes const& sizes, void const* const* inputs, void* const* outputs, void* workspace,
        int32_t arch) const override
    {
        uint32_t const batchHeads = programs(sizes.batch * sizes.heads);
        int32_t const keyUnits = narrow(sizes.width / kCompiledUnit);
        int32_t const valueUnits = narrow(sizes.valueWidth / kCompiledUnit);
        auto const kernel = [&](char const* name) -> Kernel const& {
            return findKernel(variant(name, sizes, kCompiledUnit, 0), arch);
        };
        auto const columns = [&](Kernel const& of) { return programs(ceilDiv(sizes.valueWidth, of.blockN)); };
        if (sizes.newTokens == 1)
        {
            Kernel const& decode = kernel("delta_decode");
            return {Step{&decode, {batchHeads, columns(decode), 1},
                {address(inputs[In::query]), address(inputs[In::key]), address(inputs[In::value]),
                    address(inputs[In::log_decay]), address(inputs[In::beta]), address(inputs[In::state]),
                    address(outputs[Out::output]), address(outputs[Out::new_state]), keyUnits, valueUnits, sizes.scale}}};
        }
        Kernel const& chunk = kernel("delta_chunk");
        Kernel const& state = kernel("delta_state");
        int32_t const newTokens = narrow(sizes.newTokens);
        Step const chunkStep{&chunk, {programs(ceilDiv(sizes.newTokens, chunk.blockM)), batchHeads, 1},
            {address(inputs[In::query]), address(inputs[In::key]), address(inputs[In::log_decay]),
                address(inputs[In::beta]), address(workspace), newTokens, keyUnits, sizes.scale}};
        Step const stateStep{&state, {batchHeads, columns(state), 1},
            {address(inputs[In::query]), address(inputs[In::key]), address(inputs[In::value]),
                address(inputs[In::state]), address(workspace), address(outputs[Out::output]),
                address(outputs[Out::new_state]), newTokens, keyUnits, valueUnits, sizes.scale}};
        return {chunkStep, stateStep};
    }
};

} // namespace

std::unique_ptr<IPluginV3> makeDeltaRule(Attributes attributes)
{
    return std::make_unique<DeltaRulePlugin>(attributes);
}

} // namespace lucid
