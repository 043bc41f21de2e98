#include "operator_plugin.h"

#include "logging.h"

#include <stdexcept>

using namespace nvinfer1;

namespace lucid
{
namespace
{

Type kernelType(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT: return Type::kFloat32;
    case DataType::kHALF: return Type::kFloat16;
    case DataType::kBF16: return Type::kBFloat16;
    default: throw std::invalid_argument("only float32, float16 and bfloat16 are supported");
    }
}

} // namespace

void require(bool holds, char const* message)
{
    if (!holds)
    {
        throw std::invalid_argument(message);
    }
}

OperatorPlugin::OperatorPlugin(char const* name, Make make, Attributes attributes)
    : mAttributes(attributes)
    , mName(name)
    , mMake(make)
    , mAbi(LUCID_PLUGIN_ABI)
{
}

IPluginCapability* OperatorPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* OperatorPlugin::clone() noexcept
{
    return guarded(static_cast<IPluginV3*>(nullptr), [&] { return mMake(mAttributes).release(); });
}

int32_t OperatorPlugin::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t) noexcept
{
    return guarded(-1, [&] {
        require(nbInputs == inputCount(), "wrong number of inputs");
        // Dynamic sizes (batch, tokens) are −1 in `desc.dims`, so check the largest ones of the optimization profile.
        Shapes largest;
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            largest.push_back(in[i].max);
        }
        Sizes sizes = readSizes(largest);
        sizes.type = kernelType(in[0].desc.type);
        checkSizes(sizes);
        return 0;
    });
}

int32_t OperatorPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(-1, [&] {
        require(nbInputs == inputCount(), "wrong number of inputs");
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            require(takes(inputTypes[0]) && inputTypes[i] == typeOf(i, inputTypes[0]),
                "all tensors must have one type, float32, float16 or bfloat16, but for a mask, which must be bool, for "
                "log_decay, state and scales, which must be float32, and for an FP8 cache, beside which they must be "
                "float16 or bfloat16");
        }
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            outputTypes[i] = typeOf(nbInputs + i, inputTypes[0]);
        }
        return 0;
    });
}

bool OperatorPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept
{
    PluginTensorDesc const& desc = inOut[pos].desc;
    if (desc.format != TensorFormat::kLINEAR)
    {
        return false;
    }
    return takes(inOut[0].desc.type) && desc.type == typeOf(pos, inOut[0].desc.type);
}

bool OperatorPlugin::takes(DataType type) const
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

DataType OperatorPlugin::typeOf(int32_t position, DataType type) const
{
    return position == inputCount() - 1 ? DataType::kBOOL : type;
}

void OperatorPlugin::checkMask(Dims const& mask, Sizes const& sizes) const
{
    require(mask.d[0] == sizes.batch && mask.d[1] == sizes.past + sizes.newTokens,
        "mask must be (batch, past and new tokens)");
}

std::vector<PluginField> OperatorPlugin::attributeFields() const
{
    return {{table::kEpsilon, &mAttributes.epsilon, PluginFieldType::kFLOAT32, 1},
        {table::kDiagonal, &mAttributes.diagonal, PluginFieldType::kFLOAT32, 1}};
}

size_t OperatorPlugin::getWorkspaceSize(
    DynamicPluginTensorDesc const* inputs, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t) const noexcept
{
    return guarded(size_t{0}, [&] {
        Shapes largest;
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            largest.push_back(inputs[i].max);
        }
        Sizes sizes = readSizes(largest);
        sizes.type = kernelType(inputs[0].desc.type);
        return workspaceBytes(sizes);
    });
}

Sizes OperatorPlugin::sizesOf(PluginTensorDesc const* inputs) const
{
    Shapes shapes;
    for (int32_t i = 0; i < inputCount(); ++i)
    {
        require(inputs[i].format == TensorFormat::kLINEAR, "tensors must be in linear format");
        shapes.push_back(inputs[i].dims);
    }
    Sizes sizes = readSizes(shapes);
    sizes.type = kernelType(inputs[0].type);
    checkSizes(sizes);
    checkMask(inputs[inputCount() - 1].dims, sizes);
    return sizes;
}

int32_t OperatorPlugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(-1, [&] {
        require(nbInputs == inputCount(), "wrong number of inputs");
        // Modules are loaded here, not in enqueue, which may be recorded into a CUDA graph.
        Device const device = Device::current();
        std::vector<void const*> const inputs(static_cast<size_t>(nbInputs), nullptr);
        std::vector<void*> const outputs(static_cast<size_t>(nbOutputs), nullptr);
        prepare(plan(sizesOf(in), inputs.data(), outputs.data(), nullptr, device.arch), device);
        return 0;
    });
}

int32_t OperatorPlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(-1, [&] {
        Device const device = Device::current();
        Sizes const sizes = sizesOf(inputDesc);
        auto* const driverStream = reinterpret_cast<CUstream>(stream);
        if (size_t const bytes = zeroedBytes(sizes); bytes > 0)
        {
            auto const& driver = CudaDriver::get();
            driver.check(driver.memsetD8Async(reinterpret_cast<CUdeviceptr>(workspace), 0, bytes, driverStream),
                "clearing the workspace");
        }
        launch(plan(sizes, inputs, outputs, workspace, device.arch), device, driverStream);
        return 0;
    });
}

IPluginV3* OperatorPlugin::attachToContext(IPluginResourceContext*) noexcept
{
    return clone();
}

PluginFieldCollection const* OperatorPlugin::getFieldsToSerialize() noexcept
{
    return guarded(static_cast<PluginFieldCollection const*>(nullptr), [&] {
        mFields = attributeFields();
        mFields.push_back({"abi", &mAbi, PluginFieldType::kINT32, 1});
        mFieldCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        return static_cast<PluginFieldCollection const*>(&mFieldCollection);
    });
}

} // namespace lucid
