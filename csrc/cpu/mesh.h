// Comparisons with many thresholds by a function that is smooth, on a mesh. Each value is spread over the
// eight nodes around it, by the weights with which a polynomial through these nodes gives its value there
// (Lagrange's). The masses of the nodes are convolved with the function, and every threshold reads the sums
// at the eight nodes around it by the same weights. So a row costs as much as it has values, thresholds and
// nodes, where every pair of a value and a threshold costs their product. (The non-uniform fast Fourier
// transform spreads likewise; the function is short here, so the convolution is done as it stands.)
//
// The polynomial's error is below (step / pi)^8 of a sigmoid of width 1, whose poles are pi away: below
// the rounding of float at a step of a fifth.
#pragma once
#include "lanes.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// What a unit of mass counts for a reader that lies further from it than the window: height + rise * t, t the
// mass's place less the reader's, for mass below the reader and above it.
template <class T>
struct Straight {
  T below_height, below_rise, above_height, above_rise;
};

template <class T>
class Mesh {
 public:
  using V = Vector<T>;
  static constexpr int W = kWidth<T>;
  // Eight nodes are good for 24 bits; in double, rows are compared by pairs or sorted.
  static constexpr bool kServes = sizeof(T) == 4;
  static constexpr int kOrder = 8;      // nodes of a value
  static constexpr int kBlock = 2 * W;  // nodes whose sums are made at once
  typedef T Point __attribute__((vector_size(kOrder * sizeof(T))));

  // Lays nodes from `low` to `high`, for a function of the given width that is straight further than
  // `window` from 0; false where they were too many (as between infinities) or none.
  bool lay(T low, T high, T width, T window) {
    step_ = short_of(width / 5);
    rate_ = T(1) / step_;
    middle_ = low + (high - low) / 2;
    const T nodes = (high - low) * rate_ + T(kOrder + 4), reach = window * rate_ + T(1);
    if (!(nodes <= T(kMeshNodes)) || !(step_ > T(0))) return false;
    nodes_ = static_cast<int>(nodes);
    half_ = static_cast<int>((middle_ - low) * rate_) + 2;
    reach_ = reach < nodes ? static_cast<int>(reach) : nodes_;
    return true;
  }
  bool laid() const { return nodes_ > 0; }
  // Products of a mass and an entry of the table, for one function.
  T products() const { return static_cast<T>(nodes_) * static_cast<T>(2 * reach_ < nodes_ ? 2 * reach_ : nodes_); }

  // Calls put(k, sums) for each reader k: N sums, over the values x_j with keep(j), of mass(j) times
  // f(sign * (x_j - reader_k)), one function each; zeros where not reads(k).
  template <int N, class F, class Keep, class Mass, class Reads, class Put>
  void sums(T* room, const T* x, std::int64_t n, Keep keep, Mass mass, const T* reader, std::int64_t readers,
            Reads reads, F f, T sign, const Straight<T> (&straight)[N], Put put) const {
    const int length = nodes_ + kOrder + kBlock;
    T *const masses = room, *const table = masses + 2 * length, *const found = table + N * table_size();
    const Range from = spread(masses, length, x, n, keep, mass), to = range(reader, readers, reads);
    tabulate<N>(table, f, sign);
    convolve<N>(masses, from, table, straight, found, length, to);
    for (std::int64_t k = 0; k < readers; ++k) {
      Values<T, N> sum{};
      if (!reads(k)) {
        put(k, sum);
        continue;
      }
      const auto [at, weights] = place(reader[k]);
      for (int i = 0; i < N; ++i) sum[i] = total(weights * load_point(found + i * length + at));
      put(k, sum);
    }
  }

 private:
  FASTDML_FN int table_size() const { return (2 * (reach_ + kBlock) + W) / W * W; }

  struct Place {
    int at;
    Point weights;
  };
  struct Range {
    int begin, end;
  };
  // Mass beyond a window, and the sum of mass times node.
  struct Moments {
    double mass = 0, moment = 0;
    FASTDML_FN void add(T m, int a) {
      mass += m;
      moment += static_cast<double>(m) * a;
    }
    // The sum of mass times height + slant * (a - b - lane), a its node.
    FASTDML_FN V line(T height, T slant, int b, V lane) const {
      return static_cast<T>(height * mass + slant * (moment - b * mass)) - lane * (slant * static_cast<T>(mass));
    }
  };

  // of[d][k]: coefficient d of node k's polynomial, in the distance from the middle of the eight nodes.
  struct Coefficients {
    T of[kOrder][kOrder];
  };
  static constexpr Coefficients coefficients() {
    Coefficients found{};
    const double centre = (kOrder - 1) / 2.0;
    for (int k = 0; k < kOrder; ++k) {
      double p[kOrder + 1] = {1};
      int degree = 0;
      for (int m = 0; m < kOrder; ++m) {
        if (m == k) continue;
        double next[kOrder + 1] = {};
        for (int d = 0; d <= degree; ++d) {
          next[d + 1] += p[d] / (k - m);
          next[d] += p[d] * (centre - m) / (k - m);
        }
        ++degree;
        for (int d = 0; d <= degree; ++d) p[d] = next[d];
      }
      for (int d = 0; d < kOrder; ++d) found.of[d][k] = static_cast<T>(p[d]);
    }
    return found;
  }

  FASTDML_FN static Point load_point(const T* p) {
    Point v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  FASTDML_FN static T total(Point v) {
    T x[kOrder];
    std::memcpy(x, &v, sizeof v);
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
  }
  // x with its last 12 bits cut off: the places of nodes, multiples of it, are exact.
  FASTDML_FN static T short_of(T x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits &= 0xfffff000u;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  FASTDML_FN int node(T x) const { return static_cast<int>((x - middle_) * rate_ + static_cast<T>(half_)); }
  FASTDML_FN Place place(T x) const {
    static constexpr Coefficients kCoefficients = coefficients();
    const T from = x - middle_;
    const int at = static_cast<int>(from * rate_ + static_cast<T>(half_));
    const T t = (from - static_cast<T>(at - half_) * step_) * rate_ - T(0.5);
    Point w = load_point(kCoefficients.of[kOrder - 1]);
    for (int d = kOrder - 2; d >= 0; --d) w = w * t + load_point(kCoefficients.of[d]);
    return {at, w};
  }

  // The nodes around the values.
  template <class Reads>
  FASTDML_FN Range range(const T* x, std::int64_t n, Reads reads) const {
    T low = highest<T>(), high = lowest<T>();
    for (std::int64_t k = 0; k < n; ++k)
      if (reads(k)) low = min(low, x[k]), high = max(high, x[k]);
    return low > high ? Range{0, 0} : Range{node(low), node(high) + kOrder};
  }

  // Two copies in turn, so that values of one place do not wait for each other; then their sum in the first.
  template <class Keep, class Mass>
  FASTDML_FN Range spread(T* masses, int length, const T* x, std::int64_t n, Keep keep, Mass mass) const {
    std::memset(masses, 0, 2 * length * sizeof(T));
    Range touched{length, 0};
    for (std::int64_t j = 0; j < n; ++j) {
      if (!keep(j)) continue;
      const auto [at, weights] = place(x[j]);
      T* const to = masses + (j & 1) * length + at;
      const Point sum = load_point(to) + weights * mass(j);
      std::memcpy(to, &sum, sizeof sum);
      touched.begin = at < touched.begin ? at : touched.begin;
      touched.end = at + kOrder > touched.end ? at + kOrder : touched.end;
    }
    for (int a = touched.begin; a < touched.end; ++a) masses[a] += masses[length + a];
    return touched;
  }

  // found[b] is the sum of masses[a] f(sign * (a - b) steps) over nodes a, for the nodes b that are read and
  // those after them that fill a block: within the window from the table, beyond it from how much mass there
  // is and where its centre lies.
  template <int N>
  FASTDML_FN void convolve(const T* masses, Range from, const T* table, const Straight<T> (&straight)[N], T* found,
                           int length, Range to) const {
    constexpr int kVectors = kBlock / W, kRun = 32;  // masses summed before they join the total
    const int size = table_size();
    Moments below, above;
    for (int a = from.begin; a < from.end; ++a) above.add(masses[a], a);
    int low = from.begin, high = from.begin;
    for (int b = to.begin; b < to.end; b += kBlock) {
      for (; low < from.end && low < b - reach_; ++low) below.add(masses[low], low);
      for (; high < from.end && high < b + kBlock + reach_; ++high) above.add(-masses[high], high);
      V sum[N][kVectors];
      for (int i = 0; i < N; ++i)
        for (int v = 0; v < kVectors; ++v) {
          const V lane = __builtin_convertvector(iota<T>(), V) + static_cast<T>(v * W);
          const Straight<T>& s = straight[i];
          sum[i][v] = below.line(s.below_height, s.below_rise * step_, b, lane) +
                      above.line(s.above_height, s.above_rise * step_, b, lane);
        }
      for (int a = low; a < high;) {
        V part[N][kVectors] = {};
        for (const int end = a + kRun < high ? a + kRun : high; a < end; ++a) {
          if (masses[a] == T(0)) continue;
          const T* entry = table + (b - a + reach_ + kBlock);
          for (int i = 0; i < N; ++i)
            for (int v = 0; v < kVectors; ++v) part[i][v] += masses[a] * load(entry + i * size + v * W);
        }
        for (int i = 0; i < N; ++i)
          for (int v = 0; v < kVectors; ++v) sum[i][v] += part[i][v];
      }
      for (int i = 0; i < N; ++i)
        for (int v = 0; v < kVectors; ++v) store(found + i * length + b + v * W, sum[i][v]);
    }
  }

  // Entry r: f at sign * (reach + kBlock - r) steps. So entries ascend with the node that reads.
  template <int N, class F>
  FASTDML_FN void tabulate(T* table, F f, T sign) const {
    const int size = table_size();
    const V lanes = __builtin_convertvector(iota<T>(), V);
    for (int r = 0; r < size; r += W) {
      const auto y = f((broadcast<T>(static_cast<T>(reach_ + kBlock - r)) - lanes) * (sign * step_));
      for (int i = 0; i < N; ++i) store(table + i * size + r, y[i]);
    }
  }

  T step_ = 0, rate_ = 0, middle_ = 0;
  int nodes_ = 0, half_ = 0, reach_ = 0;
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
