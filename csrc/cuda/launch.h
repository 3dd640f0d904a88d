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

// Room for sorting all rows of a block at once. All null: that is not asked for.
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

// Positives of a row whose lists fit in shared memory: as many values as kLongestList needs.
constexpr std::int64_t kShortList = kLongestList;

// Rows with more positives have their lists in global memory, in launches of their own. The host does not
// know how many there are, nor how long: a first launch of many blocks takes those of moderate length, a
// second one the rest. A launch without a row costs a look at all rows' lengths.
constexpr int kLongLaunches = 2;
constexpr std::int64_t kModerateList = 1024;
struct LongLists {
  int blocks = 0;           // of the launch; 0: there is none
  std::int64_t values = 0;  // of memory for each of them
  std::int64_t most = 0;    // positives that it has room for
};

// Shared memory of a device, in bytes: of a processor, what the system takes of it for every block, and
// what a block may have.
struct SharedMemory {
  std::int64_t whole, reserved, most;
};
// Of a processor's, what rows are held in: the rest stays cache, where its blocks share class numbers
// and scales of columns.
constexpr std::int64_t shared_budget(std::int64_t whole) {
  constexpr std::int64_t cache = 32 << 10;
  return whole > 2 * cache ? whole - cache : whole / 2;
}
// Columns of a row that each of `blocks` on a processor keeps in shared memory beside the `used` bytes it
// needs anyway: whole vectors of 16 bytes. What it holds is read from the second cache once, whatever
// visits follow.
constexpr std::int64_t held_columns(const SharedMemory& of, std::int64_t blocks, std::int64_t used,
                                    std::int64_t cols, std::int64_t size) {
  if (blocks < 1) return 0;
  const std::int64_t each = shared_budget(of.whole) / blocks - of.reserved;
  const std::int64_t bytes = (each < of.most ? each : of.most) - used, row = cols * size;
  return bytes < 16 ? 0 : (bytes < row ? bytes : row) / 16 * 16 / size;
}

// Room for sorting a row in the block that takes it: two buffers of keys and their number.
constexpr std::int64_t sort_room(std::int64_t cols) { return 2 * cols + 2; }

// The launches for lists of up to `longest` values, and how many values of `size` bytes they share.
constexpr std::int64_t long_launches(LongLists (&launches)[kLongLaunches], std::int64_t longest,
                                     std::int64_t rows, std::int64_t cols, bool sorted,
                                     std::int64_t size) {
  constexpr std::int64_t bytes = 48 << 20, most_blocks = 128;
  std::int64_t before = kShortList, total = 0;
  for (int k = 0; k < kLongLaunches; ++k) {
    LongLists& launch = launches[k];
    launch.most = k + 1 < kLongLaunches && kModerateList < longest ? kModerateList : longest;
    if (launch.most <= before) continue;
    before = launch.most;
    launch.values = arena_size(launch.most, 0) + (sorted ? sort_room(cols) : 0);
    const std::int64_t fit = bytes / (launch.values * size), most = rows < most_blocks ? rows : most_blocks;
    launch.blocks = static_cast<int>(fit < 1 ? 1 : fit < most ? fit : most);
    if (total < launch.blocks * launch.values) total = launch.blocks * launch.values;
  }
  return total;
}

// One call over a block of rows. Pointers are device pointers, but for Block::parameters.
struct CudaCall {
  int device = 0;
  void* stream = nullptr;
  Target target;
  void* arena = nullptr;  // the memory of each of the launches for long lists
  LongLists long_lists[kLongLaunches];
  Sorting sorting;
};

// One loss compiled for CUDA. Both return null, or what went wrong.
struct CudaKernel {
  const char* (*f32)(const Block<float>&, const CudaCall&);
  const char* (*f64)(const Block<double>&, const CudaCall&);
  bool lists;       // whether it uses lists or arrays, and so may need an arena
  bool whole_rows;  // whether these are as long as a row
  // With these parameters: keys that all rows are sorted by first, and whether rows with long lists are.
  int (*sorts)(const double* parameters);
  bool (*sorts_long)(const double* parameters);
  bool columns;  // whether it asks which columns keys came from
};

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
