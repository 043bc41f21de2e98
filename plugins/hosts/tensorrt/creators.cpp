// Plugin creators and the functions that TensorRT's registry looks for in a plugin library.
#include "logging.h"
#include "operator_plugin.h"

#include <cstring>
#include <stdexcept>

using namespace nvinfer1;

namespace lucid
{
namespace
{

PluginField const* findField(PluginFieldCollection const* fields, char const* name, PluginFieldType type)
{
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i)
    {
        PluginField const& field = fields->fields[i];
        if (std::strcmp(field.name, name) == 0)
        {
            require(field.type == type && field.length == 1 && field.data != nullptr,
                (std::string("attribute ") + name + " has the wrong type").c_str());
            return &field;
        }
    }
    return nullptr;
}

void checkAbi(PluginFieldCollection const* fields)
{
    PluginField const* const field = findField(fields, "abi", PluginFieldType::kINT32);
    int32_t const abi = field != nullptr ? *static_cast<int32_t const*>(field->data) : 0;
    if (abi != LUCID_PLUGIN_ABI)
    {
        throw std::invalid_argument("the engine was built with plugin ABI " + std::to_string(abi)
            + " and this library has " + std::to_string(LUCID_PLUGIN_ABI)
            + ": build the engine again with lucid-deploy build");
    }
}

//! The value of a node's attribute, 0 if the node lacks it.
float attribute(PluginFieldCollection const* fields, char const* name)
{
    PluginField const* const field = findField(fields, name, PluginFieldType::kFLOAT32);
    return field == nullptr ? 0.0F : *static_cast<float const*>(field->data);
}

//! The creator of one operator's plugins. Attributes are floats; the first is required.
class Creator final : public IPluginCreatorV3One
{
public:
    Creator(char const* name, Make make, std::vector<char const*> const& attributes)
        : mName(name)
        , mMake(make)
    {
        for (char const* const each : attributes)
        {
            mAttributes.push_back({each, nullptr, PluginFieldType::kFLOAT32, 1});
        }
        mFields = {static_cast<int32_t>(mAttributes.size()), mAttributes.data()};
    }

    IPluginV3* createPlugin(char const*, PluginFieldCollection const* fields, TensorRTPhase phase) noexcept override
    {
        return guarded(static_cast<IPluginV3*>(nullptr), [&] {
            if (phase == TensorRTPhase::kRUNTIME)
            {
                checkAbi(fields);
            }
            char const* const needed = mAttributes[0].name;
            require(findField(fields, needed, PluginFieldType::kFLOAT32) != nullptr,
                (std::string(mName) + " needs the attribute " + needed).c_str());
            float const diagonal = attribute(fields, table::kDiagonal);
            require(diagonal == 0.0F || diagonal == 1.0F,
                (std::string(mName) + ": " + table::kDiagonal + " must be the float 0 or 1").c_str());
            return mMake({attribute(fields, table::kEpsilon), diagonal, attribute(fields, table::kScale)})
                .release();
        });
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }
    char const* getPluginName() const noexcept override { return mName; }
    char const* getPluginVersion() const noexcept override { return table::kVersionText; }
    char const* getPluginNamespace() const noexcept override { return table::kDomain; }

private:
    char const* const mName;
    Make const mMake;
    std::vector<PluginField> mAttributes;
    PluginFieldCollection mFields{};
};

} // namespace
} // namespace lucid

#define LUCID_EXPORT extern "C" __attribute__((visibility("default")))

LUCID_EXPORT IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept
{
    using namespace lucid;
    static std::vector<char const*> const ofSolve{table::kEpsilon, table::kDiagonal};
    static Creator precondition{table::Precondition::kName, makePrecondition, ofSolve};
    static Creator decodeAttention{table::DecodeAttention::kName, makeDecodeAttention, ofSolve};
    static Creator decodeFloat8{table::DecodeAttentionFloat8::kName, makeDecodeAttentionFloat8, ofSolve};
    static Creator deltaRule{table::DeltaRule::kName, makeDeltaRule, {table::kScale}};
    static IPluginCreatorInterface* const creators[] = {&precondition, &decodeAttention, &decodeFloat8, &deltaRule};
    count = 4;
    return creators;
}

LUCID_EXPORT void setLoggerFinder(ILoggerFinder* finder) noexcept
{
    lucid::setLoggerFinder(finder);
}

//! Version of the library's exports and of what engines store about its plugins.
LUCID_EXPORT int32_t lucidPluginAbi() noexcept
{
    return LUCID_PLUGIN_ABI;
}

//! 1 when a GPU of this compute capability, 90 for 9.0, can run some kernel with `part` in its name, else 0.
LUCID_EXPORT int32_t lucidPluginHasKernel(char const* part, int32_t arch) noexcept
{
    return lucid::hasKernel(part, arch) ? 1 : 0;
}
