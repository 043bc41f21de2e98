// The base class of all plugins: implements TensorRT's V3ONE interfaces by checking sizes and launching plans.
#pragma once

#include "plan.h"

#include "operators_generated.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace lucid
{

//! Attributes of a node; 0 for an attribute that it lacks.
struct Attributes
{
    float epsilon;
    float diagonal;
    float scale;
};

using Make = std::unique_ptr<nvinfer1::IPluginV3> (*)(Attributes);

//! Base of the plugins in the operators' tensorrt.cpp, which describe their tensors. TensorRT never sees an exception.
class OperatorPlugin : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime
{
public:
    OperatorPlugin(char const* name, Make make, Attributes attributes);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override { return mName; }
    char const* getPluginVersion() const noexcept override { return table::kVersionText; }
    char const* getPluginNamespace() const noexcept override { return table::kDomain; }

    // IPluginV3OneBuild
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
        nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

protected:
    using Shapes = std::vector<nvinfer1::Dims>;

    virtual int32_t inputCount() const = 0;

    //! Returns the sizes given by the inputs' shapes. Throws std::invalid_argument if the shapes do not match.
    virtual Sizes readSizes(Shapes const& inputs) const = 0;

    virtual size_t workspaceBytes(Sizes const& sizes) const = 0;

    //! Number of bytes at the start of the workspace that must be zero before the first launch.
    virtual size_t zeroedBytes(Sizes const& sizes) const = 0;

    virtual std::vector<Step> plan(Sizes const& sizes, void const* const* inputs, void* const* outputs, void* workspace,
        int32_t arch) const = 0;

    //! Whether the first input may have this type; by default float32, float16 and bfloat16.
    virtual bool takes(nvinfer1::DataType type) const;

    //! Type of a tensor (inputs first) of a node whose first input has `type`: by default `type`, bool for the mask.
    virtual nvinfer1::DataType typeOf(int32_t position, nvinfer1::DataType type) const;

    //! Throws std::invalid_argument unless the last input, the mask, is (batch, past and new tokens).
    virtual void checkMask(nvinfer1::Dims const& mask, Sizes const& sizes) const;

    //! The node's attributes that an engine stores.
    virtual std::vector<nvinfer1::PluginField> attributeFields() const;

    Attributes const mAttributes;

private:
    Sizes sizesOf(nvinfer1::PluginTensorDesc const* inputs) const;

    char const* const mName;
    Make const mMake;
    int32_t mAbi;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mFieldCollection{};
};

//! Throws std::invalid_argument with `message` unless `holds`.
void require(bool holds, char const* message);

//! The address of a tensor as a launch argument.
inline CUdeviceptr address(void const* pointer)
{
    return reinterpret_cast<CUdeviceptr>(pointer);
}

std::unique_ptr<nvinfer1::IPluginV3> makePrecondition(Attributes attributes);
std::unique_ptr<nvinfer1::IPluginV3> makeDecodeAttention(Attributes attributes);
std::unique_ptr<nvinfer1::IPluginV3> makeDecodeAttentionFloat8(Attributes attributes);
std::unique_ptr<nvinfer1::IPluginV3> makeDeltaRule(Attributes attributes);

} // namespace lucid
