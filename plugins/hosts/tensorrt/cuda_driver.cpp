#include "cuda_driver.h"

#include <dlfcn.h>

#include <stdexcept>

namespace lucid
{
namespace
{

template <typename Function>
void load(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
    {
        throw std::runtime_error(std::string("libcuda.so.1 has no ") + name + ": update the NVIDIA driver");
    }
}

CudaDriver loadDriver()
{
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        throw std::runtime_error("running needs an NVIDIA driver: libcuda.so.1 cannot be loaded");
    }
    CudaDriver driver{};
    load(library, "cuCtxGetCurrent", driver.ctxGetCurrent);
    load(library, "cuCtxGetId", driver.ctxGetId);
    load(library, "cuCtxGetDevice", driver.ctxGetDevice);
    load(library, "cuDeviceGetAttribute", driver.deviceGetAttribute);
    load(library, "cuModuleLoadData", driver.moduleLoadData);
    load(library, "cuModuleGetFunction", driver.moduleGetFunction);
    load(library, "cuFuncSetAttribute", driver.funcSetAttribute);
    load(library, "cuMemsetD8Async", driver.memsetD8Async);
    load(library, "cuLaunchKernel", driver.launchKernel);
    load(library, "cuGetErrorString", driver.getErrorString);
    return driver;
}

} // namespace

CudaDriver const& CudaDriver::get()
{
    static CudaDriver const driver = loadDriver(); // a throw leaves it unset: the next call tries again
    return driver;
}

void CudaDriver::check(CUresult result, std::string const& what) const
{
    if (result == CUDA_SUCCESS)
    {
        return;
    }
    char const* text = nullptr;
    if (getErrorString(result, &text) != CUDA_SUCCESS || text == nullptr)
    {
        text = "unknown error";
    }
    throw std::runtime_error(what + " failed: " + text + " (" + std::to_string(static_cast<int>(result)) + ")");
}

} // namespace lucid
