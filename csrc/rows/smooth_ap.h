// Smooth-AP (Brown et al., ECCV 2020): SPEC 3.1. The row's positives are its thresholds.
#pragma once
#include "smooth_step.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SmoothAP {
  T temperature;
  T sort;  // see sort_from

  FASTDML_HOST_FN Sorts sorts() const { return sorts_by(sort); }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(p.s);
  }

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T sharpness = T(1) / temperature;
    const Tail<T> tail = step_tail(temperature, false, sort_from(sort, 48));
    auto positives = row.positives();
    const int n = positives.size();
    if (n == 0) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const auto all = row.compare(positives, smooth_step(sharpness), tail);
    const auto own = positives.compare(smooth_step(sharpness), tail);
    auto push = row.array(n), pull = row.array(n), direct = row.array(n);
    const T ap = positives.sum([=](int k) {
      // The pair j = k adds sigma(0) = 1/2 to both sums: half of the leading 1 of a rank.
      const T rank_own = T(0.5) + own[k][0], rank_all = T(0.5) + all[k][0];
      const T precision = rank_own / rank_all;
      const T factor = sharpness / (rank_all * n);
      pull[k] = -factor;
      push[k] = precision * factor;
      direct[k] = (own[k][1] - precision * all[k][1]) * factor;
      return precision;
    });
    row.map_compare(positives, push, smooth_slope(sharpness), tail);
    positives.add_compare(pull, smooth_slope(sharpness), tail);
    positives.add(direct);
    return T(1) - ap / n;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(smooth_ap, SmoothAP)
