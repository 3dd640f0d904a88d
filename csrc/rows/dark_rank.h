// Hard DarkRank (Chen et al., AAAI 2018): SPEC 1.2. Minus the log-likelihood of the order of the teacher's
// nearest neighbours under the Plackett-Luce model with scores z = -alpha d^beta. Rows hold d^2.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct DarkRank {
  T alpha, beta, neighbors;

  static constexpr bool whole_rows = true;
  FASTDML_HOST_FN Sorts sorts() const { return Sorts::all; }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(-p.teacher());
  }

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T a = alpha, half = beta / T(2), most = static_cast<T>(row.candidates());
    // A NaN anywhere in the row must not be lost with the pairs that are left out.
    const auto [poison] = row.reduce(
        [](auto p) {
          auto t = p.teacher();
          return values((p.s - p.s) + (t - t));
        },
        Sum{});
    auto nearest = row.first(static_cast<int>(min(neighbors, most)), [](auto p) { return -p.teacher(); });
    const int n = nearest.size();
    row.map([](auto p) { return p.s * T(0); });
    auto left = row.array(n), slope = row.array(n);
    const auto score = [&](int k) {
      const T s = nearest[k];
      return s > T(0) ? -a * exp(half * log(s)) : s - s;
    };
    // One pass up the list for the sums of exponentials of those that are left, one down for slopes. One
    // thread: each step needs the last.
    const T loss = row.list(1, [&](int) {
      T rest = lowest<T>(), total = poison;
      for (int k = n - 1; k >= 0; --k) {
        const T z = score(k), top = max(z, rest);
        rest = top + log(exp(z - top) + exp(rest - top));
        left[k] = rest;
        total += rest - z;
      }
      T sum = T(0);  // of exp(left_k - left_i) over i up to k
      for (int k = 0; k < n; ++k) {
        const T z = score(k), s = nearest[k];
        sum = T(1) + (k > 0 ? sum * exp(left[k] - left[k - 1]) : T(0));
        // At a distance of 0 the power's derivative counts as 0 where it has none.
        const T by = s > T(0) ? half * z / s : s == T(0) && half == T(1) ? -a : T(0);
        slope[k] = (exp(z - left[k]) * sum - T(1)) * by + poison;
      }
      return total;
    })[0];
    nearest.set(slope);
    return loss;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(dark_rank, DarkRank)
