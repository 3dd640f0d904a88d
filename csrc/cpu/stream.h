// Losses over one set, fed by rows and by columns: a pair is visited once for both its ends.
//
// A block is a trapezoid: rows [first, first + rows) against all columns from `first` on, of which those
// beyond a row's own count; of a pass among positives, against those up to the last that has one. The
// statistics of row i gather from its columns, those of column j, which is a row too, from the rows that pass.
#pragma once
#include "block.h"

namespace fastdml {

template <class T>
struct Trapezoid {
  // s [rows, cols], products in and weights out, and what they are products of: scales, squares, embeddings
  // of the rows are those of the columns, from sample `first` on.
  Block<T> block;
  std::int64_t first = 0;          // row 0 and column 0 are this sample
  std::int64_t samples = 0;        // N
  const std::int32_t* classes = nullptr;  // [cols], from `first` on; or null:
  const std::uint8_t* codes = nullptr;    // [rows, cols], sums of `Code`s of the pairs
  bool own = false;                // whether a sample's pair with itself counts
  const T* known = nullptr;        // [reads, N]: what the pass, or the weight, reads of a row
  const T* col_values = nullptr;   // [columns, N]: what it reads of a candidate
  T* partial = nullptr;            // [pieces, statistics, N]: what each piece has gathered so far
  std::int64_t pieces = 1;
  const T* row_weight = nullptr;   // [N] or null: of the rows in the result
  T weight = T(1);                 // times this
};

// What the pair of row i and column j is in the row of i, and in that of j; neither: it does not count.
enum Code : std::uint8_t { positive = 1, negative = 2, positive_of_column = 4, negative_of_column = 8 };

// The rows' side of it: statistics [all, N] to what a pass reads of a row, or to the results.
template <class T>
struct RowNumbers {
  std::int64_t samples = 0;
  const T* statistics = nullptr;
  const T* scalars = nullptr;
  const T* row_values = nullptr;  // [N, row_count]
  std::int64_t row_count = 0;
  const T* weights = nullptr;     // [N, outputs] of several outputs
  T weight = T(1);                // times this
  T candidates = T(0);            // pairs of a row
  const T* counts = nullptr;      // [N] or null: of each row
  const double* parameters = nullptr;
  T* known = nullptr;             // out [reads, N]
  T* loss = nullptr;              // out [N, outputs]
  T* d_scalars = nullptr;         // out [N, scalar_count], or null
  std::int64_t scalar_count = 0;
  T* d_row_values = nullptr;      // out [N, row_count], or null
};

constexpr int kMostPasses = 4;

template <class T>
struct StreamOf {
  void (*fold)(const Trapezoid<T>&, int pass, std::int64_t piece);
  void (*merge)(const T* partial, std::int64_t pieces, std::int64_t samples, int pass, T* statistics);
  void (*begin)(T* partial, std::int64_t pieces, std::int64_t samples, int pass);
  void (*next)(const RowNumbers<T>&, int pass, std::int64_t from, std::int64_t to);
  void (*result)(const RowNumbers<T>&, std::int64_t from, std::int64_t to);
  void (*weigh)(const Trapezoid<T>&, std::int64_t piece);
};

struct Stream {
  StreamOf<float> f32;
  StreamOf<double> f64;
  int parameters, outputs, passes;
  // Of each pass; and last the values of a candidate by which there are derivatives: a pass that gathers
  // those of columns, weighted, once everything is known of the rows.
  int statistics[kMostPasses + 1];
  int reads[kMostPasses + 1];   // of each pass, and of the weight
};

// One that was compiled with the library, by what its text was called, for every instruction set; null where
// it has none.
struct BuiltStream {
  const char* key;
  const Stream* const* of;
};
int built_stream_count();
const BuiltStream& built_stream(int id);

// The number of a stream that lives as long as the process; -1 where there are too many.
int add_stream(const Stream* stream);
const Stream* stream_of(std::int64_t id);  // null: none has that number

}  // namespace fastdml
