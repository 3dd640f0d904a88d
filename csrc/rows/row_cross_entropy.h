// Cross-entropy of the softmax over a row with a target that is spread evenly over its positives: SupCon
// (SPEC 3.7), SPCE and PCE (2.6), the instance loss, and the positive and entropy terms of 2.18.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct RowCrossEntropy {
  T scale;           // of similarities: 1 / temperature, negative on distances
  T pull, push;      // weights of the positives' mean and of the log of the sum
  T per;             // what the sum over positives is divided by: 0 their number, 1 the number of
                     // candidates, 2 row.scalar(0) (positives per row of the batch), 3 nothing
  T needs_positive;  // 1: rows without a positive have a loss of 0
  T negatives_only;  // 1: positives are left out of the softmax
  T log_mean;        // 1: log of the mean of exponentials instead of the sum

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale;
    const T keep = negatives_only != 0 ? T(0) : T(1);
    const T drop = negatives_only != 0 ? lowest<T>() : T(0);
    const auto exponent = [=](auto p) {
      auto z = by * p.s;
      return select(p.negative, z, select(p.positive, z * keep + drop, lowest<T>()));
    };
    const LogSum<T> sum = log_sums<T>(row, exponent).merged();
    const T top = sum.top;
    // Where both terms have the same weight the largest exponent cancels, and is left out of both: a small
    // loss of large logits keeps its digits.
    const T from = per == 0 && pull == push && !sum.empty() ? top : T(0);
    const auto [target, positives, members] = row.reduce(
        [=](auto p) {
          return values(select(p.positive, by * p.s - from, T(0)), select(p.positive, T(1), T(0)),
                        select(exponent(p) > lowest<T>(), T(1), T(0)));
        },
        Sum{}, Sum{}, Sum{});
    const bool skipped = needs_positive != 0 && !(positives > T(0));
    T share = pull;
    if (per == 0) share = positives > T(0) ? pull / positives : T(0);
    if (per == 1) share = pull / max(T(1), T(row.candidates()));
    if (per == 2) share = pull * row.scalar(0);
    if (skipped) share = T(0);
    const T weight = skipped || sum.empty() ? T(0) : push;
    const T attract = share * by, repel = weight == 0 ? T(0) : weight * by / sum.total;
    row.map([=](auto p) {
      auto z = exponent(p);
      auto softmax = select(z > lowest<T>(), exp(z - top) * repel, T(0));
      return softmax - select(p.positive, attract, T(0));
    });
    if (weight == 0) return -share * target;
    const T mean = log_mean != 0 ? log(members) : T(0);
    const T rest = positives > T(0) ? top - from : top;
    return weight * (rest + log(sum.total) - mean) - share * target;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(sup_con, RowCrossEntropy)
FASTDML_ROW_LOSS(spce, RowCrossEntropy)
FASTDML_ROW_LOSS(instance, RowCrossEntropy)
FASTDML_ROW_LOSS(balanced_nt_xent, RowCrossEntropy)
