// What the executor hands to a row functor: a block of rows, as plain pointers.
#pragma once
#include <cstdint>

namespace fastdml {

// How a product x.y becomes what the functor sees, and the functor's derivative a weight of x.y.
enum class Metric : int { product = 0, squared_distance = 1, distance = 2 };

// Embeddings as they are stored: row i begins at x + i * row, its values are `step` apart.
template <class T>
struct Embeddings {
  const T* x = nullptr;
  std::int64_t row = 0, step = 1;
};

template <class T>
struct Block {
  T* s = nullptr;               // [rows, cols], leading dimension ld: products in, weights out
  std::int64_t rows = 0, cols = 0, ld = 0;
  const T* teacher = nullptr;   // a second matrix over the same pairs, or null
  std::int64_t teacher_ld = 0;
  const T* row_scale = nullptr; // [rows] and [cols]: a product is scaled by row_scale[i] * col_scale[j]
  const T* col_scale = nullptr; // on the way in, its weight on the way out; both or neither
  Metric metric = Metric::product;
  const T* row_square = nullptr;  // distances: squared norms of the (scaled) embeddings, [rows]
  const T* col_square = nullptr;  // and [cols]
  T epsilon = T(0);               // distances: added under the root
  // Distances: the embeddings [rows, dim] and [cols, dim], from whose differences those of near pairs are
  // made again (differences.h), or null.
  Embeddings<T> anchors, candidates;
  std::int64_t dim = 0;
  const std::int32_t* row_class = nullptr;    // [rows]
  const std::int32_t* col_class = nullptr;    // [cols]; equal classes make a positive pair
  const std::int32_t* class_start = nullptr;  // [classes + 1] into class_order: the columns of each
  const std::int32_t* class_order = nullptr;  // class, in ascending order (for threshold lists)
  // Which column is row i's own copy, which is taken out: own[i], or i + own_offset; -1 or no such column:
  // none is.
  std::int64_t own_offset = -1;
  const std::int32_t* own = nullptr;          // [rows]
  const T* row_weight = nullptr;              // [rows, outputs] weight of every output in the result,
  T weight = T(1);                            // or null for 1; times this
  const T* scalars = nullptr;                 // values that every row reads
  const T* row_values = nullptr;              // [rows, row_count] values of a row
  const T* col_values = nullptr;              // [col_count, cols] values of a column
  std::int64_t row_count = 0;
  T* loss = nullptr;                          // [rows, outputs] out
  T* d_scalars = nullptr;                     // [rows, scalar_count] out: derivatives by the scalars
  T* d_row_values = nullptr;                  // [rows, row_count] out
  std::int64_t scalar_count = 0;
  T* d_columns = nullptr;                     // [count, rows, cols] out: of the row's loss by the values of its
                                              // candidates, of which there are none for a row's own copy
  bool gradient = true;                       // false: s need not become weights
  bool seen = false;                          // s is what a call without a gradient has left there: on
                                              // the CPU, what the functor sees; on CUDA, products
  const double* parameters = nullptr;         // the functor's members, in order
};

// One loss compiled for one instruction set.
struct Kernel {
  // Rows [begin, end) of the block; `arena` is scratch of arena_size(block) values.
  void (*f32)(const Block<float>&, std::int64_t begin, std::int64_t end, float* arena);
  void (*f64)(const Block<double>&, std::int64_t begin, std::int64_t end, double* arena);
  int parameters;
  int outputs;  // values a row returns
  int weights;  // and how many of them have a weight in the result
  // Columns [begin, end) of the block, for functors that gather statistics of columns (columns.h).
  void (*columns_f32)(const Block<float>&, std::int64_t begin, std::int64_t end, float* state,
                      bool first) = nullptr;
  void (*columns_f64)(const Block<double>&, std::int64_t begin, std::int64_t end, double* state,
                      bool first) = nullptr;
  int gathered = 0;  // values of that state per column; 0: this one cannot
};

// One loss in all its compiled forms.
struct Functor {
  const char* name;
  const Kernel* const* kernels;  // one per instruction set
  int parameters() const { return kernels[0]->parameters; }
  int outputs() const { return kernels[0]->outputs; }
  int weights() const { return kernels[0]->weights; }
  int gathered() const { return kernels[0]->gathered; }
};

// The longest list of thresholds that are no pairs (row.list).
constexpr std::int64_t kLongestList = 256;

// Scratch of one thread: the threshold lists of a row, whose largest class has `longest` columns, one
// row of distances, and up to four values per group of columns. What a loss does not touch costs nothing.
constexpr std::int64_t arena_size(std::int64_t longest, std::int64_t cols) {
  return 32 * (longest < kLongestList ? kLongestList : longest) + 5 * cols + 64;
}

// The most nodes of a mesh (mesh.h), and its scratch: masses, a table and sums, of two functions.
constexpr std::int64_t kMeshNodes = 4096, kMeshRoom = 8 * (kMeshNodes + 64);

// Scratch of the CPU after that, for sorting one row and its longest list, or for a mesh; used, and so touched,
// by few losses.
constexpr std::int64_t sorting_size(std::int64_t longest, std::int64_t cols) {
  return 16 * (longest + cols) + 256 + kMeshRoom;
}

int functor_count();
const Functor& functor(int id);
int active_isa();                  // the processor's best, or what was forced (FASTDML_ISA)
int isa_count();
const char* isa_name(int isa);
bool force_isa(const char* name);  // false where this processor or build lacks it

}  // namespace fastdml
