// What csrc/cuda/team.cuh asks of the device, of the threads of emulator.h or those of threads.h.
#pragma once

namespace emulator {

struct Team {
  Threads& threads;
  int thread() const { return threads.current(); }
  int size() const { return threads.size(); }
  void sync() const { threads.wait_block(); }
  template <class T>
  T from_lane(T v, int mask) const {
    return static_cast<T>(threads.exchange(v, mask));
  }
  bool any(bool m) const { return threads.any(m); }
};

}  // namespace emulator
