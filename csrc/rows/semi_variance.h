// Semi-variance (Wen et al., NeurIPS 2022): SPEC 2.17. Squares of what positives fall short of their mean
// and negatives exceed theirs; the means are values of the call, whose derivatives count.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SemiVariance {
  T unused;

  // Sums of the squares of positives and negatives, and how many of each are above 0.
  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const T mean_p = row.scalar(0), mean_n = row.scalar(1);
    const auto excess = [=](auto p) {
      return max(select(p.positive, mean_p - p.s, p.s - mean_n), T(0));
    };
    const auto sums = row.reduce(
        [=](auto p) {
          auto x = excess(p);
          auto one = select(x > T(0), T(1), T(0));
          return values(select(p.positive, x * x, T(0)), select(p.negative, x * x, T(0)),
                        select(p.positive, one, T(0)), select(p.negative, one, T(0)),
                        select(p.positive, x, T(0)), select(p.negative, x, T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{}, Sum{}, Sum{});
    const T pull = T(2) * row.weight(0, 4), push = T(2) * row.weight(1, 4);
    row.d_scalar(0, pull * sums[4]);
    row.d_scalar(1, -push * sums[5]);
    row.map([=](auto p) {
      return excess(p) * select(p.positive, -pull, select(p.negative, push, T(0)));
    });
    return values(sums[0], sums[1], sums[2], sums[3]);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(semi_variance, SemiVariance)
