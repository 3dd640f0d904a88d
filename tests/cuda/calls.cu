// The host's side of a launch over a runtime whose calls are the linker's (--wrap): they count, one of them
// fails, and the error stays until somebody takes it. Nothing is launched: there are no blocks.
#include <cstdio>

#define FASTDML_ISA cuda
#define FASTDML_LISTS 0
#define FASTDML_DISTANCES 0
#include "cuda/instantiate.cuh"
#include "rows/row.h"

namespace {

template <class T>
struct Plain {
  T scale;
  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const auto [sum] = row.reduce([](auto p) { return fastdml::cuda::values(p.s); }, fastdml::cuda::Sum{});
    row.map([](auto p) { return p.s; });
    return sum;
  }
};

constexpr int kMost = 200000;
int calls, failing;
cudaError_t last;
bool lowered;

cudaError_t answer() {
  if (calls++ != failing) return cudaSuccess;
  return last = cudaErrorInvalidValue;
}

}  // namespace

extern "C" {
cudaError_t __wrap_cudaGetDevice(int* device) {
  *device = 0;
  return answer();
}
cudaError_t __wrap_cudaSetDevice(int) { return answer(); }
cudaError_t __wrap_cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrReservedSharedMemoryPerBlock ? 1024 : kMost;
  return answer();
}
cudaError_t __wrap_cudaFuncSetAttribute(const void*, cudaFuncAttribute what, int value) {
  if (what == cudaFuncAttributeMaxDynamicSharedMemorySize) lowered |= value != kMost;
  return answer();
}
cudaError_t __wrap_cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                           size_t, unsigned) {
  *blocks = 1;
  return answer();
}
cudaError_t __wrap_cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
}

int main() {
  using namespace fastdml;
  Block<float> b;
  b.cols = 1 << 15;
  CudaCall call;
  call.device = 1;
  for (failing = 0;; ++failing) {
    calls = 0, last = cudaSuccess;
    const char* error = nullptr;
    {
      const OnDevice guard(call.device);
      error = guard.error();
      if (!error) error = cuda::launch_rows<float, Plain, false>(b, call, {}, {}, {}, 0, 32);
    }
    const bool failed = failing < calls;
    if (last != cudaSuccess) std::printf("the error of call %d is left\n", failing);
    // The last one puts the thread's device back.
    if (failing < calls - 1 && !error) std::printf("call %d failed in silence\n", failing);
    if (!failed) break;
  }
  if (calls < 9) std::printf("only %d calls\n", calls);
  if (lowered) std::printf("shared memory is bounded by what a launch needs\n");
}
