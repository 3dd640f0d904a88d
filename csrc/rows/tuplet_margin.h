// Tuplet margin loss (Yu and Tao, ICCV 2019): every positive against all negatives of its anchor.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct TupletMargin {
  T margin;  // radians
  T scale;

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T by = scale, cosine = cos(margin), sine = sin(margin);
    auto positives = row.positives();
    const int n = positives.size();
    const auto [top] = row.reduce(
        [](auto p) { return values(select(p.negative, p.s, lowest<T>())); }, Max{});
    if (n == 0 || !(top > lowest<T>())) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), static_cast<T>(n)};
    }
    const T hardest = top;
    const auto [sum] = row.reduce(
        [=](auto p) { return values(select(p.negative, exp((p.s - hardest) * by), T(0))); }, Sum{});
    const T logarithm = hardest * by + log(sum);
    auto direct = row.array(n);
    const auto excess = [=](int k) {
      // cos(acos(s) - margin). What is left of two nearly equal numbers is rounding, which the root
      // would magnify: it counts as 0, and so does the derivative of an angle of 0.
      const T square = T(1) - positives[k] * positives[k];
      const T height = square > T(16) * epsilon<T>() ? sqrt(square) : T(0);
      return values(logarithm - by * (positives[k] * cosine + height * sine), height);
    };
    const T pushes = positives.sum([=](int k) { return sigmoid(excess(k)[0]); });
    const T loss = positives.sum([=](int k) { return softplus(excess(k)[0]); });
    positives.each([=](int k) {
      const auto [z, height] = excess(k);
      const T bend = height > T(0) ? positives[k] / height : T(0);
      direct[k] = -by * sigmoid(z) * (cosine - bend * sine);
    });
    const T push = by * pushes / sum;
    row.map([=](auto p) { return select(p.negative, exp((p.s - hardest) * by) * push, T(0)); });
    positives.add(direct);
    return {loss, static_cast<T>(n)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(tuplet_margin, TupletMargin)
