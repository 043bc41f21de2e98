// onnxruntime's callbacks for an operator; the operators are in */onnxruntime.h.
#pragma once

#include "context.h"

#include <exception>

namespace lucid {

struct Instance {
    const OrtApi* api;
    Attributes attributes;
};

// The callbacks of one operator for one combination of types.
template <class Operator>
struct CustomOperator : OrtCustomOp {
    CustomOperator() : OrtCustomOp{} {
        version = kOrtApiVersion;
        GetName = [](const OrtCustomOp*) { return Operator::Table::kName; };
        GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; }; // the CPU
        GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return Operator::In::kCount; };
        GetInputType = [](const OrtCustomOp*, size_t index) { return Operator::input_type(index); };
        GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return Operator::Table::Out::kCount; };
        GetOutputType = [](const OrtCustomOp*, size_t index) { return Operator::output_type(index); };
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
        Attributes attributes;
        if (Operator::kSolves) {
            if (OrtStatus* status = api->KernelInfoGetAttribute_float(info, table::kEpsilon, &attributes.epsilon))
                return status;
            if (OrtStatus* status = read_diagonal(api, info, attributes.diagonal)) return status;
        }
        if (Operator::kScales)
            if (OrtStatus* status = api->KernelInfoGetAttribute_float(info, table::kScale, &attributes.scale))
                return status;
        return without_exceptions(*api, [&] {
            attributes.panels = Operator::pack(*api, info);
            *kernel = new Instance{api, attributes};
        });
    }

    // Calls `what` and returns its exception as a status; null if it throws none.
    template <class What>
    static OrtStatus* without_exceptions(const OrtApi& api, What what) {
        try {
            what();
        } catch (const Failure& failure) {
            return failure.status;
        } catch (const std::exception& error) { // out of memory
            return api.CreateStatus(ORT_FAIL, (std::string(table::kDomain) + ": " + error.what()).c_str());
        }
        return nullptr;
    }

    // Reads the attribute `diagonal`, which is optional: graphs with L_ii = 1 do not have it.
    static OrtStatus* read_diagonal(const OrtApi* api, const OrtKernelInfo* info, float& diagonal) {
        OrtStatus* missing = api->KernelInfoGetAttribute_float(info, table::kDiagonal, &diagonal);
        if (missing == nullptr && (diagonal == 0.0f || diagonal == 1.0f)) return nullptr;
        if (missing != nullptr) {
            api->ReleaseStatus(missing);
            diagonal = 0.0f;
            int64_t number = 0;
            OrtStatus* absent = api->KernelInfoGetAttribute_int64(info, table::kDiagonal, &number);
            if (absent != nullptr) {
                api->ReleaseStatus(absent);
                return nullptr;
            }
        }
        std::string message = std::string(Operator::Table::kName) + ": " + table::kDiagonal + " must be the float 0 or 1";
        return api->CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
    }

    static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
        const Instance& instance = *static_cast<Instance*>(kernel);
        return without_exceptions(*instance.api, [&] {
            Operator::compute(Context(*instance.api, context, Operator::Table::kName), instance.attributes);
        });
    }
};

} // namespace lucid
