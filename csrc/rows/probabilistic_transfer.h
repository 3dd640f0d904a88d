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
    const T student = half / totals[0], teacher = half / totals[1];
    const auto sums = row.reduce(
        [=](auto p) {
          // Rounding may leave a cosine below -1.
          auto mine = max((p.s + T(1)) * student, T(0));
          auto theirs = max((p.teacher() + T(1)) * teacher, T(0));
          return values(theirs * (log(theirs + small) - log(mine + small)),
                        theirs * mine / (mine + small));
        },
        Sum{}, Sum{});
    const T mean = sums[1], by = student * share;
    row.map([=](auto p) {
      auto mine = max((p.s + T(1)) * student, T(0));
      auto theirs = max((p.teacher() + T(1)) * teacher, T(0));
      return (mean - theirs / (mine + small)) * by;
    });
    return sums[0] * share;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(probabilistic_transfer, ProbabilisticTransfer)
