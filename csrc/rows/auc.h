// Area under the ROC curve by pairwise surrogates: SPEC 2.17. A query's loss is the mean of
// l(s_p - s_n) over its positives and negatives.
#pragma once
#include "ranking.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Auc {
  T kind;  // 0: Huber, 1: logistic, 2: sigmoid
  T temperature;
  T sort;  // see sort_from
  static constexpr bool large = true;  // see csrc/cuda/instantiate.cuh

  FASTDML_HOST_FN Sorts sorts() const { return sorts_by(sort); }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(select(p.negative, p.s, highest<T>()));
  }

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T sharpness = T(1) / temperature;
    const auto mean = [](T positives, T negatives) { return T(1) / (positives * negatives); };
    const auto huber = [=](auto t) {
      auto u = max(t * sharpness + T(1), T(0));
      auto ahead = t > T(0);  // the negative leads: linear from here on
      return values(select(ahead, T(2) * u - T(1), u * u),
                    select(ahead, T(2) * sharpness, T(2) * sharpness * u));
    };
    const auto logistic = [=](auto t) {
      const T bit = T(1.4426950408889634);
      return values(softplus(t * sharpness) * bit, sigmoid(t * sharpness) * (sharpness * bit));
    };
    const auto step = [=](auto t) {
      auto sigma = sigmoid(t * sharpness);
      return values(sigma, sigma * (T(1) - sigma) * sharpness);
    };
    const int least = sort_from(sort, kind == T(0) ? 64 : 32);
    const T far = flat<T>() * temperature, bit = T(1.4426950408889634);
    const PairSum<T> found =
        kind == T(0) ? rank_pairs<T>(row, huber,
                                     Tail<T>{-temperature, T(0), T(0), T(0), T(1), T(2) * sharpness,
                                             true, least},
                                     mean)
        : kind == T(1)
            ? rank_pairs<T>(
                  row, logistic,
                  Tail<T>{-far, far, T(0), T(0), T(0), sharpness * bit, true, least, temperature}, mean)
            : rank_pairs<T>(row, step, step_tail(temperature, true, least), mean);
    return {found.loss, found.positives * found.negatives > T(0) ? T(1) : T(0)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(auc, Auc)
