// Triplets whose negatives count from the anchor or from the positive (fastdml/losses/triplet/swapped.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRun = 256;  // columns that stay in the cache while the positives pass
constexpr int kBytes = 32;      // of a vector of numbers

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kBytes)));
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kBytes)));
};
// Vectors of which the last may be of fewer numbers.
template <class T, class F>
inline __attribute__((always_inline)) void each_vector(int64_t count, F f) {
  constexpr int64_t W = kBytes / sizeof(T);
  int64_t j = 0;
  for (; j + W <= count; j += W) f(j, W);
  if (j < count) f(j, count - j);
}
template <class V, class T>
inline __attribute__((always_inline)) V load(const T* p, int64_t count) {
  V v{};
  std::memcpy(&v, p, count * sizeof(T));
  return v;
}
template <class V, class T>
inline __attribute__((always_inline)) void store(T* p, V v, int64_t count) {
  std::memcpy(p, &v, count * sizeof(T));
}
// A mask of lanes 0 ... count - 1.
template <class T>
inline __attribute__((always_inline)) auto first_lanes(int64_t count) {
  using V = typename Lanes<T>::V;
  V number{};
  for (unsigned l = 0; l < kBytes / sizeof(T); ++l) number[l] = static_cast<T>(l);
  return number < static_cast<T>(count);
}
template <class T, class V>
T total_of(V v) {
  T total = 0;
  for (unsigned l = 0; l < kBytes / sizeof(T); ++l) total += v[l];
  return total;
}

template <class T>
struct Sums {
  T loss, active;
};

// The triplets of an anchor and a positive with a run of negatives.
template <class T>
inline __attribute__((always_inline)) Sums<T> sums_of(const T* a, const T* p, T below, int64_t count) {
  using V = typename Lanes<T>::V;
  V sum{}, number{};
  each_vector<T>(count, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
    const V x = load<V>(a + j, lanes), y = load<V>(p + j, lanes), excess = (x > y ? x : y) - below;
    const auto above = (excess > V{}) & first_lanes<T>(lanes);
    sum += above ? excess : V{};
    number += above ? V{} + T(1) : V{};
  });
  return {total_of<T>(sum), total_of<T>(number)};
}
// Their derivatives, w each, added; how many there are.
template <class T>
inline __attribute__((always_inline)) T slopes_of(const T* a, const T* p, T below, T w, T* by_a, T* by_p,
                                                  int64_t count) {
  using V = typename Lanes<T>::V;
  const T half = T(0.5) * w;
  V number{};
  each_vector<T>(count, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
    const V x = load<V>(a + j, lanes), y = load<V>(p + j, lanes), excess = (x > y ? x : y) - below;
    const auto above = (excess > V{}) & first_lanes<T>(lanes);
    const V of_a = x > y ? V{} + w : x == y ? V{} + half : V{};
    store(by_a + j, load<V>(by_a + j, lanes) + (above ? of_a : V{}), lanes);
    store(by_p + j, load<V>(by_p + j, lanes) + (above ? w - of_a : V{}), lanes);
    number += above ? V{} + T(1) : V{};
  });
  return total_of<T>(number);
}

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTDML_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FASTDML_CLONES
#endif
#define FASTDML_PAIR(T)                                                                               \
  FASTDML_CLONES Sums<T> sums_of_pair(const T* a, const T* p, T below, int64_t count) {               \
    return sums_of(a, p, below, count);                                                               \
  }                                                                                                   \
  FASTDML_CLONES T slopes_of_pair(const T* a, const T* p, T below, T w, T* by_a, T* by_p,             \
                                  int64_t count) {                                                    \
    return slopes_of(a, p, below, w, by_a, by_p, count);                                              \
  }
FASTDML_PAIR(float)
FASTDML_PAIR(double)

// Of some classes. a [classes, anchors, columns], p [classes, positives, columns]: how near candidates are;
// near [classes, anchors, positives]: how near the pairs are.
template <class T>
struct Triplets {
  const T *a, *p, *near;
  int64_t classes, anchors, positives, columns;
  T margin;

  int64_t grain(int64_t tasks) const {
    return 1 + 16384 * tasks / (classes * anchors * positives * columns + 1);
  }
};

template <class T>
const T* numbers(const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == count, "fastdml: a matrix of triplets has another shape");
  return static_cast<const T*>(t.const_data_ptr());
}

template <class F>
void with_triplets(const Tensor& a, const Tensor& p, const Tensor& near, double margin, F f) {
  STD_TORCH_CHECK(a.dim() == 3 && p.dim() == 3, "fastdml: triplets of classes");
  const auto found = [&]<class T>(T) {
    const int64_t classes = a.size(0), anchors = a.size(1), positives = p.size(1), columns = a.size(2);
    f(Triplets<T>{numbers<T>(a, a.numel()), numbers<T>(p, classes * positives * columns),
                  numbers<T>(near, classes * anchors * positives), classes, anchors, positives, columns,
                  static_cast<T>(margin)});
  };
  for (const Tensor* t : {&p, &near})
    STD_TORCH_CHECK(t->scalar_type() == a.scalar_type(), "fastdml: triplets of one type");
  if (a.scalar_type() == ScalarType::Float)
    found(0.0f);
  else
    found(0.0);
}

// loss, active [classes, anchors]: the sum of an anchor's triplets, and how many of them are above 0.
template <class T>
void sums(const Triplets<T>& t, T* loss, T* active) {
  const int64_t rows = t.classes * t.anchors;
  torch::stable::parallel_for(0, rows, t.grain(rows), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double total = 0, some = 0;
      for (int64_t first = 0; first < t.columns; first += kRun) {
        const int64_t count = std::min(kRun, t.columns - first);
        const T* const a = t.a + i * t.columns + first;
        for (int64_t k = 0; k < t.positives; ++k) {
          const T* const p = t.p + (i / t.anchors * t.positives + k) * t.columns + first;
          const T below = t.near[i * t.positives + k] - t.margin;
          const Sums<T> found = sums_of_pair(a, p, below, count);
          total += found.loss, some += found.active;
        }
      }
      loss[i] = static_cast<T>(total);
      active[i] = static_cast<T>(some);
    }
  });
}

// d_a, d_p as a and p, d_near as near: the derivatives of the anchors' sums times weight [classes, anchors].
// Of two that are equally near each has half.
template <class T>
void slopes(const Triplets<T>& t, const T* weight, T* d_a, T* d_p, T* d_near) {
  const int64_t runs = (t.columns + kRun - 1) / kRun, pairs = t.classes * t.anchors * t.positives;
  std::vector<T> active(runs * pairs);
  torch::stable::parallel_for(0, t.classes * runs, t.grain(t.classes * runs), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t u = task / runs, run = task % runs, first = run * kRun;
      const int64_t count = std::min(kRun, t.columns - first);
      for (int64_t r = 0; r < t.anchors; ++r) {
        const int64_t i = u * t.anchors + r;
        const T* const a = t.a + i * t.columns + first;
        T* const by_a = d_a + i * t.columns + first;
        const T w = weight[i];
        for (int64_t k = 0; k < t.positives; ++k) {
          const int64_t q = (u * t.positives + k) * t.columns + first;
          const T* const p = t.p + q;
          T* const by_p = d_p + q;
          const T below = t.near[i * t.positives + k] - t.margin;
          const T some = slopes_of_pair(a, p, below, w, by_a, by_p, count);
          active[run * pairs + i * t.positives + k] = some;
        }
      }
    }
  });
  for (int64_t k = 0; k < pairs; ++k) {
    T some = 0;
    for (int64_t run = 0; run < runs; ++run) some += active[run * pairs + k];
    d_near[k] = -some * weight[k / t.positives];
  }
}

void swapped_sums_(Tensor loss, Tensor active, Tensor a, Tensor p, Tensor near, double margin) {
  with_triplets(a, p, near, margin, [&]<class T>(const Triplets<T>& t) {
    sums(t, const_cast<T*>(numbers<T>(loss, t.classes * t.anchors)),
         const_cast<T*>(numbers<T>(active, t.classes * t.anchors)));
  });
}

void swapped_slopes_(Tensor d_a, Tensor d_p, Tensor d_near, Tensor weight, Tensor a, Tensor p, Tensor near,
                     double margin) {
  with_triplets(a, p, near, margin, [&]<class T>(const Triplets<T>& t) {
    slopes(t, numbers<T>(weight, t.classes * t.anchors), const_cast<T*>(numbers<T>(d_a, a.numel())),
           const_cast<T*>(numbers<T>(d_p, p.numel())), const_cast<T*>(numbers<T>(d_near, near.numel())));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastdml_native, m) {
  m.def(
      "swapped_sums_(Tensor(a!) loss, Tensor(b!) active, Tensor a, Tensor p, Tensor near, float margin) "
      "-> ()");
  m.def(
      "swapped_slopes_(Tensor(a!) d_a, Tensor(b!) d_p, Tensor(c!) d_near, Tensor weight, Tensor a, Tensor p, "
      "Tensor near, float margin) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("swapped_sums_", TORCH_BOX(&swapped_sums_));
  m.impl("swapped_slopes_", TORCH_BOX(&swapped_slopes_));
}
