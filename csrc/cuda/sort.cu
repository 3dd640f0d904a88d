// Rows sorted by CUB, which comes with the toolkit; compiled once for all losses.
//
// The segmented radix sort, not DeviceSegmentedSort: that one copies the sizes of its groups of segments
// to the host and waits for them, which a CUDA graph cannot hold, and promises no order of equal keys.
// Its advantage is in segments of unequal and of moderate sizes; rows are all of one size, mostly of
// thousands of pairs. A row is one thread block's in every pass over six or so bits. With both buffers
// lent it takes next to no memory of its own.
#include <cub/device/device_segmented_radix_sort.cuh>

#include <iterator>
#include <limits>

#include "device.cuh"
#include "launch.h"

namespace fastdml {
namespace {

// Where rows begin.
struct Starts {
  using iterator_category = std::random_access_iterator_tag;
  using value_type = int;
  using difference_type = int;
  using pointer = const int*;
  using reference = int;
  int cols, first;
  __host__ __device__ int operator[](int row) const { return (row + first) * cols; }
};

template <class Key>
cudaError_t sort_rows(SegmentedSort& s, cudaStream_t stream) {
  // CUB counts items in an int: rows beyond that are another call.
  const std::int64_t most = std::numeric_limits<int>::max() / (s.cols > 0 ? s.cols : 1);
  for (std::int64_t begin = 0; begin < s.rows; begin += most) {
    const std::int64_t at = begin * s.cols;
    const int rows = static_cast<int>(s.rows - begin < most ? s.rows - begin : most);
    const int cols = static_cast<int>(s.cols);
    const Starts from{cols, 0}, to{cols, 1};
    constexpr int bits = 8 * sizeof(Key);
    cub::DoubleBuffer<Key> keys(static_cast<Key*>(s.keys[0]) + at, static_cast<Key*>(s.keys[1]) + at);
    cudaError_t error;
    if (s.columns[0]) {
      cub::DoubleBuffer<std::int32_t> columns(s.columns[0] + at, s.columns[1] + at);
      error = cub::DeviceSegmentedRadixSort::SortPairs(s.temporary, s.temporary_bytes, keys, columns,
                                                       rows * cols, rows, from, to, 0, bits, stream);
    } else {
      error = cub::DeviceSegmentedRadixSort::SortKeys(s.temporary, s.temporary_bytes, keys, rows * cols,
                                                      rows, from, to, 0, bits, stream);
    }
    if (error != cudaSuccess) return error;
    s.sorted = keys.selector;  // as many passes for all
    if (!s.temporary) break;
  }
  return cudaSuccess;
}

}  // namespace

const char* cuda_sort_rows(SegmentedSort& s, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return text_of(s.key_bytes == 4 ? sort_rows<std::uint32_t>(s, on) : sort_rows<std::uint64_t>(s, on));
}

}  // namespace fastdml
