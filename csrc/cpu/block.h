// What the executor hands to a row functor: a block of rows, as plain pointers.
#pragma once
#include <cstdint>

namespace fastdml {

template <class T>
struct Block {
  T* s = nullptr;               // [rows, cols], leading dimension ld: similarities in, weights out
  std::int64_t rows = 0, cols = 0, ld = 0;
  const T* teacher = nullptr;   // a second matrix over the same pairs, same layout, or null
  std::int64_t teacher_ld = 0;
  const T* row_scale = nullptr; // [rows] and [cols]: s_ij is scaled by row_scale[i] * col_scale[j] on
  const T* col_scale = nullptr; // the way in, and its weight on the way out; both or neither
  const std::int32_t* row_class = nullptr;    // [rows]
  const std::int32_t* col_class = nullptr;    // [cols]; equal classes make a positive pair
  const std::int32_t* class_start = nullptr;  // [classes + 1] into class_order: the columns of each
  const std::int32_t* class_order = nullptr;  // class, in ascending order (for threshold lists)
  std::int64_t self_offset = -1;              // row i is column i + self_offset, taken out; -1: none is
  const T* row_weight = nullptr;              // [rows] upstream gradient, or null for 1
  T weight = T(1);                            // times this
  const T* scalars = nullptr;                 // values of this call that every row reads
  T* loss = nullptr;                          // [rows] out
  bool gradient = true;                       // false: s need not become weights
  const double* parameters = nullptr;         // the functor's members, in order
};

// One loss compiled for one instruction set.
struct Kernel {
  // Rows [begin, end) of the block; `arena` is scratch of arena_size(block) values.
  void (*f32)(const Block<float>&, std::int64_t begin, std::int64_t end, float* arena);
  void (*f64)(const Block<double>&, std::int64_t begin, std::int64_t end, double* arena);
  int parameters;
};

// One loss in all its compiled forms.
struct Functor {
  const char* name;
  const Kernel* const* kernels;  // one per instruction set
  int parameters() const { return kernels[0]->parameters; }
};

// Scratch for the threshold lists of one row: `longest` is the size of the largest class.
inline std::int64_t arena_size(std::int64_t longest) { return 32 * longest + 64; }

int functor_count();
const Functor& functor(int id);
int active_isa();                  // chosen once from the processor, or by the environment: FASTDML_ISA
int isa_count();
const char* isa_name(int isa);
bool force_isa(const char* name);  // false where this processor or build lacks it

}  // namespace fastdml
