// The CUDA driver, loaded when first needed: the plugin library itself loads on machines without a GPU.
#pragma once

#include <cuda.h>

#include <string>

namespace lucid
{

//! Entry points of libcuda that the plugins use.
struct CudaDriver
{
    decltype(&::cuCtxGetCurrent) ctxGetCurrent;
    decltype(&::cuCtxGetId) ctxGetId;
    decltype(&::cuCtxGetDevice) ctxGetDevice;
    decltype(&::cuDeviceGetAttribute) deviceGetAttribute;
    decltype(&::cuModuleLoadData) moduleLoadData;
    decltype(&::cuModuleGetFunction) moduleGetFunction;
    decltype(&::cuFuncSetAttribute) funcSetAttribute;
    decltype(&::cuMemsetD8Async) memsetD8Async;
    decltype(&::cuLaunchKernel) launchKernel;
    decltype(&::cuGetErrorString) getErrorString;

    //! Loads libcuda.so.1 on the first call. Throws std::runtime_error when it or one of its functions is missing.
    static CudaDriver const& get();

    //! Unless `result` is CUDA_SUCCESS, throws std::runtime_error with `what` and the driver's own message.
    void check(CUresult result, std::string const& what) const;
};

} // namespace lucid
