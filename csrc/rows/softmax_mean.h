// A pool of several proxies of one class: the mean of their similarities, weighted by a softmax of
// sharpness * s (SPEC 2.13, 3.4).
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SoftmaxMean {
  T sharpness;

  // The mean, the largest similarity, and one over the sum of exponentials.
  template <class Member>
  FASTDML_FN auto operator()(Member member, int size) const {
    auto top = member(0);
    for (int k = 1; k < size; ++k) top = max(top, member(k));
    auto sum = top - top, weighted = sum;
    for (int k = 0; k < size; ++k) {
      auto s = member(k);
      auto e = exp((s - top) * sharpness);
      sum = sum + e;
      weighted = weighted + e * s;
    }
    auto inverse = T(1) / sum;
    return values(weighted * inverse, top, inverse);
  }
  template <class V, class Kept>
  FASTDML_FN V slope(V s, int, const Kept& kept) const {
    return exp((s - kept[1]) * sharpness) * kept[2] * (T(1) + (s - kept[0]) * sharpness);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
