// Values in ascending order, for functions of a difference that are simple but for a window around 0.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// Room for n values and a weight of each, in units of T.
template <class T>
FASTDML_FN constexpr std::int64_t sorted_room(std::int64_t n) {
  return (2 * sizeof(std::uint64_t) + 2 * sizeof(T) + sizeof(double)) * (n + 1) / sizeof(T) + 8;
}

// An order of all values, NaN among them, and a sort of (value, index) pairs: three counting passes for float, whose bits order like integers once
// the sign is folded; for double, the library's sort.
template <class T>
struct Sorter;

template <>
struct Sorter<float> {
  using Item = std::uint64_t;  // key above, index below
  static std::uint32_t key(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
  }
  static Item pack(float value, std::int32_t index) {
    return static_cast<Item>(key(value)) << 32 | static_cast<std::uint32_t>(index);
  }
  static float value(Item item) {
    std::uint32_t bits = static_cast<std::uint32_t>(item >> 32);
    bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
  }
  static std::int32_t index(Item item) { return static_cast<std::int32_t>(item); }

  // Sorts n items; the result is in the array that is returned, one of the two.
  static Item* sort(Item* items, Item* other, std::int64_t n) {
    constexpr int kBits = 11, kBins = 1 << kBits;
    std::uint32_t count[3][kBins] = {};
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint32_t key = static_cast<std::uint32_t>(items[i] >> 32);
      ++count[0][key & (kBins - 1)];
      ++count[1][key >> kBits & (kBins - 1)];
      ++count[2][key >> 2 * kBits];
    }
    for (int pass = 0; pass < 3; ++pass) {
      std::uint32_t total = 0;
      for (int bin = 0; bin < kBins; ++bin) {
        const std::uint32_t here = count[pass][bin];
        count[pass][bin] = total;
        total += here;
      }
      const int shift = 32 + pass * kBits;
      for (std::int64_t i = 0; i < n; ++i)
        other[count[pass][items[i] >> shift & (kBins - 1)]++] = items[i];
      std::swap(items, other);
    }
    return items;
  }
};

template <>
struct Sorter<double> {
  struct Item {
    std::uint64_t key;  // an order of all bit patterns: the library's sort must not meet a NaN
    std::int64_t index;
  };
  static std::uint64_t key(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, 8);
    return bits ^ ((bits >> 63) ? ~std::uint64_t{0} : std::uint64_t{1} << 63);
  }
  static Item pack(double value, std::int32_t index) { return {key(value), index}; }
  static double value(Item item) {
    std::uint64_t bits = item.key ^ ((item.key >> 63) ? std::uint64_t{1} << 63 : ~std::uint64_t{0});
    double v;
    std::memcpy(&v, &bits, 8);
    return v;
  }
  static std::int32_t index(Item item) { return static_cast<std::int32_t>(item.index); }
  static Item* sort(Item* items, Item*, std::int64_t n) {
    std::sort(items, items + n, [](const Item& a, const Item& b) {
      return a.key < b.key || (a.key == b.key && a.index < b.index);
    });
    return items;
  }
};

template <class T>
class Sorted {
 public:
  using Item = typename Sorter<T>::Item;

  // Sorts the values x_j of which keep(j) is true.
  template <class Keep, class Arena>
  void build(const T* x, std::int64_t n, Keep keep, Arena& arena) {
    // Items first: they need the alignment of eight bytes.
    T* room = arena.take(sorted_room<T>(n));
    const std::uintptr_t at = (reinterpret_cast<std::uintptr_t>(room) + 7) / 8 * 8;
    Item* items = reinterpret_cast<Item*>(at);
    Item* other = sizeof(Item) == 8 ? items + n : items;
    above_ = reinterpret_cast<double*>(items + (sizeof(Item) == 8 ? 2 * n : n));
    value_ = reinterpret_cast<T*>(above_ + n + 1);
    weight_ = value_ + n;
    n_ = 0;
    for (std::int64_t j = 0; j < n; ++j)
      if (keep(j)) items[n_++] = Sorter<T>::pack(x[j], static_cast<std::int32_t>(j));
    items_ = Sorter<T>::sort(items, other, n_);
    above_[n_] = 0;
    for (std::int64_t i = n_; i-- > 0;) {
      value_[i] = Sorter<T>::value(items_[i]);
      above_[i] = above_[i + 1] + value_[i];
    }
  }

  bool built() const { return items_ != nullptr; }
  std::int64_t size() const { return n_; }
  const T* values() const { return value_; }
  T* weights() { return weight_; }
  std::int32_t index(std::int64_t i) const { return Sorter<T>::index(items_[i]); }
  // The sum of values i, i + 1, ...
  double sum_from(std::int64_t i) const { return above_[i]; }
  double total() const { return above_[0]; }
  // How many values are less than x; how many are not greater.
  std::int64_t below(T x) const { return std::lower_bound(value_, value_ + n_, x) - value_; }
  std::int64_t upto(T x) const { return std::upper_bound(value_, value_ + n_, x) - value_; }
  // n + 1 zeros in the room of the sums, which are lost.
  double* scratch() {
    std::fill(above_, above_ + n_ + 1, 0.0);
    return above_;
  }

 private:
  Item* items_ = nullptr;
  T *value_ = nullptr, *weight_ = nullptr;
  double* above_ = nullptr;
  std::int64_t n_ = 0;
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
