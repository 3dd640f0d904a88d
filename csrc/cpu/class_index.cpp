#include "class_index.h"

#include <algorithm>
#include <vector>

namespace fastdml {
namespace {

// Open addressing, at most half full.
class Table {
 public:
  explicit Table(std::int64_t entries) {
    std::size_t size = 16;
    while (size < 2 * static_cast<std::size_t>(entries)) size *= 2;
    mask_ = size - 1;
    keys_.resize(size);
    ids_.assign(size, -1);
  }
  std::size_t slot(std::int64_t key) const {
    // Fibonacci hashing spreads consecutive labels and labels that differ in high bits alike.
    std::uint64_t h = static_cast<std::uint64_t>(key) * 0x9E3779B97F4A7C15ull;
    std::size_t i = (h ^ (h >> 32)) & mask_;
    while (ids_[i] >= 0 && keys_[i] != key) i = (i + 1) & mask_;
    return i;
  }
  std::int32_t find(std::int64_t key) const { return ids_[slot(key)]; }
  std::int32_t add(std::int64_t key, std::int32_t next) {
    const std::size_t i = slot(key);
    if (ids_[i] < 0) {
      keys_[i] = key;
      ids_[i] = next;
    }
    return ids_[i];
  }

 private:
  std::size_t mask_;
  std::vector<std::int64_t> keys_;
  std::vector<std::int32_t> ids_;
};

std::int64_t matched(const std::int32_t* row_class, std::int64_t rows) {
  return rows - std::count(row_class, row_class + rows, -1);
}

// Whether labels are class numbers already, 0, 1, ... in order, as those of proxies are.
bool numbered(const std::int64_t* labels, std::int64_t count) {
  if (count == 0 || labels[0] != 0) return false;
  for (std::int64_t j = 1; j < count; ++j)
    if (labels[j] != labels[j - 1] && labels[j] != labels[j - 1] + 1) return false;
  return true;
}

// The index of such columns, without a table: a million proxies are common.
ClassIndex numbered_index(const std::int64_t* row_labels, std::int64_t rows,
                          const std::int64_t* col_labels, std::int64_t cols, std::int32_t* row_class,
                          std::int32_t* col_class, std::int32_t* start, std::int32_t* order) {
  std::int32_t classes = 0;
  std::int64_t longest = 0, first = 0;
  for (std::int64_t j = 0; j < cols; ++j) {
    col_class[j] = static_cast<std::int32_t>(col_labels[j]);
    order[j] = static_cast<std::int32_t>(j);
    if (j == 0 || col_labels[j] != col_labels[j - 1]) {
      longest = std::max(longest, j - first);
      start[classes++] = static_cast<std::int32_t>(first = j);
    }
  }
  start[classes] = static_cast<std::int32_t>(cols);
  if (row_class != col_class)
    for (std::int64_t i = 0; i < rows; ++i) {
      const bool known = row_labels[i] >= 0 && row_labels[i] < classes;
      row_class[i] = known ? static_cast<std::int32_t>(row_labels[i]) : -1;
    }
  return {classes, std::max(longest, cols - first), matched(row_class, rows)};
}

}  // namespace

ClassIndex class_index(const std::int64_t* row_labels, std::int64_t rows,
                       const std::int64_t* col_labels, std::int64_t cols, std::int32_t* row_class,
                       std::int32_t* col_class, std::int32_t* start, std::int32_t* order) {
  if (numbered(col_labels, cols))
    return numbered_index(row_labels, rows, col_labels, cols, row_class, col_class, start, order);
  Table table(cols);
  std::int32_t classes = 0;
  for (std::int64_t j = 0; j < cols; ++j) {
    col_class[j] = table.add(col_labels[j], classes);
    if (col_class[j] == classes) ++classes;
  }
  if (row_class != col_class)
    for (std::int64_t i = 0; i < rows; ++i) row_class[i] = table.find(row_labels[i]);
  // Counting sort of the columns by class.
  std::fill(start, start + classes + 1, 0);
  for (std::int64_t j = 0; j < cols; ++j) ++start[col_class[j] + 1];
  std::int64_t longest = 0;
  for (std::int32_t c = 0; c < classes; ++c) longest = std::max<std::int64_t>(longest, start[c + 1]);
  for (std::int32_t c = 0; c < classes; ++c) start[c + 1] += start[c];
  std::vector<std::int32_t> next(start, start + classes);
  for (std::int64_t j = 0; j < cols; ++j) order[next[col_class[j]]++] = static_cast<std::int32_t>(j);
  return {classes, longest, matched(row_class, rows)};
}

}  // namespace fastdml
