#include "operators.h"

#include "hosts/operators_generated.h"

#include <atomic>
#include <exception>
#include <string>
#include <utility>

namespace lucid {
namespace {

// Holds what an input is: its data and its dimensions.
template <class T>
struct Input {
    const T* data = nullptr;
    std::vector<int64_t> shape;

    size_t at(size_t axis) const { return static_cast<size_t>(shape[axis]); }
};

struct Failure {
    OrtStatus* status;
};

class Context {
public:
    Context(const OrtApi& api, OrtKernelContext* context, const char* name)
        : api_(api), context_(context), name_(name) {}

    template <class T>
    Input<T> input(size_t index, size_t rank) const {
        const OrtValue* value = nullptr;
        check(api_.KernelContext_GetInput(context_, index, &value));
        if (value == nullptr) refuse("input " + std::to_string(index) + " is missing");
        OrtTensorTypeAndShapeInfo* info = nullptr;
        check(api_.GetTensorTypeAndShape(value, &info));
        Input<T> input;
        size_t count = 0;
        OrtStatus* status = api_.GetDimensionsCount(info, &count);
        if (status == nullptr) {
            input.shape.resize(count);
            status = api_.GetDimensions(info, input.shape.data(), count);
        }
        api_.ReleaseTensorTypeAndShapeInfo(info);
        check(status);
        if (count != rank)
            refuse("input " + std::to_string(index) + " has " + std::to_string(count) + " axes, not " +
                   std::to_string(rank));
        void* data = nullptr;
        check(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
        input.data = static_cast<const T*>(data);
        return input;
    }

    template <class T>
    T* output(size_t index, const std::vector<int64_t>& shape) const {
        OrtValue* value = nullptr;
        check(api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
        void* data = nullptr;
        check(api_.GetTensorMutableData(value, &data));
        return static_cast<T*>(data);
    }

    void require(bool fits, const char* what) const {
        if (!fits) refuse(what);
    }

    [[noreturn]] void refuse(const std::string& what) const {
        throw Failure{api_.CreateStatus(ORT_INVALID_ARGUMENT, (std::string(table::kDomain) + ": " + name_ + ": " + what).c_str())};
    }

    void check(OrtStatus* status) const {
        if (status != nullptr) throw Failure{status};
    }

    const OrtApi& api() const { return api_; }
    OrtKernelContext* raw() const { return context_; }

private:
    const OrtApi& api_;
    OrtKernelContext* context_;
    const char* name_; // of the operator
};

// onnxruntime's threads, those of the session's intra_op_num_threads.
class SessionPool : public Pool {
public:
    explicit SessionPool(const Context& context) : context_(context) {}

    void run(void (*task)(void*, size_t), size_t count, void* data) const override {
        context_.check(context_.api().KernelContext_ParallelFor(context_.raw(), task, count, 0, data));
    }

private:
    const Context& context_;
};

template <class T>
constexpr ONNXTensorElementDataType element_type() {
    if constexpr (std::is_same_v<T, float>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    else if constexpr (std::is_same_v<T, int8_t>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    else
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

template <class T>
const KernelsOf<T>& kernels() {
    if constexpr (std::is_same_v<T, float>)
        return current_kernels().single;
    else
        return current_kernels().half;
}

template <class T>
struct Precondition {
    using Table = table::Precondition;
    using In = Table::In;
    static constexpr bool kEpsilon = true;
    using Type = T;

    static constexpr ONNXTensorElementDataType input_type(size_t) { return element_type<T>(); }

    static void compute(const Context& context, float epsilon) {
        auto k = context.input<T>(In::K, 4), v = context.input<T>(In::V, 4);
        auto k_past = context.input<T>(In::K_past, 4), y_past = context.input<T>(In::Y_past, 4);
        auto mask = context.input<bool>(In::mask, 2);
        context.require(v.shape == k.shape, "K and V differ in shape");
        context.require(y_past.shape == k_past.shape, "K_past and Y_past differ in shape");
        context.require(k_past.at(0) == k.at(0) && k_past.at(1) == k.at(1) && k_past.at(3) == k.at(3),
                        "K and K_past differ in batch, heads or width");
        context.require(mask.at(0) == k.at(0) && mask.at(1) == k_past.at(2) + k.at(2),
                        "mask is not [batch, past_sequence + sequence]");
        T* y = context.output<T>(Table::Out::Y, k.shape);
        kernels<T>().precondition({k.data, v.data, k_past.data, y_past.data, mask.data, y, k.at(0), k.at(1), k.at(2),
                                   k_past.at(2), k.at(3), epsilon},
                                  SessionPool(context));
    }
};

template <class T>
struct CausalAttention {
    using Table = table::CausalAttention;
    using In = Table::In;
    static constexpr bool kEpsilon = false;
    using Type = T;

    static constexpr ONNXTensorElementDataType input_type(size_t) { return element_type<T>(); }

    static void compute(const Context& context, float) {
        auto q = context.input<T>(In::Q, 4), k = context.input<T>(In::K, 4), y = context.input<T>(In::Y, 4);
        auto mask = context.input<bool>(In::mask, 2);
        context.require(y.shape == k.shape, "K and Y differ in shape");
        context.require(q.at(0) == k.at(0) && q.at(3) == k.at(3) && q.at(2) <= k.at(2), "Q and K do not fit together");
        context.require(k.at(1) != 0 && q.at(1) % k.at(1) == 0, "the heads of Q are no multiple of those of K");
        context.require(mask.at(0) == k.at(0) && mask.at(1) == k.at(2), "mask is not [batch, total_sequence]");
        T* o = context.output<T>(Table::Out::O, q.shape);
        kernels<T>().attention({q.data, k.data, y.data, mask.data, o, k.at(0), k.at(1), q.at(1) / k.at(1), q.at(2),
                                k.at(2), k.at(3)},
                               SessionPool(context));
    }
};

// K and Y are of type S: T, or what the cache is stored in. int8_t comes with the scales of K and Y before the mask.
template <class T, class S = T>
struct DecodeAttention {
    static constexpr bool kScaled = std::is_same_v<S, int8_t>;
    using Plain = std::conditional_t<std::is_same_v<S, T>, table::DecodeAttention, table::DecodeAttentionFloat16>;
    using Table = std::conditional_t<kScaled, table::DecodeAttentionInt8, Plain>;
    using In = typename Table::In;
    static constexpr bool kEpsilon = true;
    using Type = T;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        if (index == In::K || index == In::Y) return element_type<S>();
        return index > In::Y ? element_type<float>() : element_type<T>(); // the scales
    }

    static void compute(const Context& context, float epsilon) {
        auto q = context.input<T>(In::Q, 4);
        auto k_new = context.input<T>(In::K_new, 4), v_new = context.input<T>(In::V_new, 4);
        auto k = context.input<S>(In::K, 4), y = context.input<S>(In::Y, 4);
        auto mask = context.input<bool>(In::mask, 2);
        context.require(y.shape == k.shape, "K and Y differ in shape");
        std::vector<int64_t> row = k.shape, column = k.shape;
        row[2] = column[3] = 1;
        context.require(k_new.shape == row && v_new.shape == row, "K_new or V_new is not one row");
        context.require(
            q.at(0) == k.at(0) && q.at(2) == 1 && q.at(3) == k.at(3) && k.at(1) != 0 && q.at(1) % k.at(1) == 0,
            "Q and K do not fit together");
        context.require(mask.at(0) == k.at(0) && mask.at(1) == k.at(2) + 1, "mask is not [batch, past_sequence + 1]");
        const float *k_scale = nullptr, *y_scale = nullptr;
        if constexpr (kScaled) {
            auto of_k = context.input<float>(In::K_scale, 4), of_y = context.input<float>(In::Y_scale, 4);
            context.require(of_k.shape == column && of_y.shape == column, "K_scale or Y_scale is not one number a row");
            k_scale = of_k.data;
            y_scale = of_y.data;
        }
        T *o = context.output<T>(Table::Out::O, q.shape), *y_new = context.output<T>(Table::Out::Y_new, row);
        run({q.data, k_new.data, v_new.data, k.data, y.data, k_scale, y_scale, mask.data, o, y_new, k.at(0), k.at(1),
             q.at(1) / k.at(1), k.at(2), k.at(3), epsilon},
            SessionPool(context));
    }

private:
    static void run(const DecodeArguments<T, S>& arguments, const Pool& pool) {
        if constexpr (kScaled)
            kernels<T>().decode_int8(arguments, pool);
        else if constexpr (std::is_same_v<S, T>)
            kernels<T>().decode(arguments, pool);
        else
            kernels<T>().decode_half(arguments, pool);
    }
};

struct Instance {
    const OrtApi* api;
    float epsilon;
};

// The callbacks of one operator for one type.
template <class Operator>
struct CustomOperator : OrtCustomOp {
    CustomOperator() : OrtCustomOp{} {
        version = kOrtApiVersion;
        GetName = [](const OrtCustomOp*) { return Operator::Table::kName; };
        GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; }; // the CPU
        GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return Operator::In::kCount; };
        GetInputType = [](const OrtCustomOp*, size_t index) {
            bool is_mask = index == Operator::In::mask;
            return is_mask ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL : Operator::input_type(index);
        };
        GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return Operator::Table::Out::kCount; };
        GetOutputType = [](const OrtCustomOp*, size_t) { return element_type<typename Operator::Type>(); };
        GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
        GetStartVersion = [](const OrtCustomOp*) { return table::kVersion; };
        GetEndVersion = [](const OrtCustomOp*) { return table::kVersion; };
        CreateKernelV2 = create;
        KernelComputeV2 = compute;
        KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
    }

    static OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
        float epsilon = 0.0f;
        if (Operator::kEpsilon)
            if (OrtStatus* status = api->KernelInfoGetAttribute_float(info, table::kEpsilon, &epsilon)) return status;
        *kernel = new Instance{api, epsilon};
        return nullptr;
    }

    static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
        const Instance& instance = *static_cast<Instance*>(kernel);
        try {
            Operator::compute(Context(*instance.api, context, Operator::Table::kName), instance.epsilon);
        } catch (const Failure& failure) {
            return failure.status;
        } catch (const std::exception& error) { // no memory
            return instance.api->CreateStatus(ORT_FAIL, (std::string(table::kDomain) + ": " + error.what()).c_str());
        }
        return nullptr;
    }
};

#if defined(__x86_64__)
constexpr const Kernels* kBestFirst[] = {&kAvx512, &kAvx2, &kPortable};
#else
constexpr const Kernels* kBestFirst[] = {&kPortable};
#endif

const Kernels* best() {
    for (const Kernels* kernels : kBestFirst)
        if (kernels->supported()) return kernels;
    return &kPortable;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{best()};
    return kernels;
}

} // namespace

const Kernels& current_kernels() { return *chosen().load(); }

bool select_kernels(const char* name) {
    for (const Kernels* kernels : kBestFirst)
        if (std::string(name) == kernels->name && kernels->supported()) {
            chosen() = kernels;
            return true;
        }
    return false;
}

const std::vector<const OrtCustomOp*>& custom_operators() {
    static const CustomOperator<Precondition<float>> precondition;
    static const CustomOperator<Precondition<Half>> precondition_half;
    static const CustomOperator<CausalAttention<float>> attention;
    static const CustomOperator<CausalAttention<Half>> attention_half;
    static const CustomOperator<DecodeAttention<float>> decode;
    static const CustomOperator<DecodeAttention<Half>> decode_half;
    static const CustomOperator<DecodeAttention<float, Half>> decode_from_half;
    static const CustomOperator<DecodeAttention<float, int8_t>> decode_from_int8;
    static const CustomOperator<DecodeAttention<Half, int8_t>> decode_half_from_int8;
    static const std::vector<const OrtCustomOp*> all{&precondition,     &precondition_half, &attention,
                                                     &attention_half,   &decode,            &decode_half,
                                                     &decode_from_half, &decode_from_int8,  &decode_half_from_int8};
    return all;
}

} // namespace lucid
