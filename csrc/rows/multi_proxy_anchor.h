// Multi-proxies anchor (Saeki et al., 2021; inferred): SPEC 2.13. Proxy-Anchor of the pooled similarities
// of `size` consecutive proxies of a class.
#pragma once
#include "proxy_anchor_terms.h"
#include "softmax_mean.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct MultiProxyAnchor {
  T size, alpha, margin, gamma;

  FASTDML_FN int together() const { return static_cast<int>(size); }

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    auto classes = row.stack(together(), SoftmaxMean<T>{T(1) / gamma});
    // The mean is over rows, of which a class has `size`.
    return proxy_anchor<T>(classes, alpha, margin, [](auto) { return T(0); }, size);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(multi_proxy_anchor, MultiProxyAnchor)
