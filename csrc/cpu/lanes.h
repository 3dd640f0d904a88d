// Lanes of the CPU: compiler vector types with the few functions the row language needs, for vectors
// and for single values alike. Widths follow the instruction set the file is compiled for.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../rows/row.h"

#ifndef FASTDML_VECTOR_BYTES
#define FASTDML_VECTOR_BYTES 16
#endif

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Lane;
template <>
struct Lane<float> {
  typedef float V __attribute__((vector_size(FASTDML_VECTOR_BYTES)));
  typedef std::int32_t M __attribute__((vector_size(FASTDML_VECTOR_BYTES)));
  using I = std::int32_t;
};
template <>
struct Lane<double> {
  typedef double V __attribute__((vector_size(FASTDML_VECTOR_BYTES)));
  typedef std::int64_t M __attribute__((vector_size(FASTDML_VECTOR_BYTES)));
  using I = std::int64_t;
};
template <class T>
using Vector = typename Lane<T>::V;
template <class T>
using Mask = typename Lane<T>::M;
template <class T>
constexpr int kWidth = FASTDML_VECTOR_BYTES / sizeof(T);

template <class V>
struct Scalar;
template <>
struct Scalar<Vector<float>> {
  using type = float;
};
template <>
struct Scalar<Vector<double>> {
  using type = double;
};
template <class V>
using ScalarOf = typename Scalar<V>::type;

template <class T>
FASTDML_FN Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

// Unaligned loads and stores; `count` lanes at most, so that the end of a row is never overrun.
template <class T>
FASTDML_FN Vector<T> load(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
FASTDML_FN Vector<T> load(const T* p, int count) {
  if (count == kWidth<T>) return load(p);
  Vector<T> v{};
  std::memcpy(&v, p, count * sizeof(T));
  return v;
}
template <class T>
FASTDML_FN void store(T* p, Vector<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
FASTDML_FN void store(T* p, Vector<T> v, int count) {
  std::memcpy(p, &v, count * sizeof(T));
}

// The same with `stride` values from one lane to the next.
template <class T>
FASTDML_FN Vector<T> load_strided(const T* p, int stride, int count) {
  Vector<T> v{};
  if (count == kWidth<T>)
    for (int i = 0; i < kWidth<T>; ++i) v[i] = p[i * stride];
  else
    for (int i = 0; i < count; ++i) v[i] = p[i * stride];
  return v;
}
template <class T>
FASTDML_FN void store_strided(T* p, int stride, Vector<T> v, int count) {
  if (count == kWidth<T>)
    for (int i = 0; i < kWidth<T>; ++i) p[i * stride] = v[i];
  else
    for (int i = 0; i < count; ++i) p[i * stride] = v[i];
}

template <class T>
FASTDML_FN Mask<T> iota() {
  Mask<T> m{};
  for (int i = 0; i < kWidth<T>; ++i) m[i] = i;
  return m;
}

// select: vectors of both element types, either side may be a single value.
#define FASTDML_SELECT(T)                                                            \
  FASTDML_FN Vector<T> select(Mask<T> m, Vector<T> a, Vector<T> b) { return m ? a : b; } \
  FASTDML_FN Vector<T> select(Mask<T> m, Vector<T> a, T b) { return m ? a : broadcast<T>(b); } \
  FASTDML_FN Vector<T> select(Mask<T> m, T a, Vector<T> b) { return m ? broadcast<T>(a) : b; } \
  FASTDML_FN Vector<T> select(Mask<T> m, T a, T b) { return m ? broadcast<T>(a) : broadcast<T>(b); } \
  FASTDML_FN T select(bool m, T a, T b) { return m ? a : b; }                        \
  FASTDML_FN T min(T a, T b) { return b < a ? b : a; }                               \
  FASTDML_FN T max(T a, T b) { return a < b ? b : a; }                               \
  FASTDML_FN Vector<T> min(Vector<T> a, Vector<T> b) { return b < a ? b : a; }       \
  FASTDML_FN Vector<T> max(Vector<T> a, Vector<T> b) { return a < b ? b : a; }       \
  FASTDML_FN Vector<T> min(Vector<T> a, T b) { return min(a, broadcast<T>(b)); }     \
  FASTDML_FN Vector<T> max(Vector<T> a, T b) { return max(a, broadcast<T>(b)); }
FASTDML_SELECT(float)
FASTDML_SELECT(double)
#undef FASTDML_SELECT

FASTDML_FN float exp(float x) { return std::exp(x); }
FASTDML_FN double exp(double x) { return std::exp(x); }
FASTDML_FN float log(float x) { return std::log(x); }
FASTDML_FN double log(double x) { return std::log(x); }

// exp(x) = 2^n exp(r), |r| <= ln(2)/2. n is rounded by adding a number so large that only integers
// remain; its low bits then are n itself. Below the smallest normal number the result is that
// number (not a denormal, not 0): far under anything a sum can see.
FASTDML_FN Vector<float> exp(Vector<float> x) {
  x = min(max(x, -87.3f), 88.3f);
  const Vector<float> t = x * 1.44269504f + 12582912.0f;
  const Vector<float> n = t - 12582912.0f;
  Vector<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector<float> p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Mask<float> power = (((Mask<float>)t) << 23) + 0x3f800000;
  return p * (Vector<float>)power;
}
FASTDML_FN Vector<double> exp(Vector<double> x) {
  x = min(max(x, -708.0), 709.0);
  const Vector<double> t = x * 1.4426950408889634 + 6755399441055744.0;
  const Vector<double> n = t - 6755399441055744.0;
  Vector<double> r = x - n * 0.693145751953125;
  r = r - n * 1.42860682030941723212e-6;
  Vector<double> p = broadcast<double>(1.0 / 6227020800.0);
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const Mask<double> power = (((Mask<double>)t) << 52) + 0x3ff0000000000000;
  return p * (Vector<double>)power;
}

// exp(x * by) for |x * by| < 87 (double: 708). Where multiplications and additions are fused, the rounding
// of the product, which counts for the more the larger it is, is not in the result.
FASTDML_FN Vector<float> exp_scaled(Vector<float> x, float by) {
  const float k = by * 1.44269504f;
  const Vector<float> t = x * k + 12582912.0f;
  const Vector<float> r = x * k - (t - 12582912.0f);
  // 2^r, |r| <= 1/2: relative error below 2e-9 but for rounding.
  Vector<float> p = r * 1.53533585e-4f + 1.33988757e-3f;
  p = p * r + 9.61843738e-3f;
  p = p * r + 5.55033247e-2f;
  p = p * r + 2.40226479e-1f;
  p = p * r + 6.93147203e-1f;
  p = p * r + 1.0f;
  const Mask<float> power = (((Mask<float>)t) << 23) + 0x3f800000;
  return p * (Vector<float>)power;
}
FASTDML_FN Vector<double> exp_scaled(Vector<double> x, double by) { return exp(x * by); }

// 1 / x for 1 <= x < 2^126: with AVX-512, from 14 bits and one step of Newton's, which costs less than a
// division.
#if defined(__AVX512F__) && FASTDML_VECTOR_BYTES == 64
FASTDML_FN Vector<float> reciprocal(Vector<float> x) {
  const Vector<float> r = (Vector<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return r + r * (1.0f - x * r);
}
#else
FASTDML_FN Vector<float> reciprocal(Vector<float> x) { return 1.0f / x; }
#endif
FASTDML_FN Vector<double> reciprocal(Vector<double> x) { return 1.0 / x; }

FASTDML_FN float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
FASTDML_FN double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
// Whether any lane is set.
#if defined(__AVX512F__) && FASTDML_VECTOR_BYTES == 64
FASTDML_FN bool any(Mask<float> m) { return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0; }
FASTDML_FN bool any(Mask<double> m) { return _mm512_test_epi64_mask((__m512i)m, (__m512i)m) != 0; }
#elif defined(__AVX2__) && FASTDML_VECTOR_BYTES == 32
FASTDML_FN bool any(Mask<float> m) { return !_mm256_testz_si256((__m256i)m, (__m256i)m); }
FASTDML_FN bool any(Mask<double> m) { return !_mm256_testz_si256((__m256i)m, (__m256i)m); }
#else
template <class M>
FASTDML_FN bool any(M m) {
  bool set = false;
  for (unsigned i = 0; i < sizeof(M) / sizeof(m[0]); ++i) set |= m[i] != 0;
  return set;
}
#endif

// Where every lane is so far out that the sigmoid is 0 or 1 to rounding, as it is for most pairs of a
// trained network, the exponential is not computed. The error is below 1e-13 (float), 3e-20 (double).
#define FASTDML_SIGMOID(T, kFlat)                                          \
  FASTDML_FN Vector<T> sigmoid(Vector<T> x) {                              \
    /* Written so that a NaN, which is not flat either, takes the long way and stays one. */ \
    if (!any(~((x <= -kFlat) | (x >= kFlat)))) return select(x > T(0), T(1), T(0)); \
    return T(1) / (T(1) + exp(-x));                                        \
  }
FASTDML_SIGMOID(float, 30.0f)
FASTDML_SIGMOID(double, 45.0)
#undef FASTDML_SIGMOID

FASTDML_FN float sin(float x) { return std::sin(x); }
FASTDML_FN double sin(double x) { return std::sin(x); }
FASTDML_FN float cos(float x) { return std::cos(x); }
FASTDML_FN double cos(double x) { return std::cos(x); }
FASTDML_FN float sqrt(float x) { return std::sqrt(x); }
FASTDML_FN double sqrt(double x) { return std::sqrt(x); }
FASTDML_FN float abs(float x) { return std::fabs(x); }
FASTDML_FN double abs(double x) { return std::fabs(x); }
// Lane by lane: the compiler turns the loop into the vector instruction.
#define FASTDML_LANEWISE(T)                                              \
  FASTDML_FN Vector<T> sqrt(Vector<T> x) {                               \
    for (int i = 0; i < kWidth<T>; ++i) x[i] = std::sqrt(x[i]);          \
    return x;                                                            \
  }                                                                      \
  FASTDML_FN Vector<T> abs(Vector<T> x) { return select(x < T(0), -x, x); }
FASTDML_LANEWISE(float)
FASTDML_LANEWISE(double)
#undef FASTDML_LANEWISE

// log(m) = 2 atanh((m - 1) / (m + 1)) as a series in z = (m - 1) / (m + 1); `terms` of it.
template <int terms, class V>
FASTDML_FN V twice_atanh(V z) {
  using T = ScalarOf<V>;
  const V z2 = z * z;
  V p = broadcast<T>(T(2) / (2 * terms - 1));
  for (int k = 2 * terms - 3; k > 0; k -= 2) p = p * z2 + T(2) / k;
  return p * z;
}
// x = 2^n m with m in [sqrt(1/2), sqrt(2)), so |z| < 0.172. Positive normal x only.
FASTDML_FN Vector<float> log(Vector<float> x) {
  const Mask<float> bits = (Mask<float>)x - 0x3f3504f3;
  const Mask<float> n = bits >> 23;
  const Vector<float> m = (Vector<float>)((bits & 0x007fffff) + 0x3f3504f3);
  const Vector<float> e = __builtin_convertvector(n, Vector<float>);
  return e * 0.693359375f + (twice_atanh<5>((m - 1.0f) / (m + 1.0f)) - e * 2.12194440e-4f);
}
FASTDML_FN Vector<double> log(Vector<double> x) {
  const Mask<double> bits = (Mask<double>)x - 0x3fe6a09e667f3bcdll;
  const Mask<double> n = bits >> 52;
  const Vector<double> m = (Vector<double>)((bits & 0x000fffffffffffffll) + 0x3fe6a09e667f3bcdll);
  const Vector<double> e = __builtin_convertvector(n, Vector<double>);
  return e * 0.693145751953125 +
         (twice_atanh<12>((m - 1.0) / (m + 1.0)) + e * 1.42860682030941723212e-6);
}

// log(1 + exp(x)), exact for large |x| either way; its derivative is sigmoid(x).
FASTDML_FN float softplus(float x) { return max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))); }
FASTDML_FN double softplus(double x) { return max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }
FASTDML_FN Vector<float> softplus(Vector<float> x) {
  const Vector<float> u = exp(-abs(x));
  return max(x, 0.0f) + twice_atanh<8>(u / (u + 2.0f));
}
FASTDML_FN Vector<double> softplus(Vector<double> x) {
  const Vector<double> u = exp(-abs(x));
  return max(x, 0.0) + twice_atanh<17>(u / (u + 2.0));
}

template <class T>
FASTDML_FN T combine(Sum, T a, T b) {
  return a + b;
}
template <class T>
FASTDML_FN T combine(Min, T a, T b) {
  return min(a, b);
}
template <class T>
FASTDML_FN T combine(Max, T a, T b) {
  return max(a, b);
}

// Folds the lanes of a vector pairwise: the order is fixed, and the rounding error small.
template <class Op, class T>
FASTDML_FN T across(Op op, Vector<T> v) {
  T x[kWidth<T>];
  std::memcpy(x, &v, sizeof v);
  for (int half = kWidth<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = combine(op, x[i], x[i + half]);
  return x[0];
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
