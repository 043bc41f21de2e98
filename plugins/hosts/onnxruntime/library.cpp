// What the library exports.

#include "operators.h"

#include "hosts/operators_generated.h"

#include <string>

#define LUCID_EXPORT extern "C" __attribute__((visibility("default")))

LUCID_EXPORT int lucidOrtAbi() { return LUCID_ORT_ABI; }

LUCID_EXPORT const char* lucidOrtKernels() { return lucid::current_kernels().name; }

// 1 when these kernels multiply bytes with instructions for it, 0 when quantized_matmul is plain C++.
LUCID_EXPORT int lucidOrtHasDots() { return lucid::current_kernels().has_dots(); }

// 1 when the kernels of that name were chosen, 0 when this processor cannot run them or there are none.
LUCID_EXPORT int lucidOrtSelectKernels(const char* name) { return lucid::select_kernels(name); }

static std::string failure_text(const char* what) {
    return std::string("The operators of ") + lucid::table::kDomain + what;
}

// onnxruntime calls it for register_custom_ops_library.
LUCID_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(lucid::kOrtApiVersion);
    if (api == nullptr) { // no table, so no status either: take the oldest table, whose first entry makes statuses
        const OrtApi* oldest = base->GetApi(1);
        return oldest->CreateStatus(ORT_FAIL, failure_text(" need onnxruntime 1.18 or later.").c_str());
    }
    static OrtCustomOpDomain* domain = nullptr; // sessions refer to it, so it stays
    static OrtStatus* failure = [api]() -> OrtStatus* {
        if (OrtStatus* status = api->CreateCustomOpDomain(lucid::table::kDomain, &domain)) return status;
        for (const OrtCustomOp* op : lucid::custom_operators())
            if (OrtStatus* status = api->CustomOpDomain_Add(domain, op)) return status;
        return nullptr;
    }();
    if (failure != nullptr) return api->CreateStatus(ORT_FAIL, failure_text(" cannot be registered.").c_str());
    return api->AddCustomOpDomain(options, domain);
}
