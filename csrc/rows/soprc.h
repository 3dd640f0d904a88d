// SOPRC (Wen et al., NeurIPS 2022): SPEC 2.17. A stochastic estimator of the area under the
// precision-recall curve. Row values: (1 - prior) / prior, then the table of its class's scores.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Soprc {
  T width, step;  // of the surrogates of negatives and of the table
  T size;         // of the table
  T sort;         // see sort_from

  FASTDML_HOST_FN Sorts sorts() const { return sorts_by(sort); }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(select(p.negative, p.s, highest<T>()));
  }

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T sharpness = T(1) / width, steep = T(1) / step;
    const auto huber = [=](auto t, auto p) {
      auto u = max(t * sharpness + T(1), T(0));
      auto ahead = t > T(0);  // the negative leads: linear from here on
      auto height = select(ahead, T(2) * u - T(1), u * u);
      auto slope = select(ahead, T(2) * sharpness, T(2) * sharpness * u);
      return values(select(p.negative, height, T(0)), select(p.negative, slope, T(0)));
    };
    const auto pull = [=](auto t, auto p) {
      auto u = max(t * sharpness + T(1), T(0));
      auto slope = select(t > T(0), T(2) * sharpness, T(2) * sharpness * u);
      return select(p.negative, slope, T(0));
    };
    const auto ahead = [=](auto t, auto) {
      return values(select(t > T(0), T(2) * sigmoid(t * steep) - T(1), t * T(0)));
    };
    const int n_table = static_cast<int>(size);
    for (int k = 0; k <= n_table; ++k) row.d_value(k, T(0));
    auto positives = row.positives();
    const int n = positives.size();
    const T opposed = static_cast<T>(row.candidates() - n);
    if (n == 0 || opposed == T(0)) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), n == 0 ? T(0) : T(1)};
    }
    const Tail<T> tail{-width, T(0), T(0), T(0), T(1), T(2) * sharpness, true,
                       sort_from(sort, 64)};
    const auto above = row.compare(positives, huber, tail);
    const T odds = row.value(0), places = size + T(1);
    auto table = row.list(n_table, [&](int k) { return row.value(1 + k); });
    const auto better = table.compare(positives, ahead);  // a constant for the gradient
    auto push = row.array(n), direct = row.array(n);
    const T total = positives.sum([=](int k) {
      const T b = (T(1) + better[k][0]) / places;
      const T r = odds * above[k][0] / (opposed * b), rest = T(1) / (T(1) + r);
      push[k] = odds * rest * rest / (b * opposed * n);
      direct[k] = -push[k] * above[k][1];
      return r * rest;
    });
    row.map_compare(positives, push, pull, tail);
    positives.add(direct);
    return {total / n, T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(soprc, Soprc)
