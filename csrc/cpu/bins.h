// Soft histograms of a row: every value is shared out between the two nearest of evenly spaced centres.
#pragma once
#include "lanes.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// n bins between n + 1 centres from -1 to 1. What lies beyond belongs to the outermost centres, but for the
// lowest number, which stands for no value.
template <class T>
struct Bins {
  int n;
  T rate;  // bins a unit: exact
  FASTDML_FN explicit Bins(int count) : n(count), rate(T(count) / 2) {}

  // The bin of a value, n of none.
  FASTDML_FN Mask<T> of(Vector<T> v) const { return v < lowest<T>() / 2 ? Mask<T>{} + n : within(v); }
  // The bin in which a value moves from one centre to the other, n of those that do not.
  FASTDML_FN Mask<T> moving(Vector<T> v) const {
    return (v < T(-1)) | (v > T(1)) ? Mask<T>{} + n : within(v);
  }
  // How far v is on its way from the lower to the upper centre of its bin.
  FASTDML_FN Vector<T> way(Vector<T> v, Mask<T> bin) const {
    // (v - centre) rate, without the centre: rounded, it would move all values of a bin alike.
    const Vector<T> way = v * rate + (rate - __builtin_convertvector(bin, Vector<T>));
    return max(min(way, broadcast(T(1))), Vector<T>{});  // NaN stays NaN
  }

 private:
  FASTDML_FN Mask<T> within(Vector<T> v) const {
    // max and min take their first of two where the second is NaN: in the range of the bins whatever v is.
    const auto place = max(Vector<T>{}, min((v + T(1)) * rate, broadcast(static_cast<T>(n - 1))));
    return __builtin_convertvector(place, Mask<T>);
  }
};

// Adds up the shares. Neighbouring values often fall into one bin, and the second would wait for the first
// to be written: so lanes take turns between a few copies. What is in the copies joins the sums every now
// and then, which keeps rounding small.
template <class T>
class Shares {
 public:
  static constexpr int W = kWidth<T>, kCopies = 4, kFlush = 4096;
  // Of values in the arena.
  FASTDML_FN static std::int64_t room(int n) { return 2 * kCopies * (n + 1); }

  // sums: [n + 1]. room: `room(n)` values.
  FASTDML_FN Shares(Bins<T> bins, T* sums, T* room) : bins_(bins), sums_(sums), cells_(room) {
    std::memset(sums_, 0, (bins_.n + 1) * sizeof(T));
    std::memset(cells_, 0, Shares::room(bins_.n) * sizeof(T));
  }
  FASTDML_FN void add(Vector<T> v, int count = W) {
    const Mask<T> bin = bins_.of(v);
    const Vector<T> up = bins_.way(v, bin), down = T(1) - up;
    for (int i = 0; i < count; ++i) {
      T* const cell = cells_ + 2 * ((i % kCopies) * (bins_.n + 1) + bin[i]);
      cell[0] += down[i];
      cell[1] += up[i];
    }
    if ((since_ += W) >= kFlush) flush();
  }
  FASTDML_FN void flush() {
    since_ = 0;
    for (int copy = 0; copy < kCopies; ++copy) {
      T* const cell = cells_ + 2 * copy * (bins_.n + 1);
      for (int b = 0; b < bins_.n; ++b) {
        sums_[b] += cell[2 * b];
        sums_[b + 1] += cell[2 * b + 1];
      }
    }
    std::memset(cells_, 0, room(bins_.n) * sizeof(T));
  }

 private:
  Bins<T> bins_;
  T *sums_, *cells_;
  int since_ = 0;
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
