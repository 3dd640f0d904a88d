// How values are compared with a list of thresholds: one by one, or, by a sigmoid, with the thresholds in
// clusters within which it factorises:
//     sigmoid((s - theta) k) = 1 / (1 + e^{(c - s) k} e^{(theta - c) k}),  c the middle of the cluster.
// That is one exponential per value and cluster, and one per threshold.
#pragma once
#include <algorithm>
#include <numeric>

#include "lanes.h"
#include "sorted.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// The largest exponents of a threshold and of a value. Their sum is in the range of T; a value that is cut
// there is so far from every threshold of the cluster that the sigmoid is flat.
template <class T>
struct Reach {
  static constexpr T threshold = sizeof(T) == 8 ? T(300) : T(28), value = threshold + flat<T>();
};

// Any comparison: f(v - theta, p).
template <class T, class F>
struct Plainly {
  using V = Vector<T>;
  static constexpr int kGroup = 2;  // thresholds per load of a value
  static constexpr bool kAscending = false;
  const T* theta;
  F f;

  FASTDML_FN int index(int k) const { return k; }
  FASTDML_FN bool nothing(V) const { return false; }
  FASTDML_FN V prepare(V v) const { return v; }
  template <class P>
  FASTDML_FN auto at(V, V v, int k, const P& p) const {
    return f(v - theta[k], p);
  }
};

// A comparison by a sigmoid with the thresholds of one cluster.
template <class T, class F>
struct Factorised {
  using V = Vector<T>;
  static constexpr int kGroup = FASTDML_VECTOR_BYTES == 64 ? 8 : FASTDML_VECTOR_BYTES == 32 ? 4 : 2;
  static constexpr bool kAscending = true;
  const T *theta, *factor;
  const std::int32_t* order;
  F f;
  T centre, floor, bound;

  FASTDML_FN int index(int k) const { return order[k]; }
  // Whether every value is so low that f vanishes. Written so that a NaN is none of those.
  FASTDML_FN bool nothing(V v) const { return !any(~(v <= floor)); }
  FASTDML_FN V prepare(V v) const {
    return exp_scaled(min(max(centre - v, -bound), bound), f.sharpness);
  }
  template <class P>
  FASTDML_FN auto at(V prepared, V v, int k, const P& p) const {
    return f.f(reciprocal(prepared * factor[k] + T(1)), v - theta[k], p);
  }
};

// Thresholds in ascending order, in clusters.
template <class T>
class Clusters {
 public:
  template <class Arena>
  void build(const T* x, int n, T sharpness, Arena& arena) {
    if (order_ && sharpness == sharpness_) return;
    sharpness_ = sharpness;
    order_ = reinterpret_cast<std::int32_t*>(arena.take(n));
    end_ = reinterpret_cast<std::int32_t*>(arena.take(n));
    theta_ = arena.take(n);
    factor_ = arena.take(n);
    centre_ = arena.take(n);
    std::iota(order_, order_ + n, 0);
    std::sort(order_, order_ + n, [x](std::int32_t a, std::int32_t b) {
      const auto ka = Sorter<T>::key(x[a]), kb = Sorter<T>::key(x[b]);
      return ka < kb || (ka == kb && a < b);
    });
    for (int k = 0; k < n; ++k) theta_[k] = x[order_[k]];
    count_ = 0;
    for (int begin = 0, end = 0; begin < n; begin = end) {
      // A NaN is a cluster of its own.
      while (++end < n && (theta_[end] - theta_[begin]) * sharpness <= 2 * Reach<T>::threshold) {}
      const T low = theta_[begin];
      const T centre = end == begin + 1 ? low : low + (theta_[end - 1] - low) / 2;
      for (int k = begin; k < end; k += kWidth<T>) {
        const int some = end - k < kWidth<T> ? end - k : kWidth<T>;
        store(factor_ + k, exp_scaled(load(theta_ + k, some) - centre, sharpness), some);
      }
      centre_[count_] = centre;
      end_[count_++] = end;
    }
  }

  // Calls each(comparison, begin, end) for every cluster.
  template <class F, class Each>
  FASTDML_FN void visit(F f, Each each) const {
    for (int i = 0, begin = 0; i < count_; begin = end_[i++]) {
      const T floor = theta_[begin] - flat<T>() / sharpness_, bound = Reach<T>::value / sharpness_;
      each(Factorised<T, F>{theta_, factor_, order_, f, centre_[i], floor, bound}, begin, end_[i]);
    }
  }
  const std::int32_t* order() const { return order_; }

 private:
  std::int32_t *order_ = nullptr, *end_ = nullptr;
  T *theta_ = nullptr, *factor_ = nullptr, *centre_ = nullptr;
  T sharpness_ = T(0);
  int count_ = 0;
};

// Whether a comparison is one by a sigmoid (OfSigmoid of rows/smooth_step.h).
template <class F>
concept BySigmoid = requires(const F& f) {
  f.sharpness;
  f.f;
};

// Calls each.template operator()<G>(k) on groups of thresholds k ... k + G - 1, G at most `most`.
template <int G, class Each>
FASTDML_FN void in_groups(int k, int end, Each each) {
  for (; k + G <= end; k += G) each.template operator()<G>(k);
  // Three at once serve what a class of four leaves beside the query itself.
  if constexpr (G > 1)
    if (k < end) in_groups<(G > 4 ? G / 2 : G - 1)>(k, end, each);
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
