// A call of a custom operator: its inputs, outputs and errors, and onnxruntime's threads.
#pragma once

#include "operators_generated.h"
#include "operators.h"

#include <memory>
#include <string>
#include <type_traits>

namespace lucid {

// An input: its data and its dimensions.
template <class T>
struct Input {
    const T* data = nullptr;
    std::vector<int64_t> shape;

    size_t at(size_t axis) const { return static_cast<size_t>(shape[axis]); }
};

struct Attributes {
    float epsilon = 0.0f, diagonal = 0.0f, scale = 1.0f;
    std::shared_ptr<const uint8_t> panels; // a constant quantized weight, packed for the product; null if there is none
};

struct Failure {
    OrtStatus* status;
};

inline void check(OrtStatus* status) {
    if (status != nullptr) throw Failure{status};
}

template <class T>
Input<T> read_tensor(const OrtApi& api, const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api.GetTensorTypeAndShape(value, &info));
    Input<T> input;
    size_t count = 0;
    OrtStatus* status = api.GetDimensionsCount(info, &count);
    if (status == nullptr) {
        input.shape.resize(count);
        status = api.GetDimensions(info, input.shape.data(), count);
    }
    api.ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    void* data = nullptr;
    check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    input.data = static_cast<const T*>(data);
    return input;
}

class Context {
public:
    Context(const OrtApi& api, OrtKernelContext* context, const char* name)
        : api_(api), context_(context), name_(name) {}

    template <class T>
    Input<T> input(size_t index, size_t rank) const {
        Input<T> input = input_of_any_rank<T>(index);
        if (input.shape.size() != rank)
            refuse("input " + std::to_string(index) + " has " + std::to_string(input.shape.size()) + " axes, not " +
                   std::to_string(rank));
        return input;
    }

    template <class T>
    Input<T> input_of_any_rank(size_t index) const {
        const OrtValue* value = nullptr;
        check(api_.KernelContext_GetInput(context_, index, &value));
        if (value == nullptr) refuse("input " + std::to_string(index) + " is missing");
        return read_tensor<T>(api_, value);
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
        const std::string message = std::string(table::kDomain) + ": " + name_ + ": " + what;
        throw Failure{api_.CreateStatus(ORT_INVALID_ARGUMENT, message.c_str())};
    }

    const OrtApi& api() const { return api_; }
    OrtKernelContext* raw() const { return context_; }

private:
    const OrtApi& api_;
    OrtKernelContext* context_;
    const char* name_; // the operator's name
};

// Runs tasks on the session's intra-op threads (its option intra_op_num_threads).
class SessionPool : public Pool {
public:
    explicit SessionPool(const Context& context) : context_(context) {}

    void run(void (*task)(void*, size_t), size_t count, void* data) const override {
        check(context_.api().KernelContext_ParallelFor(context_.raw(), task, count, 0, data));
    }

private:
    const Context& context_;
};

template <class T>
constexpr ONNXTensorElementDataType element_type() {
    if constexpr (std::is_same_v<T, float>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    else if constexpr (std::is_same_v<T, bool>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    else if constexpr (std::is_same_v<T, int64_t>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    else if constexpr (std::is_same_v<T, int8_t>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    else if constexpr (std::is_same_v<T, uint8_t>)
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    else
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

// Defaults for operators: no attributes (kSolves adds epsilon and diagonal, kScales scale), outputs of T, no packing.
template <class T>
struct OperatorBase {
    static constexpr bool kSolves = false, kScales = false;
    static constexpr ONNXTensorElementDataType output_type(size_t) { return element_type<T>(); }
    static std::shared_ptr<const uint8_t> pack(const OrtApi&, const OrtKernelInfo*) { return nullptr; }
};

template <class T>
const KernelsOf<T>& kernels() {
    if constexpr (std::is_same_v<T, float>)
        return current_kernels().single;
    else
        return current_kernels().half;
}

} // namespace lucid
