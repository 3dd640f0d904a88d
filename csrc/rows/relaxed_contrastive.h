// Relaxed contrastive loss (Kim et al., CVPR 2021): SPEC 1.2. Rows hold distances, the teacher's squared ones.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct RelaxedContrastive {
  T sigma, delta;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T sharpness = T(-1) / sigma, margin = delta;
    const auto [total] = row.reduce([](auto p) { return values(p.s); }, Sum{});
    if (!(total > T(0))) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    // The pair of a sample with itself has a distance of 0 that counts in the mean.
    const T n = row.candidates() + (row.has_own() ? 1 : 0);
    const T unit = n / total;  // one over the mean distance
    const auto slope = [=](auto p) {  // derivative of a term by its distance in units of the mean
      auto w = exp(p.teacher() * sharpness);
      auto r = p.s * unit;
      return T(2) * (w * r - (T(1) - w) * max(margin - r, T(0)));
    };
    const auto sums = row.reduce(
        [=](auto p) {
          auto w = exp(p.teacher() * sharpness);
          auto r = p.s * unit;
          auto gap = max(margin - r, T(0));
          auto counts = p.s > T(0);
          return values(select(counts, w * r * r + (T(1) - w) * gap * gap, T(0)),
                        select(counts, slope(p) * r, T(0)));
        },
        Sum{}, Sum{});
    const T shift = sums[1] / n;  // of all distances, through their mean
    row.map([=](auto p) { return select(p.s > T(0), (slope(p) - shift) * unit, T(0)); });
    return sums[0];
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(relaxed_contrastive, RelaxedContrastive)
