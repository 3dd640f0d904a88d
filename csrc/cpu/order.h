// Counts, for every value of a row, the others that are in order with it by a key and out of it by value.
#pragma once
#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "sorted.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// Of all (j, k) with key_j < key_k: how many there are, and how many have s_j - s_k > -margin.
struct OrderCount {
  std::int64_t pairs = 0, active = 0;
};

// Points (t, r) of a permutation, t by key and r by value: below(t, r) of them are smaller in both. A table
// of counts holds the corners of a grid; what lies between a corner and (t, r) is two strips, which are
// compared a vector at a time. A cell is about sqrt(n) / 2 wide: O(sqrt n) for a query, 16 to 32
// comparisons in vectors of 8 at n = 4,096.
class Dominance {
 public:
  static constexpr int W = FASTDML_VECTOR_BYTES / 4;
  typedef std::int32_t V __attribute__((vector_size(FASTDML_VECTOR_BYTES)));

  // In units of four bytes.
  static std::int64_t room(std::int64_t n) {
    const std::int64_t corners = (n >> shift_of(n)) + 2;
    return corners * corners + 2 * (n + pad_of(n));
  }
  Dominance(std::int32_t* memory, std::int64_t n)
      : shift_(shift_of(n)),
        corners_((n >> shift_) + 2),
        r_of_(memory),
        t_of_(memory + n + pad_of(n)),
        table_(memory + 2 * (n + pad_of(n))),
        n_(n) {}

  void set(std::int64_t t, std::int32_t r) {
    r_of_[t] = r;
    t_of_[r] = static_cast<std::int32_t>(t);
  }
  std::int32_t value_at(std::int64_t t) const { return r_of_[t]; }

  // After all points are set.
  void build() {
    std::fill(r_of_ + n_, r_of_ + n_ + pad_of(n_), 0);
    std::fill(t_of_ + n_, t_of_ + n_ + pad_of(n_), 0);
    std::fill(table_, table_ + corners_ * corners_, 0);
    for (std::int64_t t = 0; t < n_; ++t)
      ++table_[((t >> shift_) + 1) * corners_ + (r_of_[t] >> shift_) + 1];
    for (std::int64_t a = 1; a < corners_; ++a) {
      std::int32_t* row = table_ + a * corners_;
      for (std::int64_t b = 1; b < corners_; ++b) row[b] += row[b - 1];
      for (std::int64_t b = 1; b < corners_; ++b) row[b] += row[b - corners_];
    }
  }

  std::int32_t below(std::int64_t t, std::int64_t r) const {
    const std::int64_t a = t >> shift_, b = r >> shift_, t0 = a << shift_, r0 = b << shift_;
    V found = strip(r_of_ + t0, t - t0, static_cast<std::int32_t>(r)) +
              strip(t_of_ + r0, r - r0, static_cast<std::int32_t>(t0));
    std::int32_t total = table_[a * corners_ + b];
    for (int i = 0; i < W; ++i) total -= found[i];
    return total;
  }

 private:
  static int shift_of(std::int64_t n) {
    int shift = 4;
    while ((std::int64_t{4} << 2 * shift) < n) ++shift;
    return shift;
  }
  // Minus the number of values below `bound` among `count`, over the lanes.
  // Always a whole cell: a loop whose end nobody can foresee would cost more than its work.
  FASTDML_FN V strip(const std::int32_t* v, std::int64_t count, std::int32_t bound) const {
    V found{}, lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    lane -= static_cast<std::int32_t>(count);
    for (std::int32_t i = 0; i < 1 << shift_; i += W) {
      V x;
      std::memcpy(&x, v + i, sizeof x);
      found += (x < bound) & (lane < 0);
      lane += W;
    }
    return found;
  }
  // A cell may reach beyond the last point.
  static std::int64_t pad_of(std::int64_t n) { return std::max<std::int64_t>(W, 1 << shift_of(n)); }

  int shift_;
  std::int64_t corners_;
  std::int32_t *r_of_, *t_of_, *table_;
  std::int64_t n_;
};

// slope_j := active (j, k) less active (i, j), for all but the value `self`. Two sorts and two queries for
// each value: O(n sqrt n).
template <class T, class Arena>
OrderCount count_order(const T* s, const T* key, std::int64_t n, std::int64_t self, T margin, T* slope,
                       Arena& arena) {
  using Sort = Sorter<T>;
  using Item = typename Sort::Item;
  OrderCount found;
  const auto aligned = [&](std::int64_t bytes) {  // items need the alignment of eight bytes
    T* room = arena.take((bytes + 8 + sizeof(T) - 1) / sizeof(T));
    return reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(room) + 7) / 8 * 8);
  };
  Item* const items = reinterpret_cast<Item*>(aligned(2 * n * 8));
  Item* const other = sizeof(Item) == 8 ? items + n : items;
  const auto sorted = [&](const T* x) {
    std::int64_t count = 0;
    for (std::int64_t j = 0; j < n; ++j)
      if (j != self) items[count++] = Sort::pack(x[j], static_cast<std::int32_t>(j));
    return Sort::sort(items, other, count);
  };
  if (self >= 0) slope[self] = T(0);
  const std::int64_t m = n - (self >= 0);
  auto* ints = reinterpret_cast<std::int32_t*>(aligned(4 * (3 * n + Dominance::room(m))));
  std::int32_t *place = ints, *first_over = ints + n, *upto = ints + 2 * n;
  Dominance points(ints + 3 * n, m);

  // By value: s_j - s_k > -margin is s_j's place from first_over on (of k), s_k's below upto (of j).
  const Item* by_value = sorted(s);
  T* x = arena.take(m);
  for (std::int64_t p = 0; p < m; ++p) {
    x[p] = Sort::value(by_value[p]);
    place[Sort::index(by_value[p])] = static_cast<std::int32_t>(p);
  }
  std::int64_t over = 0, under = 0;
  for (std::int64_t p = 0; p < m; ++p) {
    while (over < m && !(x[over] - x[p] > -margin)) ++over;
    while (under < m && x[p] - x[under] > -margin) ++under;
    first_over[p] = static_cast<std::int32_t>(over);
    upto[p] = static_cast<std::int32_t>(under);
  }
  const Item* by_key = sorted(key);
  for (std::int64_t t = 0; t < m; ++t) points.set(t, place[Sort::index(by_key[t])]);
  points.build();
  for (std::int64_t first = 0, last; first < m; first = last) {  // equal keys are in no order
    last = first + 1;
    while (last < m && Sort::value(by_key[last]) == Sort::value(by_key[first])) ++last;
    found.pairs += (last - first) * (m - last);
    for (std::int64_t t = first; t < last; ++t) {
      const std::int64_t p = points.value_at(t), lo = first_over[p], hi = upto[p];
      const std::int64_t leads = hi - points.below(last, hi), ends = first - points.below(first, lo);
      found.active += leads;
      slope[Sort::index(by_key[t])] = static_cast<T>(leads - ends);
    }
  }
  return found;
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
