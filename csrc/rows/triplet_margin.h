// Triplet margin loss over all (positive, negative) pairs of every anchor: SPEC 3.8, threshold form.
#pragma once
#include "ranking.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct TripletMargin {
  T margin;
  T direction;  // 1: larger numbers are closer (similarities); -1: farther (distances)
  T smooth;     // 0: hinge, 1: softplus
  T sort;       // see sort_from
  T counted;    // what the mean is over. 0: active triplets, 1: triplets, 2: anchors

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T m = margin, d = direction;
    const auto one = [](T, T) { return T(1); };
    const auto hinge = [=](auto t) {
      auto excess = d * t + m;
      return values(max(excess, T(0)), select(excess > T(0), d, T(0)));
    };
    const auto soft = [=](auto t) {
      auto excess = d * t + m;
      return values(softplus(excess), d * sigmoid(excess));
    };
    // The excess is 0 at t = -d m: the hinge bends there, the smooth form within `far` of it.
    const T far = smooth == T(0) ? T(0) : flat<T>();
    const bool rising = d > T(0);
    const Tail<T> tail{-far - d * m,          far - d * m,        rising ? T(0) : m, rising ? T(0) : d,
                       rising ? m : T(0),     rising ? d : T(0),  true,
                       sort_from(sort, smooth == T(0) ? 96 : 32)};
    const PairSum<T> found =
        smooth == T(0) ? rank_pairs<T>(row, hinge, tail, one) : rank_pairs<T>(row, soft, tail, one);
    const T all = found.positives * found.negatives;
    const T active = smooth == T(0) ? found.slopes * d : all;
    return {found.loss, counted == T(0) ? active : counted == T(1) ? all : T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(triplet_margin, TripletMargin)
