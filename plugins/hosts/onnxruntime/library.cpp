// The functions that the library exports.

#include "operators.h"

#include "operators_generated.h"

#include <string>

#define LUCID_EXPORT extern "C" __attribute__((visibility("default")))

LUCID_EXPORT int lucidOrtAbi() { return LUCID_ORT_ABI; }

LUCID_EXPORT const char* lucidOrtKernels() { return lucid::current_kernels().name; }

// 1 if quantized_matmul uses AVX2 or AVX-512 VNNI, 0 if it is plain C++.
LUCID_EXPORT int lucidOrtHasDots() { return lucid::current_kernels().has_dots(); }

// 1 if the kernels of that name were chosen, 0 if there are none or this processor cannot run them.
LUCID_EXPORT int lucidOrtSelectKernels(const char* name) { return lucid::select_kernels(name); }

static std::string failure_text(const char* what) {
    return std::string("The operators of ") + lucid::table::kDomain + what;
}

// Called by onnxruntime for SessionOptions.register_custom_ops_library.
LUCID_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(lucid::kOrtApiVersion);
    if (api == nullptr) { // the runtime is older: version 1 of the API, which it has, creates the error
        const OrtApi* oldest = base->GetApi(1);
        return oldest->CreateStatus(ORT_FAIL, failure_text(" need onnxruntime 1.18 or later.").c_str());
    }
    static OrtCustomOpDomain* domain = nullptr; // sessions refer to it, so it is never freed
    static OrtStatus* failure = [api]() -> OrtStatus* {
        if (OrtStatus* status = api->CreateCustomOpDomain(lucid::table::kDomain, &domain)) return status;
        for (const OrtCustomOp* op : lucid::custom_operators())
            if (OrtStatus* status = api->CustomOpDomain_Add(domain, op)) return status;
        return nullptr;
    }();
    if (failure != nullptr) return api->CreateStatus(ORT_FAIL, failure_text(" cannot be registered.").c_str());
    return api->AddCustomOpDomain(options, domain);
}
