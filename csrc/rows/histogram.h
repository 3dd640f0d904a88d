// Histogram loss (Ustinova and Lempitsky, NIPS 2016): soft histograms of similarities of all positive and
// of all negative pairs. The loss is a function of the histograms, which the caller knows: the row adds up
// a value per bin that it is given, so the derivative by the values is the histogram, and the derivative
// by the similarities that of the loss once the values are its derivatives by the histograms.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Histogram {
  T bins;  // distances between neighbouring centres on [-1, 1]: one less than the centres

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const int n = static_cast<int>(bins) + 1;
    const T width = T(2) / bins, rate = T(1) / width;
    const auto member = [=](auto t, auto) { return values(max(T(1) - abs(t) * rate, T(0))); };
    const auto strange = [=](auto t, auto p) {
      return values(select(p.negative, member(t, p)[0], T(0)));
    };
    const auto slope = [=](auto t, auto) {
      return select(abs(t) < width, select(t < T(0), rate, -rate), T(0));
    };
    const auto strange_slope = [=](auto t, auto p) { return select(p.negative, slope(t, p), T(0)); };
    auto positives = row.positives();
    auto centres = row.list(n, [=](int k) { return width * k - T(1); });
    const auto mine = positives.compare(centres, member);
    const auto theirs = row.compare(centres, strange);
    auto by_mine = row.array(n), by_theirs = row.array(n);
    const T loss = centres.sum([&](int k) {
      by_mine[k] = row.scalar(k);
      by_theirs[k] = row.scalar(n + k);
      return by_mine[k] * mine[k][0] + by_theirs[k] * theirs[k][0];
    });
    for (int k = 0; k < n; ++k) {
      row.d_scalar(k, mine[k][0]);
      row.d_scalar(n + k, theirs[k][0]);
    }
    row.map_compare(centres, by_theirs, strange_slope);
    positives.add_compare(centres, by_mine, slope);
    return loss;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(histogram, Histogram)
