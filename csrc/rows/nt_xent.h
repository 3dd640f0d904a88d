// NT-Xent of every positive against the row's negatives: softplus(LSE_N z - z_p).
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct NTXent {
  T scale;  // of similarities: 1 / temperature, negative on distances

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale, share = row.scalar(0);  // rows / positive pairs
    const auto exponent = [=](auto p) { return select(p.negative, by * p.s, lowest<T>()); };
    const LogSum<T> negatives = log_sum<T>(row, exponent);
    if (negatives.empty()) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const T level = negatives.log_of_sum(), top = negatives.top;
    const auto [loss, slope] = row.reduce(
        [=](auto p) {
          if (!any(p.positive)) return values(p.s * T(0), p.s * T(0));  // most vectors of pairs
          auto gap = level - by * p.s;
          return values(select(p.positive, softplus(gap), T(0)), select(p.positive, sigmoid(gap), T(0)));
        },
        Sum{}, Sum{});
    const T pull = -by * share, push = by * share * slope / negatives.total;
    row.map([=](auto p) {
      auto z = by * p.s;
      auto e = exp(select(p.positive, z - level, z - top));
      // sigmoid(level - z) = 1 / (1 + exp(z - level))
      return select(p.positive, pull / (e + T(1)), select(p.negative, e * push, T(0)));
    });
    return share * loss;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(nt_xent, NTXent)
