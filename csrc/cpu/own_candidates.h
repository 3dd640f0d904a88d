// Rows with candidates of their own [M, K, D] (hard negatives, candidates of a teacher): products or cosines in
// one reading of the candidates, and their gradients in another.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "norms.h"

namespace fastdml {

template <class T>
struct OwnCandidates {
  const T *a, *c;  // [M, D] and [M, K, D], dimensions next to each other
  std::int64_t rows, each, dim, a_row, c_row, c_each;

  const T* row(std::int64_t i) const { return a + i * a_row; }
  const T* candidate(std::int64_t i, std::int64_t k) const { return c + i * c_row + k * c_each; }

  template <class F>
  void parallel(F f) const {
    torch::stable::parallel_for(0, rows, 1 + 16384 / (each * (dim + 8) + 1),
                                [&](std::int64_t begin, std::int64_t end) {
                                  for (std::int64_t i = begin; i < end; ++i) f(i);
                                });
  }
};

// 1/|y|, 0 where |y| is at most epsilon; of any finite y, also one whose square is no number of the type.
template <class T>
T inverse_length(const T* y, std::int64_t dim, T epsilon) {
  constexpr T least = std::numeric_limits<T>::min() * T(1 << 20), most = std::numeric_limits<T>::max() / T(1 << 20);
  const T square = partial_sums<T>(dim, [=](std::int64_t d) { return y[d] * y[d]; });
  if (square > least && square < most) return T(1) / std::sqrt(square);
  T largest = T(0);
  for (std::int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::abs(y[d]));
  int exponent = 0;
  if (std::isfinite(largest)) std::frexp(largest, &exponent);
  // Two factors: one might be no number itself.
  const T half = std::ldexp(T(1), -exponent / 2), rest = std::ldexp(T(1), exponent / 2 - exponent);
  const T norm = std::sqrt(partial_sums<T>(dim, [=](std::int64_t d) {
    const T near_one = y[d] * half * rest;
    return near_one * near_one;
  }));
  return std::ldexp(norm, exponent) <= epsilon ? T(0) : std::ldexp(T(1) / norm, -exponent);
}

// x times a factor, which the caller may need as long as this lives; x itself where there is no factor.
template <class T>
class Scaled {
 public:
  Scaled(const T* x, std::int64_t dim, const T* factor) : x_(x) {
    if (!factor) return;
    held_.resize(dim);
    for (std::int64_t d = 0; d < dim; ++d) held_[d] = x[d] * *factor;
    x_ = held_.data();
  }
  const T* data() const { return x_; }

 private:
  std::vector<T> held_;
  const T* x_;
};

// out = w x - v y, and to += u y, either of them null.
template <class T>
void spread(const T* __restrict x, const T* __restrict y, std::int64_t dim, T w, T v, T u, T* __restrict out,
            T* __restrict to) {
  if (out && to)
    for (std::int64_t d = 0; d < dim; ++d) {
      out[d] = w * x[d] - v * y[d];
      to[d] += u * y[d];
    }
  else if (out)
    for (std::int64_t d = 0; d < dim; ++d) out[d] = w * x[d] - v * y[d];
  else if (to)
    for (std::int64_t d = 0; d < dim; ++d) to[d] += u * y[d];
}

// s [M, K]: products. With inverse [M, K] of candidates over their lengths, whose inverses go there; with
// row_inverse [M] of rows over theirs.
template <class T>
void own_values(const OwnCandidates<T>& of, T epsilon, T* s, T* inverse, T* row_inverse) {
  of.parallel([&](std::int64_t i) {
    if (row_inverse) row_inverse[i] = inverse_length(of.row(i), of.dim, epsilon);
    const Scaled<T> scaled(of.row(i), of.dim, row_inverse ? row_inverse + i : nullptr);
    const T* const x = scaled.data();
    for (std::int64_t k = 0; k < of.each; ++k) {
      const T* const y = of.candidate(i, k);
      const std::int64_t at = i * of.each + k;
      const T product = partial_sums<T>(of.dim, [=](std::int64_t d) { return x[d] * y[d]; });
      const T scale = inverse ? inverse[at] = inverse_length(y, of.dim, epsilon) : T(1);
      s[at] = scale == T(0) ? T(0) : product * scale;
      if (!std::isfinite(product))  // of a long candidate
        s[at] = partial_sums<T>(of.dim, [=](std::int64_t d) { return x[d] * (y[d] * scale); });
    }
  });
}

// d_a [M, D] and d_c [M, K, D], either of them null, from the derivatives g [M, K] by the numbers s.
template <class T>
void own_gradients(const OwnCandidates<T>& of, const T* g, const T* s, const T* inverse, const T* row_inverse,
                   T* d_a, T* d_c) {
  of.parallel([&](std::int64_t i) {
    const Scaled<T> scaled(of.row(i), of.dim, row_inverse ? row_inverse + i : nullptr);
    const T* const x = scaled.data();
    T* const to = d_a ? d_a + i * of.dim : nullptr;
    if (to) std::fill_n(to, of.dim, T(0));
    T along_row = T(0);
    for (std::int64_t k = 0; k < of.each; ++k) {
      const T* const y = of.candidate(i, k);
      const std::int64_t at = i * of.each + k;
      const T w = g[at], scale = inverse ? inverse[at] : T(1);
      const T along = inverse ? w * s[at] * scale : T(0);  // what lies along the candidate is taken out
      along_row += w * s[at];
      T* const out = d_c ? d_c + at * of.dim : nullptr;
      if (std::isnormal(scale * scale)) {
        spread(x, y, of.dim, w * scale, along * scale, w * scale, out, to);
      } else {  // of a candidate so long or short that its square is no number; of none, or NaN, too
        const Scaled<T> direction(y, of.dim, &scale);
        spread(x, direction.data(), of.dim, w * scale, along, w, out, to);
      }
    }
    if (to && row_inverse)
      for (std::int64_t d = 0; d < of.dim; ++d) to[d] = (to[d] - along_row * x[d]) * row_inverse[i];
  });
}

}  // namespace fastdml
