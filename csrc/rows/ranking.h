// What losses that sum a function over all (positive, negative) pairs of a row share.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

// The sum over all positives p and negatives n of a row, and what it is made of.
template <class T>
struct PairSum {
  T loss;                  // scaled
  T slopes;                // sum of the slopes, unscaled: the active pairs of a hinge
  T positives, negatives;  // of the row
};

// Sums phi(x_n - x_p) over all positives p and negatives n of the row, times scale(positives,
// negatives), and turns the row into the sum's derivative. phi(t) returns values(height, slope). takes(p):
// the negatives that take part. `tail`: what phi does outside a window, or nothing; it may be given where
// all negatives take part, as rows are not sorted for fewer.
template <class T, class Row, class Phi, class Scale, class Takes, class... MaybeTail>
FASTDML_FN PairSum<T> rank_pairs(Row& row, Phi phi, Scale scale, T opposed, Takes takes,
                                 const MaybeTail&... tail) {
  auto positives = row.positives();
  const int n = positives.size();
  if (n == 0 || opposed == T(0)) {
    row.map([](auto p) { return p.s * T(0); });
    return {T(0), T(0), static_cast<T>(n), opposed};
  }
  const auto above = row.compare(positives, [=](auto t, auto p) {
    const auto [height, slope] = phi(t);
    return values(select(takes(p), height, T(0)), select(takes(p), slope, T(0)));
  }, tail...);
  const T factor = scale(static_cast<T>(n), opposed);
  auto push = row.array(n), direct = row.array(n);
  const T total = positives.sum([=](int k) {
    push[k] = factor;
    direct[k] = -factor * above[k][1];
    return above[k][0];
  });
  const T slopes = positives.sum([=](int k) { return above[k][1]; });
  row.map_compare(positives, push, [=](auto t, auto p) {
    return select(takes(p), phi(t)[1], T(0));
  }, tail...);
  positives.add(direct);
  return {factor * total, slopes, static_cast<T>(n), opposed};
}

template <class T, class Row, class Phi, class Scale>
FASTDML_FN PairSum<T> rank_pairs(Row& row, Phi phi, const Tail<T>& tail, Scale scale) {
  const T negatives = static_cast<T>(row.candidates() - row.positives().size());
  return rank_pairs<T>(row, phi, scale, negatives, [](auto p) { return p.negative; }, tail);
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
