// Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018): SPEC 1.2. Rows hold cosines; a row's
// affinities (cosine + 1) / 2, over their sum, are a distribution.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct ProbabilisticTransfer {
  T epsilon;  // added to probabilities in their ratio

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T small = epsilon, half = T(0.5);
    const auto totals = row.reduce(
        [=](auto p) { return values((p.s + T(1)) * half, (p.teacher() + T(1)) * half); }, Sum{},
        Sum{});
    if (!(totals[0] > T(0)) || !(totals[1] > T(0))) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const T share = T(1) / row.candidates();
    const T total = totals[0], total_t = totals[1];
    // Rounding may leave a cosine below -1. Divided, not multiplied by the inverse: a row of one
    // candidate has a probability of exactly 1.
    const auto mine = [=](auto p) { return max((p.s + T(1)) * half / total, T(0)); };
    const auto theirs = [=](auto p) { return max((p.teacher() + T(1)) * half / total_t, T(0)); };
    const auto sums = row.reduce(
        [=](auto p) {
          auto q = theirs(p), m = mine(p);
          auto ratio = (q + small) / (m + small);
          return values(q * log(ratio), q * m / (m + small));
        },
        Sum{}, Sum{});
    const T mean = sums[1], by = half / total * share;
    row.map([=](auto p) {
      auto own = theirs(p) / (mine(p) + small);
      return (mean - select(p.s < T(-1), T(0), own)) * by;
    });
    return sums[0] * share;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(probabilistic_transfer, ProbabilisticTransfer)
