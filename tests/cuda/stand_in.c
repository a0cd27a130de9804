/* A stand-in for NVIDIA's driver: what Taichi 1.7.4 calls of libcuda.so, for a GPU of compute capability 8.6 that computes
 * nothing. Every module that is to be loaded is written to $PTX_FOLDER. Device memory is the host's, all zeros. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARED_MEMORY = 8, THREADS = 1, WARP = 10, PROCESSORS = 16, MAJOR = 75, MINOR = 76, MOST_SHARED = 97 };
#define DOES_NOTHING(name) int name(void) { return 0; }
#define HANDLE(name) int name(void **handle) { *handle = (void *)1; return 0; }

DOES_NOTHING(cuInit)
DOES_NOTHING(cuCtxSetCurrent)
DOES_NOTHING(cuCtxSetLimit)
DOES_NOTHING(cuMemAdvise)
DOES_NOTHING(cuMemPoolSetAttribute)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuStreamSynchronize)
DOES_NOTHING(cuEventDestroy)
DOES_NOTHING(cuEventRecord)
DOES_NOTHING(cuEventSynchronize)
DOES_NOTHING(cuImportExternalMemory)
DOES_NOTHING(cuImportExternalSemaphore)
DOES_NOTHING(cuExternalMemoryGetMappedBuffer)
DOES_NOTHING(cuExternalMemoryGetMappedMipmappedArray)
DOES_NOTHING(cuMipmappedArrayGetLevel)
DOES_NOTHING(cuSurfObjectCreate)
DOES_NOTHING(cuSignalExternalSemaphoresAsync)
DOES_NOTHING(cuWaitExternalSemaphoresAsync)
DOES_NOTHING(cuLaunchKernel)
HANDLE(cuCtxCreate_v2)
HANDLE(cuDevicePrimaryCtxRetain)
HANDLE(cuCtxGetCurrent)
HANDLE(cuDeviceGetDefaultMemPool)
HANDLE(cuStreamCreate)
HANDLE(cuEventCreate)

int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device) { *device = 0; return 0; }
int cuDeviceGetName(char *name, int size) { snprintf(name, size, "stand-in"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes) { *bytes = 8ull << 30; return 0; }
int cuMemGetInfo_v2(size_t *free_, size_t *total) { *free_ = *total = 8ull << 30; return 0; }
int cuEventElapsedTime(float *milliseconds) { *milliseconds = 1; return 0; }
int cuFuncGetAttribute(int *value) { *value = 1; return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks) { *blocks = 2; return 0; }
int cuPointerGetAttribute(void) { return 1; } /* not a device pointer */
int cuGetErrorName(int error, const char **name) { *name = "error"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "error"; return 0; }

int cuDeviceGetAttribute(int *value, int attribute) {
    switch (attribute) {
    case THREADS: *value = 1024; break;
    case SHARED_MEMORY: *value = 48 << 10; break;
    case MOST_SHARED: *value = 99 << 10; break;
    case WARP: *value = 32; break;
    case PROCESSORS: *value = 80; break;
    case MAJOR: *value = 8; break;
    case MINOR: *value = 6; break;
    default: *value = 1;
    }
    return 0;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    *address = (uint64_t)calloc(1, size);
    return *address ? 0 : 2;
}
int cuMemAllocAsync(uint64_t *address, size_t size) { return cuMemAlloc_v2(address, size); }
int cuMemAllocManaged(uint64_t *address, size_t size) { return cuMemAlloc_v2(address, size); }
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
int cuMemFreeAsync(uint64_t address) { return cuMemFree_v2(address); }
int cuMemcpyHtoD_v2(void *to, const void *from, size_t size) { memcpy(to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, const void *from, size_t size) { return cuMemcpyHtoD_v2(to, from, size); }
int cuMemcpyDtoD_v2(void *to, const void *from, size_t size) { return cuMemcpyHtoD_v2(to, from, size); }
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size) { return cuMemcpyHtoD_v2(to, from, size); }
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size) { return cuMemcpyHtoD_v2(to, from, size); }
int cuMemsetD8_v2(void *to, unsigned char value, size_t size) { memset(to, value, size); return 0; }
int cuMemsetD32_v2(uint32_t *to, unsigned value, size_t size) {
    for (size_t i = 0; i < size; i++) to[i] = value;
    return 0;
}

int cuModuleLoadDataEx(void **module, const char *ptx) {
    static int modules;
    char name[4096];
    snprintf(name, sizeof name, "%s/%04d.ptx", getenv("PTX_FOLDER"), modules++);
    FILE *file = fopen(name, "w");
    if (!file || fputs(ptx, file) < 0 || fclose(file)) return 1;
    *module = (void *)1;
    return 0;
}
int cuModuleGetFunction(void **function) { *function = (void *)1; return 0; }
