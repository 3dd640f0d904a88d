// Circle loss (Sun et al., CVPR 2020): SPEC 3.6. Pair weights are constants for the gradient.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct CircleTerms {
  T margin, gamma;

  template <class Pair>
  FASTDML_FN auto weight(Pair p) const {
    const T m = margin, g = gamma;
    return select(p.positive, -g * max(T(1) + m - p.s, T(0)), g * max(p.s + m, T(0)));
  }
  template <class Pair>
  FASTDML_FN auto exponent(Pair p) const {
    auto z = weight(p) * (p.s - select(p.positive, T(1) - margin, margin));
    return select(p.positive, z, select(p.negative, z, lowest<T>()));
  }
};

// Every row: softplus(LSE over its positives + LSE over its negatives).
template <class T>
struct Circle {
  T margin, gamma;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const CircleTerms<T> terms{margin, gamma};
    const LogSums<T> sums = log_sums<T>(row, [=](auto p) { return terms.exponent(p); });
    if (sums.positive.empty() || sums.negative.empty()) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const T total = sums.positive.log_of_sum() + sums.negative.log_of_sum();
    const T slope = sigmoid(total);
    const T top_p = sums.positive.top, top_n = sums.negative.top;
    const T by_p = slope / sums.positive.total, by_n = slope / sums.negative.total;
    row.map([=](auto p) {
      auto z = terms.exponent(p);
      auto e = exp(z - select(p.positive, top_p, top_n)) * select(p.positive, by_p, by_n);
      return select(z > lowest<T>(), e * terms.weight(p), T(0));
    });
    return softplus(total);
  }
};

// One softplus for the whole matrix: a row hands in its two logs of sums.
template <class T>
struct CircleGlobal {
  T margin, gamma;

  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const CircleTerms<T> terms{margin, gamma};
    const LogSums<T> sums = log_sums<T>(row, [=](auto p) { return terms.exponent(p); });
    const T top_p = sums.positive.top, top_n = sums.negative.top;
    const T by_p = sums.positive.empty() ? T(0) : row.weight(0, 2) / sums.positive.total;
    const T by_n = sums.negative.empty() ? T(0) : row.weight(1, 2) / sums.negative.total;
    row.map([=](auto p) {
      auto z = terms.exponent(p);
      auto e = exp(z - select(p.positive, top_p, top_n)) * select(p.positive, by_p, by_n);
      return select(z > lowest<T>(), e * terms.weight(p), T(0));
    });
    return values(sums.positive.log_of_sum(), sums.negative.log_of_sum());
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(circle, Circle)
FASTDML_ROW_LOSS(circle_global, CircleGlobal)
