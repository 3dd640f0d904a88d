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

  // Row values 1, 2, 3: the stream of its draws.
  template <class Row>
  FASTDML_FN Counted<T> of_draws(Row& row) const {
    const T m = margin, beta = row.value(0), least = nearest, most = farthest;
    const T power = T(2) - dimension, bend = T(0.5) * (T(3) - dimension);
    for (int k = 1; k < 4; ++k) row.d_value(k, T(0));
    auto positives = row.positives();
    const int n = positives.size();
    auto column = row.array(n + 4), weight = row.array(n + 4), direct = row.array(n);
    const auto log_weight = [=](auto p) {
      auto d = max(p.s, least);
      auto w = power * log(d) + bend * log(max(T(1) - T(0.25) * d * d, T(1e-8)));
      return select(p.negative & (p.s < most), w, lowest<T>());
    };
    const Stream<T> stream{row.value(1), row.value(2), row.value(3)};
    T loss = T(0), pairs = T(0), active = T(0), by_beta = T(0);
    bool any = n > 0;
    for (int block = 0; any && 4 * block < n; ++block) {
      const auto found = draw<T>(row, log_weight, stream, block);
      any = found[0].found();
      for (int i = 0; i < 4; ++i) {
        const int k = 4 * block + i;
        if (!any || k >= n) break;
        const T pull = positives[k] - beta + m, push = beta - found[i].s + m;
        // NaN goes through.
        const T near = pull <= T(0) ? T(0) : T(1), far = push <= T(0) ? T(0) : T(1);
        loss += near * pull + far * push + nu * beta;
        pairs += near + far;
        active += near + far - near * far;
        by_beta += far - near + nu;
        direct[k] = near;
        column[k] = found[i].column;
        weight[k] = -far;
      }
    }
    row.d_value(0, by_beta);
    if (!any) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    row.map([=](auto p) {
      auto j = p.index();
      auto g = select(j == column[0], weight[0], T(0));
      for (int k = 1; k < n; ++k) g = g + select(j == column[k], weight[k], T(0));
      return g;
    });
    positives.add(direct);
    return {loss, triplets != T(0) ? active : pairs};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(margin, Margin)
