// Neighbourhood component analysis (Goldberger et al., NIPS 2004): -log of the row's softmax mass on its
// positives.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct NCA {
  T scale;  // of similarities; negative on distances

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale, share = row.scalar(0);  // rows / rows with a positive
    const LogSums<T> sums = log_sums<T>(row, [=](auto p) {
      return select(p.positive, by * p.s, select(p.negative, by * p.s, lowest<T>()));
    });
    if (sums.positive.empty() || sums.negative.empty()) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    // -log(P / (P + N)) = softplus(log N - log P), whose derivative by log N is the mass on N.
    const T gap = sums.negative.log_of_sum() - sums.positive.log_of_sum();
    const T weight = sigmoid(gap) * by * share;
    const T top_p = sums.positive.top, top_n = sums.negative.top;
    const T pull = -weight / sums.positive.total, push = weight / sums.negative.total;
    row.map([=](auto p) {
      auto e = exp(by * p.s - select(p.positive, top_p, top_n));
      return e * select(p.positive, pull, select(p.negative, push, T(0)));
    });
    return share * softplus(gap);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(nca, NCA)
