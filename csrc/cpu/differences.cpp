#include "differences.h"

#include <limits>

namespace fastdml {
namespace {

// |x u - y v|^2 in double precision, in eight partial sums: small rounding, and vectors for the compiler.
template <class T>
double squared_difference(const T* x, std::int64_t x_step, double u, const T* y, std::int64_t y_step,
                          double v, std::int64_t dim) {
  double part[8] = {};
  const auto term = [=](std::int64_t k) {
    const double d = x[k * x_step] * u - y[k * y_step] * v;
    return d * d;
  };
  std::int64_t k = 0;
  for (; k + 8 <= dim; k += 8)
    for (int l = 0; l < 8; ++l) part[l] += term(k + l);
  for (; k < dim; ++k) part[0] += term(k);
  double sum = 0;
  for (double p : part) sum += p;
  return sum;
}

template <class T>
T near(const Block<T>& b, std::int64_t i, std::int64_t j, T d2, T total) {
  constexpr T eps = std::numeric_limits<T>::epsilon();
  if (!b.anchors.x) return d2 < 4 * eps * total ? T(0) : d2;
  const T* const x = b.anchors.x + i * b.anchors.row;
  const T* const y = b.candidates.x + j * b.candidates.row;
  if (x == y) return T(0);
  const double u = b.row_scale ? b.row_scale[i] : T(1), v = b.col_scale ? b.col_scale[j] : T(1);
  const bool by_rows = b.anchors.step == 1 && b.candidates.step == 1;
  const T found = static_cast<T>(
      by_rows ? squared_difference(x, 1, u, y, 1, v, b.dim)
              : squared_difference(x, b.anchors.step, u, y, b.candidates.step, v, b.dim));
  return b.row_scale && found < 64 * eps * eps * total ? T(0) : found;
}

}  // namespace

float near_distance(const Block<float>& b, std::int64_t i, std::int64_t j, float d2, float total) {
  return near(b, i, j, d2, total);
}

double near_distance(const Block<double>& b, std::int64_t i, std::int64_t j, double d2, double total) {
  return near(b, i, j, d2, total);
}

}  // namespace fastdml
