// PNP (Li et al., 2021): penalises the number of negatives ahead of each positive.
#pragma once
#include "smooth_step.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Pnp {
  T variant;  // 0: O, 1: Ds, 2: Dq, 3: Iu, 4: Ib
  T b, alpha;
  T temperature;
  T sort;  // see sort_from

  // The penalty of r negatives ahead, and its derivative.
  FASTDML_FN Values<T, 2> penalty(T r) const {
    const T one = T(1) + r;
    if (variant == T(1)) return values(log(one), T(1) / one);
    if (variant == T(2)) {
      const T kept = exp(-alpha * log(one));
      return values(T(1) - kept, alpha * kept / one);
    }
    if (variant == T(3)) return values(one * log(one), log(one) + T(1));
    if (variant == T(4)) return values((b * r - log(T(1) + b * r)) / (b * b), r / (T(1) + b * r));
    return values(r, T(1));
  }

  FASTDML_HOST_FN Sorts sorts() const { return sorts_by(sort); }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(select(p.negative, p.s, highest<T>()));
  }

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T sharpness = T(1) / temperature;
    const auto step = of_sigmoid(sharpness, [](auto sigma, auto, auto p) {
      return values(select(p.negative, sigma, T(0)), select(p.negative, sigma - sigma * sigma, T(0)));
    });
    const auto slope = of_sigmoid(sharpness, [](auto sigma, auto, auto p) {
      return select(p.negative, sigma - sigma * sigma, T(0));
    });
    const Tail<T> tail = step_tail(temperature, true, sort_from(sort, 48));
    auto positives = row.positives();
    const int n = positives.size();
    row.d_value(0, T(0));
    if (n - row.value(0) < T(0.5)) {  // a query that is its only positive does not count
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    const auto ahead = row.compare(positives, step, tail);
    auto push = row.array(n), direct = row.array(n);
    const Pnp cost = *this;
    const T total = positives.sum([=](int k) {
      const auto [height, rate] = cost.penalty(ahead[k][0]);
      push[k] = rate * sharpness / n;
      direct[k] = -push[k] * ahead[k][1];
      return height;
    });
    row.map_compare(positives, push, slope, tail);
    positives.add(direct);
    return {total / n, T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(pnp, Pnp)
