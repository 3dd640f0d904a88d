// Lanes of CUDA: plain values. The same functions as cpu/lanes.h has for single values, in the forms
// that are quick on the device; compiled by a host compiler they are the standard library's, which is
// how the row is tested without a GPU.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../rows/row.h"

namespace fastdml {
inline namespace FASTDML_ISA {

#if defined(__CUDACC__)
#define FASTDML_DEVICE_OR(device, host) device
#else
#define FASTDML_DEVICE_OR(device, host) host
#endif

FASTDML_FN bool any(bool m) { return m; }
FASTDML_FN float select(bool m, float a, float b) { return m ? a : b; }
FASTDML_FN double select(bool m, double a, double b) { return m ? a : b; }
FASTDML_FN float min(float a, float b) { return FASTDML_DEVICE_OR(fminf(a, b), std::fmin(a, b)); }
FASTDML_FN float max(float a, float b) { return FASTDML_DEVICE_OR(fmaxf(a, b), std::fmax(a, b)); }
FASTDML_FN double min(double a, double b) { return FASTDML_DEVICE_OR(::fmin(a, b), std::fmin(a, b)); }
FASTDML_FN double max(double a, double b) { return FASTDML_DEVICE_OR(::fmax(a, b), std::fmax(a, b)); }

// Bounded above as on the CPU, so that no product of an exponential with 0 is undefined. A NaN stays
// one, which min would drop.
//
// In float one multiplication and one special function, where expf takes eight instructions. The product's
// rounding moves x by half of its last digit, which its own rounding has done before: |x| 2^-24 of the
// result. What would be below the normal numbers is 0.
FASTDML_FN float exp(float x) {
  x = x > 88.3f ? 88.3f : x;
#if defined(__CUDA_ARCH__)
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * 1.4426950408889634f));
  return e;
#else
  return std::exp(x);
#endif
}
FASTDML_FN double exp(double x) {
  x = x > 709.0 ? 709.0 : x;
  return FASTDML_DEVICE_OR(::exp(x), std::exp(x));
}
FASTDML_FN float log(float x) { return FASTDML_DEVICE_OR(logf(x), std::log(x)); }
FASTDML_FN double log(double x) { return FASTDML_DEVICE_OR(::log(x), std::log(x)); }
FASTDML_FN float sqrt(float x) { return FASTDML_DEVICE_OR(sqrtf(x), std::sqrt(x)); }
FASTDML_FN double sqrt(double x) { return FASTDML_DEVICE_OR(::sqrt(x), std::sqrt(x)); }
// A distance and the division by it, for every pair: both within 2 of the last digit, as what comes in is
// the difference of rounded numbers. Correctly rounded they take some 30 instructions more. Below the
// normal numbers a square is 0.
FASTDML_FN float root(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return std::sqrt(x);
#endif
}
FASTDML_FN double root(double x) { return sqrt(x); }
FASTDML_FN float quotient(float a, float b) { return FASTDML_DEVICE_OR(__fdividef(a, b), a / b); }
FASTDML_FN double quotient(double a, double b) { return a / b; }
FASTDML_FN float abs(float x) { return FASTDML_DEVICE_OR(fabsf(x), std::fabs(x)); }
FASTDML_FN double abs(double x) { return FASTDML_DEVICE_OR(::fabs(x), std::fabs(x)); }
FASTDML_FN float sin(float x) { return FASTDML_DEVICE_OR(sinf(x), std::sin(x)); }
FASTDML_FN double sin(double x) { return FASTDML_DEVICE_OR(::sin(x), std::sin(x)); }
FASTDML_FN float cos(float x) { return FASTDML_DEVICE_OR(cosf(x), std::cos(x)); }
FASTDML_FN double cos(double x) { return FASTDML_DEVICE_OR(::cos(x), std::cos(x)); }

// The fast reciprocal is within 1 ulp; a full division costs as much as the exponential.
FASTDML_FN float sigmoid(float x) {
  return FASTDML_DEVICE_OR(__fdividef(1.0f, 1.0f + exp(-x)), 1.0f / (1.0f + exp(-x)));
}
FASTDML_FN double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
FASTDML_FN float softplus(float x) {
  const float e = exp(-abs(x));
  return max(x, 0.0f) + FASTDML_DEVICE_OR(log1pf(e), std::log1p(e));
}
FASTDML_FN double softplus(double x) {
  const double e = exp(-abs(x));
  return max(x, 0.0) + FASTDML_DEVICE_OR(::log1p(e), std::log1p(e));
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

}  // namespace FASTDML_ISA
}  // namespace fastdml
