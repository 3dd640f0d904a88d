// Softmax cross-entropy over proxies: normalised softmax, Proxy-NCA, ProxyNCA++, CosFace, smoothed
// cross-entropy (SPEC 2.6, 2.8, 2.16). Rows are samples, columns are proxies.
#pragma once
#include "softmax.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SoftmaxCrossEntropy {
  T scale;      // logits are scale * s (+ bias of the column)
  T margin;     // taken from the target's similarity
  T smoothing;
  T among;      // 0: the target is not in the denominator
  T constant;   // added to the loss
  T biased;     // 1: column value 0 is a bias

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale, less = scale * margin;
    const auto target = [=](T, T z) { return values(z - less, by); };
    const auto run = [&](auto logit) {
      return cross_entropy<T>(row, logit, by, target, smoothing, among != 0);
    };
    const T loss = biased != 0 ? run([=](auto p) { return p.s * by + p.column(0); })
                               : run([=](auto p) { return p.s * by; });
    return loss + constant;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(softmax_cross_entropy, SoftmaxCrossEntropy)
