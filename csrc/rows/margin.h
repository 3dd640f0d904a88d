// Margin loss (Wu et al., ICCV 2017): SPEC 2.14. The row holds distances; its first value is beta.
#pragma once
#include "apart.h"
#include "mining.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Margin {
  T margin, nu;
  T triplets;   // what is counted. 0: active pairs of all triplets, 1: triplets with an active pair
  T drawn;      // 1: one negative per positive, drawn by distance; 0: every triplet
  T dimension;  // of the embeddings, for the density of distances
  T nearest, farthest;  // distances below count as `nearest`; negatives from `farthest` on are not drawn

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    return drawn != T(0) ? of_draws(row) : of_all(row);
  }

 private:
  // The triplets of a row are its positives times its negatives: each pair is counted with the number
  // of its partners.
  template <class Row>
  FASTDML_FN Counted<T> of_all(Row& row) const {
    const T m = margin, beta = row.value(0);
    const auto excess = [=](auto p) { return select(p.positive, p.s - beta, beta - p.s) + m; };
    const auto [pull, push, near, far, some, own] = row.reduce(
        [=](auto p) {
          auto x = excess(p);
          auto cost = max(x, T(0));
          auto active = select(x > T(0), T(1), T(0));
          return values(select(p.positive, cost, T(0)), select(p.negative, cost, T(0)),
                        select(p.positive, active, T(0)), select(p.negative, active, T(0)),
                        select(p.negative, T(1), T(0)), select(p.positive, T(1), T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{}, Sum{}, Sum{});
    const T others = some, mine = own;
    row.map([=](auto p) {
      auto slope = select(p.positive, others, select(p.negative, -mine, T(0)));
      return where_apart(p, select(excess(p) > T(0), slope, T(0)));
    });
    row.d_value(0, mine * far - others * near + nu * mine * others);
    const T pairs = others * near + mine * far;
    const T some_active = mine * others - (mine - near) * (others - far);
    return {others * pull + mine * push + nu * beta * mine * others,
            triplets != T(0) ? some_active : pairs};
  }

  // Row values 1, 2, 3: the stream of its draws. A negative at the distance d weighs
  // d^(2 - D) (1 - d^2 / 4)^((3 - D) / 2), over the largest of the row so that it is a number: nowhere between
  // two distances is it larger than at both (nor much in one dimension), so these are the least and the largest.
  template <class Row>
  FASTDML_FN Counted<T> of_draws(Row& row) const {
    const T m = margin, beta = row.value(0), least = nearest, most = farthest;
    for (int k = 1; k < 4; ++k) row.d_value(k, T(0));
    auto positives = row.positives();
    const int n = positives.size();
    const auto [first, last, poison] = row.reduce(
        [=](auto p) {
          auto d = max(p.s, least);
          auto drawn = p.negative & (p.s < most);
          return values(select(drawn, d, highest<T>()), select(drawn, d, lowest<T>()), p.s - p.s);
        },
        Min{}, Max{}, Sum{});
    if (n == 0 || last == lowest<T>()) {
      row.d_value(0, T(0));
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    const T power = T(2) - dimension;
    const auto height = [](auto d) { return sqrt(max(T(1) - T(0.25) * d * d, T(1e-8))); };
    const T at_first = power * log(first * height(first)) + log(height(first));
    const T at_last = power * log(last * height(last)) + log(height(last));
    const T top = max(at_first, at_last);
    auto drawn = row.draw(
        n,
        [=](auto p) {
          auto d = max(p.s, least);
          auto h = height(d);
          return select(p.negative & (p.s < most), exp(power * log(d * h) - top) * h, T(0));
        },
        Stream<T>{row.value(1), row.value(2), row.value(3)});
    auto weight = row.array(n), direct = row.array(n);
    T loss = T(0), pairs = T(0), active = T(0), by_beta = T(0);
    for (int k = 0; k < n; ++k) {
      const T pull = positives[k] - beta + m, push = beta - (drawn[k] + poison) + m;
      // NaN goes through.
      const T near = pull <= T(0) ? T(0) : T(1), far = push <= T(0) ? T(0) : T(1);
      loss += near * pull + far * push + nu * beta;
      pairs += near + far;
      active += near + far - near * far;
      by_beta += far - near + nu;
      direct[k] = near;
      weight[k] = -far;
    }
    row.d_value(0, by_beta);
    row.map_at(drawn, weight);
    positives.add(direct);
    return {loss, triplets != T(0) ? active : pairs};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(margin, Margin)
