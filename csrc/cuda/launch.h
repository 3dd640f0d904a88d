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

// Keys that a row may be sorted by.
constexpr int kMostSorts = 2;

// Room for sorting the rows of a block: what sort_room() says for as many keys. All null: no row is sorted.
struct Sorting {
  // [rows, cols] each, of integers as wide as a value: one for every key, and one to sort with.
  void* keys[kMostSorts + 1] = {};
  std::int32_t* columns[kMostSorts + 1] = {};  // the same, where columns are asked for
  std::int32_t* kept = nullptr;                // [kMostSorts, rows]
  void* temporary = nullptr;
  std::size_t temporary_bytes = 0;
};

// Bytes per pair that sorting rows takes.
constexpr std::int64_t sort_bytes(int sorts, bool columns, std::int64_t value) {
  return sorts == 0 ? 0 : (sorts + 1) * (value + (columns ? 4 : 0));
}

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
  Sorting sorting;
};

// One loss compiled for CUDA. Both return null, or what went wrong.
struct CudaKernel {
  const char* (*f32)(const Block<float>&, const CudaCall&);
  const char* (*f64)(const Block<double>&, const CudaCall&);
  bool lists;       // whether it uses lists or arrays, and so may need an arena
  bool whole_rows;  // whether these are as long as a row
  int (*sorts)(const double* parameters);  // keys that rows are sorted by first, with these parameters
  bool columns;                            // and whether it asks which columns they came from
};

// Positives of a row whose lists fit in shared memory: as many values as kLongestList needs.
constexpr std::int64_t kShortList = kLongestList;

const CudaKernel* cuda_kernel(const Functor*);

// Sorts every row of `keys` [rows, cols], 4 or 8 bytes each, ascending; `columns` go along, if there are
// any, those of equal keys in the order they had. The second of both is room; `sorted` says which holds the result.
// With no `temporary` nothing is done but to say how many bytes that needs.
struct SegmentedSort {
  void* keys[2] = {};
  std::int32_t* columns[2] = {};
  std::int64_t rows = 0, cols = 0;
  int key_bytes = 4;
  void* temporary = nullptr;
  std::size_t temporary_bytes = 0;
  int sorted = 0;
};
const char* cuda_sort_rows(SegmentedSort& sort, void* stream);

// How the elements of a tensor are stored.
enum class Element : int { float32, float64, bfloat16, float16 };

// g -= x (g.x) scale^2, row by row: what remove_radial_ does. g and scale are float32, or float64
// where x is. Returns null, or what went wrong.
const char* cuda_remove_radial(void* g, const void* x, Element x_type, const void* scale,
                               std::int64_t rows, std::int64_t dim, std::int64_t ldx, int device,
                               void* stream);

}  // namespace fastdml
