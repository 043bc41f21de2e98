// Runs a plugin as TensorRT would, without TensorRT: creator, build phase, serialisation, runtime phase, enqueue.
//
// harness LIBRARY OPERATOR TYPE BATCH HEADS GROUPS NEW PAST WIDTH VALUE_WIDTH EPSILON MODE [DIAGONAL]
// EPSILON is the delta rule's scale, and VALUE_WIDTH is for it alone.
// MODE: run; abi (another ABI number is deserialised); mask (the mask's shape, or a gate's, is wrong); mixed (the second
// input has another type); state (the state has the others' type).
// Prints one JSON object a line: what the plugin answered and what it logged.
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace
{

class Logger final : public ILogger
{
    void log(Severity severity, char const* message) noexcept override
    {
        std::printf("{\"log\": \"%s\", \"severity\": %d}\n", message, static_cast<int>(severity));
    }
};

//! Only its address counts: the plugin asks the library it comes from, here this program, for the logger.
class Finder final : public ILoggerFinder
{
public:
    ILogger* findLogger() override { std::abort(); }
};

struct Call
{
    std::string operatorName;
    DataType type;
    int64_t batch, heads, groups, newTokens, past, width, valueWidth;
    float epsilon;
    std::string mode;
    std::vector<float> diagonal; // empty where the node has no such attribute
};

struct Tensors
{
    std::vector<PluginTensorDesc> inputs;
    std::vector<PluginTensorDesc> outputs;
};

PluginTensorDesc tensor(DataType type, std::vector<int64_t> const& shape)
{
    PluginTensorDesc desc{};
    desc.type = type;
    desc.format = TensorFormat::kLINEAR;
    desc.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), desc.dims.d);
    return desc;
}

template <typename Function>
Function symbol(void* library, char const* name)
{
    auto* const found = dlsym(library, name);
    if (found == nullptr)
    {
        std::fprintf(stderr, "no %s\n", name);
        std::exit(3);
    }
    return reinterpret_cast<Function>(found);
}

void print(char const* what, long long value)
{
    std::printf("{\"%s\": %lld}\n", what, value);
}

Call readCall(int argc, char** argv)
{
    std::vector<float> diagonal;
    if (argc > 13)
    {
        diagonal.push_back(std::strtof(argv[13], nullptr));
    }
    std::string const type = argv[3];
    auto const number = [&](int i) { return static_cast<int64_t>(std::atoll(argv[i])); };
    return {argv[2],
        type == "float32"       ? DataType::kFLOAT
            : type == "float16" ? DataType::kHALF
                                : DataType::kBF16,
        number(4), number(5), number(6), number(7), number(8), number(9), number(10), std::strtof(argv[11], nullptr), argv[12], diagonal};
}

Tensors makeTensors(Call const& call)
{
    auto const [name, type, b, h, g, n, p, d, e, epsilon, mode, diagonal] = call;
    DataType const second = mode == "mixed" ? DataType::kFLOAT : type;
    Tensors tensors;
    if (name == "DeltaRule")
    {
        DataType const fixed = mode == "state" ? type : DataType::kFLOAT;
        PluginTensorDesc const state = tensor(fixed, {b, h, d, e});
        tensors.inputs = {tensor(type, {b, h, n, d}), tensor(second, {b, h, n, d}), tensor(type, {b, h, n, e}),
            tensor(DataType::kFLOAT, {b, h, n}), tensor(type, {b, h, n + (mode == "mask" ? 1 : 0)}), state};
        tensors.outputs = {tensors.inputs[2], state};
        return tensors;
    }
    if (name == "DecodeAttention")
    {
        tensors.inputs = {tensor(type, {b, h * g, n, d}), tensor(second, {b, h, n, d}), tensor(type, {b, h, n, d}),
            tensor(type, {b, h, p, d}), tensor(type, {b, h, p, d})};
        tensors.outputs = {tensors.inputs[0], tensors.inputs[2]};
    }
    else if (name == "DecodeAttentionFloat8")
    {
        PluginTensorDesc const cache = tensor(mode == "cache" ? type : DataType::kFP8, {b, h, p, d});
        PluginTensorDesc const scales = tensor(DataType::kFLOAT, {b, h, p, mode == "scales" ? d : 1});
        tensors.inputs = {tensor(type, {b, h * g, n, d}), tensor(second, {b, h, n, d}), tensor(type, {b, h, n, d}),
            cache, cache, scales, scales};
        tensors.outputs = {tensors.inputs[0], tensors.inputs[2]};
    }
    else
    {
        tensors.inputs = {tensor(type, {b, h, n, d}), tensor(second, {b, h, n, d}), tensor(type, {b, h, p, d}),
            tensor(type, {b, h, p, d})};
        tensors.outputs = {tensors.inputs[0]};
    }
    tensors.inputs.push_back(tensor(DataType::kBOOL, {b, p + n + (mode == "mask" ? 1 : 0)}));
    return tensors;
}

IPluginCreatorV3One* findCreator(void* library, std::string const& name)
{
    int32_t count = 0;
    auto* const* const creators
        = symbol<IPluginCreatorInterface* const* (*) (int32_t&)>(library, "getCreators")(count);
    print("creators", count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const candidate = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (candidate->getPluginName() == name)
        {
            return candidate;
        }
    }
    std::fprintf(stderr, "no plugin %s\n", name.c_str());
    std::exit(3);
}

//! What TensorRT asks while it builds an engine.
void askForBuild(IPluginV3& plugin, Tensors const& tensors)
{
    auto* const build = static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto const nbInputs = static_cast<int32_t>(tensors.inputs.size());
    auto const nbOutputs = static_cast<int32_t>(tensors.outputs.size());
    std::vector<DynamicPluginTensorDesc> all;
    for (auto const* descs : {&tensors.inputs, &tensors.outputs})
    {
        for (auto const& desc : *descs)
        {
            all.push_back({desc, desc.dims, desc.dims, desc.dims});
        }
    }
    long long supported = 1;
    for (int32_t i = 0; i < nbInputs + nbOutputs; ++i)
    {
        supported &= build->supportsFormatCombination(i, all.data(), nbInputs, nbOutputs);
    }
    auto const* const outputs = all.data() + nbInputs;
    print("supported", supported);
    print("configured", build->configurePlugin(all.data(), nbInputs, outputs, nbOutputs));
    print("workspace", static_cast<long long>(build->getWorkspaceSize(all.data(), nbInputs, outputs, nbOutputs)));
}

//! Stores the plugin as an engine would, and creates it again from what was stored.
std::unique_ptr<IPluginV3> saveAndLoad(IPluginV3& plugin, IPluginCreatorV3One& creator, std::string const& mode)
{
    auto* const runtime
        = static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginFieldCollection const* const saved = runtime->getFieldsToSerialize();
    std::vector<PluginField> fields(saved->fields, saved->fields + saved->nbFields);
    int32_t const otherAbi = 999;
    for (auto& field : fields)
    {
        if (mode == "abi" && std::strcmp(field.name, "abi") == 0)
        {
            field.data = &otherAbi;
        }
    }
    PluginFieldCollection const restored{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> loaded{creator.createPlugin("layer", &restored, TensorRTPhase::kRUNTIME)};
    print("loaded", loaded != nullptr);
    return loaded;
}

//! Runs twice in one CUDA context and once in another, with addresses that the test knows.
void run(IPluginV3& plugin, Tensors const& tensors)
{
    auto* const original
        = static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> const attached{original->attachToContext(nullptr)};
    auto* const runtime
        = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::vector<void const*> inputs;
    std::vector<void*> outputs;
    for (size_t i = 0; i < tensors.inputs.size(); ++i)
    {
        inputs.push_back(reinterpret_cast<void const*>(uintptr_t{0x10000} * (i + 1)));
    }
    for (size_t i = 0; i < tensors.outputs.size(); ++i)
    {
        outputs.push_back(reinterpret_cast<void*>(uintptr_t{0x900000} + uintptr_t{0x10000} * i));
    }
    auto* const workspace = reinterpret_cast<void*>(uintptr_t{0xF00000});
    auto* const stream = reinterpret_cast<cudaStream_t>(uintptr_t{0x77});
    void* const cuda = dlopen("libcuda.so.1", RTLD_NOW);
    for (unsigned long long const context : {1, 1, 2})
    {
        if (cuda != nullptr)
        {
            symbol<void (*)(unsigned long long)>(cuda, "stub_set_context")(context);
        }
        print("prepared",
            runtime->onShapeChange(tensors.inputs.data(), static_cast<int32_t>(inputs.size()), tensors.outputs.data(),
                static_cast<int32_t>(outputs.size())));
        print("enqueued",
            runtime->enqueue(
                tensors.inputs.data(), tensors.outputs.data(), inputs.data(), outputs.data(), workspace, stream));
    }
}

} // namespace

extern "C" __attribute__((visibility("default"))) ILogger* getLogger() noexcept
{
    static Logger logger;
    return &logger;
}

int main(int argc, char** argv)
{
    Call const call = readCall(argc, argv);
    Tensors const tensors = makeTensors(call);
    void* const library = dlopen(argv[1], RTLD_NOW);
    if (library == nullptr)
    {
        std::fprintf(stderr, "%s\n", dlerror());
        return 3;
    }
    Finder finder;
    symbol<void (*)(ILoggerFinder*)>(library, "setLoggerFinder")(&finder);
    IPluginCreatorV3One* const creator = findCreator(library, call.operatorName);
    char const* const first = call.operatorName == "DeltaRule" ? "scale" : "epsilon";
    PluginField const fields[2]{{first, &call.epsilon, PluginFieldType::kFLOAT32, 1},
        {"diagonal", call.diagonal.data(), PluginFieldType::kFLOAT32, 1}};
    PluginFieldCollection const attributes{call.diagonal.empty() ? 1 : 2, fields};
    std::unique_ptr<IPluginV3> const built{creator->createPlugin("layer", &attributes, TensorRTPhase::kBUILD)};
    if (built == nullptr)
    {
        return 0;
    }
    askForBuild(*built, tensors);
    if (std::unique_ptr<IPluginV3> const loaded = saveAndLoad(*built, *creator, call.mode))
    {
        run(*loaded, tensors);
    }
    return 0;
}
