/* A stand-in for libcuda.so.1 that writes every call to STUB_CUDA_LOG, one JSON object a line.
 *
 * An embedded "module" is the text "VARIANT ARCH SIGNATURE"; the signature has one letter for each kernel argument:
 * p pointer, i int32, f float. STUB_CUDA_ARCH is the compute capability (90); a function named in STUB_CUDA_FAIL fails.
 */
#include <cuda.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long long context_id = 1;

static FILE* log_file(void)
{
    static FILE* file;
    if (file == NULL)
    {
        file = fopen(getenv("STUB_CUDA_LOG"), "w");
        setvbuf(file, NULL, _IOLBF, 0);
    }
    return file;
}

static CUresult result_of(char const* function)
{
    char const* failing = getenv("STUB_CUDA_FAIL");
    return failing != NULL && strcmp(failing, function) == 0 ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

void stub_set_context(unsigned long long id)
{
    context_id = id;
}

CUresult cuGetErrorString(CUresult error, char const** text)
{
    (void) error;
    *text = "stand-in error";
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context)
{
    *context = (CUcontext) (uintptr_t) context_id;
    return result_of("cuCtxGetCurrent");
}

CUresult cuCtxGetId(CUcontext context, unsigned long long* id)
{
    *id = (unsigned long long) (uintptr_t) context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device)
{
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device)
{
    int const arch = atoi(getenv("STUB_CUDA_ARCH"));
    (void) device;
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? arch / 10 : arch % 10;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, void const* image)
{
    *module = (CUmodule) strdup((char const*) image);
    fprintf(log_file(), "{\"call\": \"load\", \"context\": %llu, \"image\": \"%s\"}\n", context_id, (char const*) image);
    return result_of("cuModuleLoadData");
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, char const* name)
{
    *function = (CUfunction) module;
    fprintf(log_file(), "{\"call\": \"function\", \"name\": \"%s\"}\n", name);
    return result_of("cuModuleGetFunction");
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
    (void) function;
    fprintf(log_file(), "{\"call\": \"attribute\", \"attribute\": %d, \"value\": %d}\n", (int) attribute, value);
    return result_of("cuFuncSetAttribute");
}

CUresult cuMemsetD8Async(CUdeviceptr pointer, unsigned char value, size_t bytes, CUstream stream)
{
    fprintf(log_file(), "{\"call\": \"memset\", \"pointer\": %llu, \"value\": %d, \"bytes\": %zu, \"stream\": %llu}\n",
        (unsigned long long) pointer, value, bytes, (unsigned long long) (uintptr_t) stream);
    return result_of("cuMemsetD8Async");
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** arguments, void** extra)
{
    char const* signature = strrchr((char const*) function, ' ') + 1;
    FILE* file = log_file();
    (void) extra;
    fprintf(file, "{\"call\": \"launch\", \"image\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], ",
        (char const*) function, grid_x, grid_y, grid_z, block_x, block_y, block_z);
    fprintf(file, "\"shared\": %u, \"stream\": %llu, \"arguments\": [", shared, (unsigned long long) (uintptr_t) stream);
    for (int i = 0; signature[i] != '\0'; ++i)
    {
        fprintf(file, i == 0 ? "" : ", ");
        switch (signature[i])
        {
        case 'p': fprintf(file, "%llu", *(unsigned long long*) arguments[i]); break;
        case 'i': fprintf(file, "%d", *(int32_t*) arguments[i]); break;
        default: fprintf(file, "%.9g", *(float*) arguments[i]);
        }
    }
    fprintf(file, "]}\n");
    return result_of("cuLaunchKernel");
}
