// Rows in order. Where all rows of a block are sorted, a kernel writes a key for every pair, the library's
// segmented sort (sort.cu) sorts the keys of every row, and the kernel of the loss reads them. A row that is
// sorted because its list is long is sorted by the team that takes it: nobody else knows of it.
#pragma once
#include "lanes.cuh"
#include "launch.h"
#include "team.cuh"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
using KeyBits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// The key of a pair that is not sorted: it comes last.
template <class T>
constexpr KeyBits<T> kLeftOut = ~KeyBits<T>{0};

// Integers in the order of numbers: the two zeros are one, a NaN comes after all numbers, and after that
// what is left out (highest()).
template <class T>
FASTDML_FN KeyBits<T> to_key(T x) {
  using Bits = KeyBits<T>;
  constexpr Bits top = Bits{1} << (8 * sizeof(T) - 1);
  if (x == highest<T>()) return kLeftOut<T>;
  if (x != x) return kLeftOut<T> - 1;
  const T one_zero = x + T(0);
  Bits bits;
  std::memcpy(&bits, &one_zero, sizeof bits);
  return bits & top ? ~bits : bits | top;
}
template <class T>
FASTDML_FN T from_key(KeyBits<T> key) {
  constexpr KeyBits<T> top = KeyBits<T>{1} << (8 * sizeof(T) - 1);
  const KeyBits<T> bits = key & top ? key ^ top : ~key;
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A block's rows in order, by each of the keys that a loss asks for.
template <class T>
struct SortedRows {
  KeyBits<T>* keys[kMostSorts] = {};       // [rows, cols]
  std::int32_t* columns[kMostSorts] = {};  // [rows, cols] where the keys came from; null: nobody asks
  std::int32_t* kept = nullptr;            // [kMostSorts, rows] how many of a row are not left out
};

// The same of one row.
template <class T>
struct SortedRow {
  KeyBits<T>* keys[kMostSorts];
  std::int32_t* columns[kMostSorts];
  std::int32_t* kept[kMostSorts];

  FASTDML_FN static SortedRow of(const SortedRows<T>& all, std::int64_t i, const Block<T>& b) {
    SortedRow row{};
#pragma unroll
    for (int k = 0; k < kMostSorts; ++k) {
      row.keys[k] = all.keys[k] ? all.keys[k] + i * b.cols : nullptr;
      row.columns[k] = all.columns[k] ? all.columns[k] + i * b.cols : nullptr;
      row.kept[k] = all.kept + k * b.rows + i;
    }
    return row;
  }
};

// Inclusive sums of the n values a, which every thread has written its share of; b is room for as many.
// Returns the one of both that holds them.
template <class Team, class V>
FASTDML_FN V* running_sums(const Team& team, V* a, V* b, int n) {
  for (int by = 1; by < n; by *= 2) {
    team.sync();
    for (int k = team.thread(); k < n; k += team.size()) b[k] = k >= by ? a[k] + a[k - by] : a[k];
    V* const made = b;
    b = a;
    a = made;
  }
  team.sync();
  return a;
}

// Counters of a team that sorts: kDigits for every thread.
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits;

// Calls f on n keys from `keys` on, several of them loaded at a time.
template <class Key, class F>
FASTDML_FN void each_key(const Key* keys, int n, F f) {
  constexpr int U = 4;
  int i = 0;
  for (; i + U <= n; i += U) {
    Key held[U];
#pragma unroll
    for (int u = 0; u < U; ++u) held[u] = keys[i + u];
#pragma unroll
    for (int u = 0; u < U; ++u) f(held[u]);
  }
  for (; i < n; ++i) f(keys[i]);
}

// Sorts n keys by a team; `other` is room for as many, `counts` its counters. Returns the one of both that
// holds the result. Digit by digit: a thread counts the digits of its share of the keys, counts become
// places, and it moves its share, whose order is kept.
template <class Team, class Key>
FASTDML_FN Key* sort_by_team(const Team& team, Key* keys, Key* other, int n, std::int32_t* counts) {
  const int thread = team.thread(), size = team.size();
  const int share = (n + size - 1) / size, begin = thread * share < n ? thread * share : n;
  const int count = n - begin < share ? n - begin : share;
  // Counters in the order of places: all threads' of the first digit, then of the next one.
  std::int32_t* const own = counts + thread;
  std::int32_t* const run = counts + thread * kDigits;  // those a thread adds up
  std::int32_t* const sums = counts + kDigits * size;
#pragma unroll 1
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Key)); shift += kDigitBits) {
    const auto digit = [=](Key key) { return static_cast<int>(key >> shift) & (kDigits - 1); };
    for (int d = 0; d < kDigits; ++d) own[d * size] = 0;
    each_key(keys + begin, count, [&](Key key) { ++own[digit(key) * size]; });
    team.sync();
    std::int32_t total = 0;
    for (int d = 0; d < kDigits; ++d) total += run[d];
    sums[thread] = total;
    const std::int32_t* const upto = running_sums(team, sums, sums + size, size);
    std::int32_t place = upto[thread] - total;
    for (int d = 0; d < kDigits; ++d) {
      const std::int32_t here = run[d];
      run[d] = place;
      place += here;
    }
    team.sync();
    each_key(keys + begin, count, [&](Key key) { other[own[digit(key) * size]++] = key; });
    team.sync();
    Key* const sorted = other;
    other = keys;
    keys = sorted;
  }
  return keys;
}

// Ordered values: of a sorted row, or of a list.
template <class T>
struct OfKeys {
  const KeyBits<T>* keys;
  int n;
  FASTDML_FN T operator[](int i) const { return from_key<T>(keys[i]); }
};
template <class T>
struct OfValues {
  const T* values;
  int n;
  FASTDML_FN T operator[](int i) const { return values[i]; }
};

// How many of 0 ... n - 1 pass, where those that do come first.
template <class Passes>
FASTDML_FN int count_first(int n, Passes passes) {
  int low = 0, high = n;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (passes(middle))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The same for a warp, which looks at 32 at once.
template <class Team, class Passes>
FASTDML_FN int count_first(const Team& team, int n, Passes passes) {
  const int lane = team.thread() % kWarp;
  int low = 0, high = n;
  while (low < high) {
    const int step = (high - low) / (kWarp + 1) + 1, at = low + (lane + 1) * step - 1;
    int found = at < high && passes(at);
    for (int mask = kWarp / 2; mask > 0; mask /= 2) found += team.from_lane(found, mask);
    const int next = low + (found + 1) * step - 1;
    low += found * step;
    high = next < high ? next : high;
  }
  return low;
}

// Points (t, r) of a permutation, t by key and r by value: how many are smaller in both (see cpu/order.h).
// A table has the counts at the corners of a grid, what lies between a corner and a point is two strips.
class Dominance {
 public:
  // In units of four bytes.
  FASTDML_FN static int room(int n) {
    const int corners = (n >> shift_of(n)) + 2;
    return 2 * n + corners * corners;
  }
  FASTDML_FN Dominance(std::int32_t* memory, int n)
      : shift_(shift_of(n)),
        corners_((n >> shift_) + 2),
        n_(n),
        r_of_(memory),
        t_of_(memory + n),
        table_(memory + 2 * n) {}

  FASTDML_FN void set(int t, int r) {
    r_of_[t] = r;
    t_of_[r] = t;
  }
  FASTDML_FN int value_at(int t) const { return r_of_[t]; }

  // After all points are set, by any thread. A thread owns whole rows of the table, then whole columns.
  template <class Team>
  FASTDML_FN void build(const Team& team) {
    team.sync();
    for (int a = team.thread(); a < corners_; a += team.size()) {
      std::int32_t* row = table_ + a * corners_;
      for (int b = 0; b < corners_; ++b) row[b] = 0;
      for (int t = (a - 1) << shift_; a > 0 && t < a << shift_ && t < n_; ++t)
        ++row[(r_of_[t] >> shift_) + 1];
      for (int b = 1; b < corners_; ++b) row[b] += row[b - 1];
    }
    team.sync();
    for (int b = team.thread(); b < corners_; b += team.size())
      for (int a = 1; a < corners_; ++a) table_[a * corners_ + b] += table_[(a - 1) * corners_ + b];
    team.sync();
  }

  FASTDML_FN int below(int t, int r) const {
    const int a = t >> shift_, b = r >> shift_, t0 = a << shift_, r0 = b << shift_;
    int total = table_[a * corners_ + b];
    for (int k = t0; k < t; ++k) total += r_of_[k] < r;
    for (int k = r0; k < r; ++k) total += t_of_[k] < t0;
    return total;
  }

 private:
  FASTDML_FN static int shift_of(int n) {
    int shift = 4;
    while ((std::int64_t{4} << 2 * shift) < n) ++shift;
    return shift;
  }
  int shift_, corners_, n_;
  std::int32_t *r_of_, *t_of_, *table_;
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
