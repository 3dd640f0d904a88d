// What the host knows of the CUDA executor: its table of kernels and how they are called. No CUDA
// header is needed to include this.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../cpu/block.h"

namespace fastdml {

// Where weights go: into the row itself, or as another type into a buffer of their own.
enum class WeightType : int { same = 0, bfloat16 = 1 };

struct Target {
  void* weights = nullptr;  // [rows, cols] of `type`, leading dimension ld; null: the row itself
  std::int64_t ld = 0;
  WeightType type = WeightType::same;
};

// One call over a block of rows. Pointers are device pointers, but for Block::parameters.
struct CudaCall {
  int device = 0;
  void* stream = nullptr;
  Target target;
  // Lists of rows with more positives than `short_list` do not fit in shared memory: they are visited
  // by a second, smaller launch whose blocks have `arena_values` values each in `arena`.
  void* arena = nullptr;
  std::int64_t arena_values = 0;
  int arena_blocks = 0;
};

// One loss compiled for CUDA. Both return null, or what went wrong.
struct CudaKernel {
  const char* (*f32)(const Block<float>&, const CudaCall&);
  const char* (*f64)(const Block<double>&, const CudaCall&);
  bool lists;       // whether it uses lists or arrays, and so may need an arena
  bool whole_rows;  // whether these are as long as a row
};

// Positives of a row whose lists fit in shared memory: as many values as kLongestList needs.
constexpr std::int64_t kShortList = kLongestList;

const CudaKernel* cuda_kernel(const Functor*);

// How the elements of a tensor are stored.
enum class Element : int { float32, float64, bfloat16, float16 };

// g -= x (g.x) scale^2, row by row: what remove_radial_ does. g and scale are float32, or float64
// where x is. Returns null, or what went wrong.
const char* cuda_remove_radial(void* g, const void* x, Element x_type, const void* scale,
                               std::int64_t rows, std::int64_t dim, std::int64_t ldx, int device,
                               void* stream);

}  // namespace fastdml
