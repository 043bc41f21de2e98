// Our operators as onnxruntime's custom operators.
#pragma once

#include "kernels.h"
#include "ort_abi.h"

#include <vector>

namespace lucid {

// The oldest API version with all functions used here, of onnxruntime 1.18; every later release provides it too.
constexpr uint32_t kOrtApiVersion = 18;

// Returns our operators for all their types; they live as long as the library.
const std::vector<const OrtCustomOp*>& custom_operators();

// The kernels that operators run: by default the fastest that the processor supports.
const Kernels& current_kernels();

// Chooses kernels by name; false if there are none of that name or the processor lacks their instructions.
bool select_kernels(const char* name);

} // namespace lucid
