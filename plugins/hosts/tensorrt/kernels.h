// The compiled kernels that the build embedded, and how they are chosen, loaded and launched.
#pragma once

#include "cuda_driver.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace lucid
{

//! One embedded module with one function. `arch` is 90 for compute capability 9.0.
struct Kernel
{
    char const* variant;
    int32_t arch;
    bool isPtx; //!< PTX, which the driver compiles; runs on `arch` and newer devices
    char const* entry;
    int32_t sharedBytes;
    int32_t numWarps;
    int32_t blockM; //!< 0 if the kernel has none
    int32_t blockN; //!< 0 if the kernel has none
    bool int8; //!< whether the solve splits E into bfloat16 and int8
    size_t offset; //!< offset of the module in the embedded data
};

//! Where a kernel is launched: the CUDA context and the device's compute capability.
struct Device
{
    unsigned long long contextId;
    int32_t arch;

    //! The calling thread's current context. Throws std::runtime_error when there is none or the driver fails.
    static Device current();
};

//! Returns the best kernel of `variant` for a device: machine code for it, else for an older 8.x, else PTX.
//! Throws std::runtime_error if the library has none.
Kernel const& findKernel(std::string const& variant, int32_t arch);

//! Whether a device can run some kernel with `part` in its variant's name, such as "_float16_d64_u".
bool hasKernel(std::string const& part, int32_t arch);

using Argument = std::variant<CUdeviceptr, int32_t, float>;

//! One kernel launch; the same numbers as a Step of shared/plan.py.
struct Step
{
    Kernel const* kernel;
    std::array<uint32_t, 3> grid;
    std::vector<Argument> arguments;
};

//! Loads the modules of `steps` into the context, once for each context.
void prepare(std::vector<Step> const& steps, Device const& device);

//! Launches the steps in order. Throws std::runtime_error if the driver reports an error.
void launch(std::vector<Step> const& steps, Device const& device, CUstream stream);

} // namespace lucid
