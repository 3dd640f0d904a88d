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
    const int n = static_cast<int>(bins);
    const T rate = bins / T(2);
    const auto any = [](auto p) { return p.s; };
    const auto strange = [](auto p) { return select(p.negative, p.s, lowest<T>()); };
    auto positives = row.positives();
    const auto mine = positives.shares(n, any);
    const auto theirs = row.shares(n, strange);
    auto by_mine = row.array(n), by_theirs = row.array(n);
    const auto each = row.list(n + 1, [&](int k) {
      if (k < n) {
        by_mine[k] = rate * (row.scalar(k + 1) - row.scalar(k));
        by_theirs[k] = rate * (row.scalar(n + 2 + k) - row.scalar(n + 1 + k));
      }
      return row.scalar(k) * mine[k][0] + row.scalar(n + 1 + k) * theirs[k][0];
    });
    const T loss = each.sum([&](int k) { return each[k]; });
    for (int k = 0; k <= n; ++k) {
      row.d_scalar(k, mine[k][0]);
      row.d_scalar(n + 1 + k, theirs[k][0]);
    }
    row.map_by_bin(n, by_theirs, strange);
    positives.add_by_bin(n, by_mine, any);
    return loss;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(histogram, Histogram)
