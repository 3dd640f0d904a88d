// The threads that share a row. A row needs no more of the device than this: who am I, a barrier, a value
// from another lane of the warp, and whether one of all says yes. tests/cuda/emulator.h has the same for a host compiler.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kMaxFold = 16;  // values folded at once
// Shared values a team needs for folding, twice: while one half is read the other may be written.
constexpr int kScratch = 2 * kMaxFold * kMaxWarps;

#if defined(__CUDACC__)
// All threads of a block: a multiple of the warp.
struct BlockTeam {
  __device__ __forceinline__ int thread() const { return threadIdx.x; }
  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  template <class T>
  __device__ __forceinline__ T from_lane(T v, int mask) const {
    return __shfl_xor_sync(0xffffffffu, v, mask);
  }
  __device__ __forceinline__ bool any(bool m) const { return __syncthreads_or(m); }
};
#endif

}  // namespace FASTDML_ISA
}  // namespace fastdml
