#include "differences.h"

#include <cstring>
#include <limits>

// Compiled for several instruction sets, of which the loader takes the best.
#if defined(__x86_64__) && defined(__GLIBC__)
#define FASTDML_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTDML_CLONES
#endif
#define FASTDML_INLINE __attribute__((always_inline)) inline

namespace fastdml {
namespace {

typedef double Eight __attribute__((vector_size(64)));

template <class T>
FASTDML_INLINE Eight eight(const T* x) {
  typedef T Stored __attribute__((vector_size(8 * sizeof(T))));
  Stored found;
  std::memcpy(&found, x, sizeof(found));
  return __builtin_convertvector(found, Eight);
}

FASTDML_INLINE double total_of(const Eight& part) {
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// N of |x u - y v|^2 in double precision, each in eight partial sums: small rounding, and vectors. Several
// at once, as an addition waits for the one before it.
template <int N, class T>
FASTDML_INLINE void squared_differences(const T* x, double u, const T* const* y, const double* v,
                                        std::int64_t dim, double* out) {
  Eight part[N] = {};
  std::int64_t k = 0;
  for (; k + 8 <= dim; k += 8) {
    const Eight a = eight(x + k) * u;
    for (int n = 0; n < N; ++n) {
      const Eight d = a - eight(y[n] + k) * v[n];
      part[n] += d * d;
    }
  }
  for (int n = 0; n < N; ++n) out[n] = total_of(part[n]);
  for (; k < dim; ++k)
    for (int n = 0; n < N; ++n) {
      const double d = x[k] * u - y[n][k] * v[n];
      out[n] += d * d;
    }
}

// The same of one pair whose values are not side by side.
template <class T>
double squared_difference(const Embeddings<T>& a, const T* x, double u, const Embeddings<T>& c, const T* y,
                          double v, std::int64_t dim) {
  Eight part = {};
  for (std::int64_t k = 0; k < dim; ++k) {
    const double d = x[k * a.step] * u - y[k * c.step] * v;
    part[k < dim / 8 * 8 ? k % 8 : 0] += d * d;
  }
  return total_of(part);
}

template <class T>
FASTDML_INLINE void near(const Block<T>& b, std::int64_t i, std::int64_t j, int count, T* d2, const T* total) {
  constexpr T eps = std::numeric_limits<T>::epsilon();
  constexpr int kTogether = 4;
  const T* const x = b.anchors.x + i * b.anchors.row;
  const double u = b.row_scale ? b.row_scale[i] : T(1);
  const bool by_rows = b.anchors.step == 1 && b.candidates.step == 1;
  const T* y[kTogether];
  double v[kTogether], found[kTogether];
  int at[kTogether], some = 0;
  for (int l = 0; l < count; ++l) {
    if (d2[l] < T(kNear) * total[l]) {
      if (!b.anchors.x) {
        if (d2[l] < 4 * eps * total[l]) d2[l] = T(0);
        continue;
      }
      y[some] = b.candidates.x + (j + l) * b.candidates.row;
      v[some] = b.col_scale ? b.col_scale[j + l] : T(1);
      at[some++] = l;
    }
    if (!some || (some < kTogether && l + 1 < count)) continue;
    if (by_rows && some == kTogether)
      squared_differences<kTogether>(x, u, y, v, b.dim, found);
    else
      for (int n = 0; n < some; ++n)
        if (by_rows)
          squared_differences<1>(x, u, y + n, v + n, b.dim, found + n);
        else
          found[n] = squared_difference(b.anchors, x, u, b.candidates, y[n], v[n], b.dim);
    for (int n = 0; n < some; ++n) {
      const T value = static_cast<T>(found[n]);
      const bool rounding = b.row_scale && value < 64 * eps * eps * total[at[n]];
      d2[at[n]] = x == y[n] || rounding ? T(0) : value;
    }
    some = 0;
  }
}

}  // namespace

FASTDML_CLONES void near_distances(const Block<float>& b, std::int64_t i, std::int64_t j, int count, float* d2,
                                   const float* total) {
  near(b, i, j, count, d2, total);
}

FASTDML_CLONES void near_distances(const Block<double>& b, std::int64_t i, std::int64_t j, int count, double* d2,
                                   const double* total) {
  near(b, i, j, count, d2, total);
}

}  // namespace fastdml
