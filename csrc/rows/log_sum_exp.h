// Log of a sum of exponentials and the number of positives: statistics that other losses read of their columns (RowLoss.presweep).
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct LogSumExp {
  T scale, offset;
  T negatives_only;
  T learnable;  // 1: the scale is row.scalar(0) times this one

  template <class Row>
  FASTDML_FN T by(const Row& row) const {
    return learnable != 0 ? scale * row.scalar(0) : scale;
  }

  // What is summed up of a pair; lowest<T>() where it does not take part.
  FASTDML_FN auto exponent(T by) const {
    const T shift = offset;
    const T keep = negatives_only != 0 ? T(0) : T(1), drop = negatives_only != 0 ? lowest<T>() : T(0);
    return [=](auto p) {
      auto z = by * p.s + shift;
      return select(p.negative, z, select(p.positive, z * keep + drop, lowest<T>()));
    };
  }

  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const T slope = by(row);
    const auto exponent = this->exponent(slope);
    const LogSum<T> sum = log_sum<T>(row, exponent);
    const auto [positives] =
        row.reduce([=](auto p) { return values(select(p.positive, T(1), T(0))); }, Sum{});
    const T inverse = sum.empty() ? T(0) : row.weight(0, 2) * slope / sum.total, top = sum.top;
    row.map([=](auto p) {
      auto z = exponent(p);
      return select(z > lowest<T>(), exp(z - top) * inverse, T(0));
    });
    return values(sum.log_of_sum(), positives);
  }

  // By columns: the largest exponent, the sum of exponentials with that taken out, what rounding has added
  // to the sum, and the number of positives.
  static constexpr int gathered = 4;

  template <class V>
  FASTDML_FN static Values<V, 4> nothing() {
    return {V{} + lowest<T>(), V{}, V{}, V{}};
  }

  template <class Call>
  FASTDML_FN auto gather(const Call& call) const {
    const auto exponent = this->exponent(by(call));
    return [=]<class V, class P, int R>(Values<V, 4> column, const P(&pairs)[R]) {
      V z[R], top = column[0], sum{}, positives = column[3];
      for (int r = 0; r < R; ++r) top = max(top, z[r] = exponent(pairs[r]));
      for (int r = 0; r < R; ++r) {
        sum += select(z[r] > lowest<T>(), exp(z[r] - top), T(0));
        positives += select(pairs[r].positive, T(1), T(0));
      }
      // A column adds up thousands of parts: what each addition rounds off goes into the next.
      const V less = exp(column[0] - top), before = column[1] * less;
      const V part = sum - column[2] * less, total = before + part;
      return Values<V, 4>{{top, total, (total - before) - part, positives}};
    };
  }

  template <class V>
  FASTDML_FN Values<V, 2> gathered_outputs(const Values<V, 4>& column) const {
    const auto some = column[1] > T(0);
    return {select(some, column[0] + log(select(some, column[1], T(1))), lowest<T>()), column[3]};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(log_sum_exp, LogSumExp)
