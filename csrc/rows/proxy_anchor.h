// Proxy-Anchor (Kim et al., CVPR 2020): SPEC 1.1. The row is a proxy, its candidates are the batch.
#pragma once
#include "proxy_anchor_terms.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct ProxyAnchor {
  T alpha, margin;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    return proxy_anchor<T>(row, alpha, margin, [](auto) { return T(0); });
  }
};

// With a number per sample that is added to its exponents.
template <class T>
struct WeightedProxyAnchor {
  T alpha, margin;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    return proxy_anchor<T>(row, alpha, margin, [](auto p) { return p.column(0); });
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(proxy_anchor, ProxyAnchor)
FASTDML_ROW_LOSS(weighted_proxy_anchor, WeightedProxyAnchor)
