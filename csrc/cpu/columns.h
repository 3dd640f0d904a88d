// Statistics of columns from blocks of rows: lanes are columns, and rows are folded in one after another.
// For functors that say how (`gather` in rows/row.h).
#pragma once
#include "row.h"

namespace fastdml {
inline namespace FASTDML_ISA {

constexpr int kGathered = 8;  // rows folded in at once, which stay in registers

// What a functor may ask of the call while it gathers.
template <class T>
struct Call {
  const Block<T>& block;
  FASTDML_FN T scalar(int k) const { return block.scalars[k]; }
};

// Columns [begin, end) of a block of products; b.loss is [outputs, cols]. state [gathered, cols] is
// what earlier blocks have left; first: none has.
template <class T, class Loss>
void gather_columns(const Loss& loss, const Block<T>& b, std::int64_t begin, std::int64_t end, T* state,
                    bool first) {
  using V = Vector<T>;
  using M = Mask<T>;
  using I = typename Lane<T>::I;
  constexpr int W = kWidth<T>, R = kGathered, K = Loss::gathered;
  typedef std::int32_t C __attribute__((vector_size(W * 4)));
  const auto fold = loss.gather(Call<T>{b});
  const auto lanes = [&](std::int64_t j) { return end - j < W ? static_cast<int>(end - j) : W; };
  for (std::int64_t i = 0; i < b.rows; i += R) {
    const int rows = b.rows - i < R ? static_cast<int>(b.rows - i) : R;
    for (std::int64_t j = begin; j < end; j += W) {
      const int count = lanes(j);
      const V scale = b.col_scale ? load(b.col_scale + j, count) : broadcast<T>(T(1));
      C column_class{};
      std::memcpy(&column_class, b.col_class + j, count * 4);
      Values<V, K> column = Loss::template nothing<V>();
      if (!first || i > 0)
        for (int k = 0; k < K; ++k) column[k] = load(state + k * b.cols + j, count);
      Pairs<T> pair[R];
      for (int r = 0; r < R; ++r) {
        // Rows beyond the last are neither positives nor negatives.
        const std::int64_t row = r < rows ? i + r : i;
        const T by = b.row_scale ? b.row_scale[row] : T(1);
        const M same = __builtin_convertvector(column_class == b.row_class[row], M);
        const M exists = M{} - static_cast<I>(r < rows);
        pair[r] = {load(b.s + row * b.ld + j, count) * (scale * by), same & exists, ~same & exists,
                   nullptr, nullptr, j, count};
      }
      column = fold(column, pair);
      for (int k = 0; k < K; ++k) store(state + k * b.cols + j, column[k], count);
    }
  }
  for (std::int64_t j = begin; j < end; j += W) {
    const int count = lanes(j);
    Values<V, K> column;
    for (int k = 0; k < K; ++k) column[k] = load(state + k * b.cols + j, count);
    const auto found = loss.gathered_outputs(column);
    constexpr int outputs = sizeof(found) / sizeof(V);
    for (int k = 0; k < outputs; ++k) store(b.loss + k * b.cols + j, found[k], count);
  }
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
