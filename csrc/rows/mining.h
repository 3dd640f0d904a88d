// Candidates chosen inside the row: by a key, or by a draw.
#pragma once
#include <cstdint>
#include <type_traits>

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Chosen {
  T s;       // of the candidate; NaN if the row holds one
  T column;  // its number, -1: no candidate was eligible
  FASTDML_FN bool found() const { return column >= T(0); }
};

// The candidate with the largest key(p), where that is more than lowest(). Of keys that are equal to
// rounding the first column's counts: keys are computed twice, and not always to the last digit alike.
template <class T, class Row, class Key>
FASTDML_FN Chosen<T> choose(Row& row, Key key) {
  const auto [best, poison] =
      row.reduce([=](auto p) { return values(key(p), p.s - p.s); }, Max{}, Sum{});
  if (best <= lowest<T>()) return {poison, T(-1)};
  const T near = best - T(8) * epsilon<T>() * max(abs(best), T(1));
  const T column = row.reduce(
      [=](auto p) { return values(select(key(p) >= near, p.index(), highest<T>())); }, Min{})[0];
  const T s = row.reduce(
      [=](auto p) { return values(select(p.index() == column, p.s, T(0))); }, Sum{})[0];
  return {s + poison, column};
}

// Above what key(p) the k nearest candidates lie: the k-th largest key less what rounding may move it by,
// so that candidates at one distance are in or out together. NaN if the row holds one. Where key(p) is
// lowest(), p is not counted; where there are no more than k, all are in. Where rows are sorted before, it
// is by -key(p).
template <class T, class Row, class Key>
FASTDML_FN T nearest(Row& row, T k, Key key) {
  const T never = lowest<T>(), none = highest<T>();
  if constexpr (requires { row.ordered(); }) {
    const T poison = row.reduce([](auto p) { return values(p.s - p.s); }, Sum{})[0];
    if (static_cast<T>(row.ordered()) <= k) return never + poison;
    const T kth = -row.smallest(static_cast<int>(k) - 1);
    return kth - T(8) * epsilon<T>() * max(abs(kth), T(1)) + poison;
  } else {
    const auto [first, last, count, poison] = row.reduce(
        [=](auto p) {
          auto x = key(p);
          return values(select(x > never, x, none), x, select(x > never, T(1), T(0)), p.s - p.s);
        },
        Min{}, Max{}, Sum{}, Sum{});
    if (count <= k) return never + poison;
    // At least k keys are from `low` on, fewer from `high` on: halved until a number between gives k, or
    // until there is no number between.
    T low = first, high = last;
    for (T middle = low + (high - low) / T(2); middle > low && middle < high;
         middle = low + (high - low) / T(2)) {
      const T from = middle;
      const T above = row.reduce(
          [=](auto p) { return values(select(key(p) >= from, T(1), T(0))); }, Sum{})[0];
      (above >= k ? low : high) = middle;
      if (above == k) break;
    }
    const T from = low;
    const T kth = row.reduce(
        [=](auto p) {
          auto x = key(p);
          return values(select(x >= from, x, none));
        },
        Min{})[0];
    return kth - T(8) * epsilon<T>() * max(abs(kth), T(1)) + poison;
  }
}

// Philox4x32-10 (Salmon et al., SC 2011): four random words from a counter and a key. Nothing is stored
// and any of them can be asked for again: forward and backward see one draw, whatever the executor, the
// block of rows or the number of threads.
struct Words {
  std::uint32_t w[4];
};
FASTDML_FN Words philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                        std::uint32_t k0, std::uint32_t k1) {
#if defined(__CUDACC__)
#pragma unroll 1  // ten rounds of several pairs at once would not fit the registers
#endif
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t(0xD2511F53u) * c0, b = std::uint64_t(0xCD9E8D57u) * c2;
    c0 = std::uint32_t(b >> 32) ^ c1 ^ k0;
    c2 = std::uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = std::uint32_t(b);
    c3 = std::uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Where draws of a row come from: its number, and two numbers below 2^24 that make a stream.
template <class T>
struct Stream {
  T row, seed, step;

  // Two numbers in (0, 1) for draw k, the same in every type. (The last word keeps these apart from other
  // draws with the same seed.)
  FASTDML_FN Values<double, 2> operator()(int k) const {
    const Words words =
        philox(static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(row), 0, 3,
               static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(step));
    Values<double, 2> u;
    for (int i = 0; i < 2; ++i) u[i] = (words.w[i] + 0.5) * (1.0 / 4294967296.0);
    return u;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
