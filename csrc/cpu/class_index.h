// Dense class numbers for arbitrary int64 labels.
#pragma once
#include <cstdint>

namespace fastdml {

struct ClassIndex {
  std::int64_t classes;  // distinct labels among the columns
  std::int64_t longest;  // columns of the largest class
  std::int64_t matched;  // rows whose label some column has
};

// Where the parts of a class index lie in one array of int32; fastdml/engine/relation.py reads it too.
struct PackedClasses {
  std::int64_t col_class = 0, row_class, start, order, size;
  PackedClasses(std::int64_t rows, std::int64_t cols)
      : row_class(cols), start(cols + rows), order(start + cols + 1), size(order + cols) {}
};

// Numbers the column labels in order of appearance; a row whose label no column has gets -1.
// start[classes + 1] and order[cols] list the columns of each class in ascending order.
// row_labels may be col_labels (one set), and row_class then col_class.
ClassIndex class_index(const std::int64_t* row_labels, std::int64_t rows,
                       const std::int64_t* col_labels, std::int64_t cols, std::int32_t* row_class,
                       std::int32_t* col_class, std::int32_t* start, std::int32_t* order);

}  // namespace fastdml
