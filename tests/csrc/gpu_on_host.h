// A cluster of thread blocks on the host, which runs the device code of cuda/cam_block.h. Every thread is a fiber that
// runs until it waits for others, at a barrier or in a shuffle. Shared memory starts as NaN, and the caller chooses the
// order of the threads, so that a dependency on either shows.
#pragma once

// With it longjmp, by which threads take turns, refuses to jump to another stack.
#undef _FORTIFY_SOURCE

#include "cuda/cam_block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

namespace gradcam_fast::gpu {

class Cluster;

class HostMachine {
 public:
  HostMachine(Cluster& cluster, int rank, int thread) : cluster_(cluster), rank_(rank), thread_(thread) {}

  int thread() const { return thread_; }
  int rank() const { return rank_; }
  int64_t image() const;
  int64_t target() const;
  float* shared();
  float load_from_rank(int rank, const float* address);
  void sync();
  void arrive_at_cluster();
  void wait_for_cluster();
  template <class T>
  T shuffle_xor(T value, int mask);

  // Copies arrive as late as they may: when their thread waits for them.
  template <int offset>
  void copy16(void* target, const void* source) {
    char* to = static_cast<char*>(target) + offset;
    const char* from = static_cast<const char*>(source) + offset;
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
      throw std::runtime_error("a copy of sixteen bytes from or to an address that is not a multiple of sixteen");
    copies_.push_back({to, from, ends_});
  }
  void commit_copies() { ++ends_; }
  template <int pending>
  void wait_for_copies() {
    while (!copies_.empty() && copies_.front().end < ends_ - pending) {
      std::memcpy(copies_.front().to, copies_.front().from, 16);
      copies_.pop_front();
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int end;
  };

  Cluster& cluster_;
  int rank_, thread_;
  int turn_ = 0;
  int ends_ = 0;
  int64_t turn_of_cluster_ = 0;
  std::deque<Copy> copies_;
};

class Cluster {
 public:
  Cluster(int blocks, int64_t floats, int64_t image, int64_t target, bool backwards)
      : blocks_(blocks),
        image_(image),
        target_(target),
        backwards_(backwards),
        shared_(blocks),
        barriers_(blocks * 9 + 1) {
    for (auto& memory : shared_) memory.assign(floats, NAN);
    for (int i = 0; i < blocks; ++i) barriers_[i].size = THREADS;
    for (int i = blocks; i < 9 * blocks; ++i) barriers_[i].size = WARP;
    barriers_.back().size = blocks * THREADS;
    slots_.resize(2 * blocks * THREADS);
  }

  void run(const std::function<void(HostMachine&)>& body) {
    const int count = blocks_ * THREADS;
    for (int i = 0; i < count; ++i) {
      fibers_.push_back(std::make_unique<Fiber>(HostMachine(*this, i / THREADS, i % THREADS), body, scheduler_));
      Fiber& fiber = *fibers_.back();
      getcontext(&fiber.context);
      fiber.context.uc_stack = {stack_of(i), 0, STACK};
      const auto address = reinterpret_cast<uintptr_t>(&fiber);
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(start), 2, static_cast<unsigned>(address),
                  static_cast<unsigned>(address >> 32));
    }
    for (int left = count; left > 0;) {
      bool progress = false;
      for (int i = 0; i < count; ++i) {
        Fiber& fiber = *fibers_[backwards_ ? count - 1 - i : i];
        if (fiber.done || (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation)) continue;
        fiber.waits_for = nullptr;
        current_ = &fiber;
        // Jumping avoids the system calls of a context switch.
        if (_setjmp(scheduler_) == 0) {
          if (fiber.begun) _longjmp(fiber.place, 1);
          fiber.begun = true;
          setcontext(&fiber.context);
        }
        if (fiber.error) std::rethrow_exception(fiber.error);
        progress = true;
        left -= fiber.done;
        // In backward order the last warps also run as far ahead of the others as the barriers allow.
        if (backwards_) break;
      }
      // Some threads wait at a barrier that the others never reach; on a GPU this would hang.
      if (!progress) throw std::runtime_error("threads wait for each other forever");
    }
  }

 private:
  friend class HostMachine;

  struct Barrier {
    int size = 0, arrived = 0;
    int64_t generation = 0;
  };
  struct Fiber {
    Fiber(HostMachine machine, const std::function<void(HostMachine&)>& body, jmp_buf& scheduler)
        : machine(machine), body(body), scheduler(scheduler) {}
    HostMachine machine;
    const std::function<void(HostMachine&)>& body;
    jmp_buf& scheduler;
    ucontext_t context;
    jmp_buf place;
    bool begun = false;
    Barrier* waits_for = nullptr;
    int64_t generation = 0;
    bool done = false;
    std::exception_ptr error;
  };

  static constexpr size_t STACK = 1 << 15;
  // Kept from one cluster to the next, and never cleared.
  static char* stack_of(int fiber) {
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (static_cast<int>(stacks.size()) <= fiber) stacks.emplace_back(new char[STACK]);
    return stacks[fiber].get();
  }

  static void start(unsigned low, unsigned high) {
    auto* fiber = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
    try {
      fiber->body(fiber->machine);
    } catch (...) {
      fiber->error = std::current_exception();
    }
    fiber->done = true;
    _longjmp(fiber->scheduler, 1);
  }

  // Returns the barrier's generation.
  static int64_t arrive(Barrier& barrier) {
    const int64_t turn = barrier.generation;
    if (++barrier.arrived == barrier.size) {
      barrier.arrived = 0;
      ++barrier.generation;
    }
    return turn;
  }
  void wait(Barrier& barrier, int64_t turn) {
    if (barrier.generation != turn) return;
    current_->waits_for = &barrier;
    current_->generation = turn;
    if (_setjmp(current_->place) == 0) _longjmp(scheduler_, 1);
  }
  void meet(Barrier& barrier) { wait(barrier, arrive(barrier)); }

  int blocks_;
  int64_t image_, target_;
  bool backwards_;
  std::vector<std::vector<float>> shared_;
  std::vector<Barrier> barriers_;
  std::vector<double> slots_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber* current_ = nullptr;
  jmp_buf scheduler_;
};

inline int64_t HostMachine::image() const { return cluster_.image_; }
inline int64_t HostMachine::target() const { return cluster_.target_; }
inline float* HostMachine::shared() { return cluster_.shared_[rank_].data(); }
inline float HostMachine::load_from_rank(int rank, const float* address) {
  return cluster_.shared_[rank].at(address - cluster_.shared_[rank_].data());
}
inline void HostMachine::sync() { cluster_.meet(cluster_.barriers_[rank_]); }
inline void HostMachine::arrive_at_cluster() { turn_of_cluster_ = Cluster::arrive(cluster_.barriers_.back()); }
inline void HostMachine::wait_for_cluster() { cluster_.wait(cluster_.barriers_.back(), turn_of_cluster_); }

template <class T>
T HostMachine::shuffle_xor(T value, int mask) {
  // Two sets of slots in turn: a lane is at most one shuffle ahead of another.
  const int64_t slot = (turn_ ^= 1) * static_cast<int64_t>(cluster_.blocks_) * THREADS + rank_ * THREADS + thread_;
  cluster_.slots_[slot] = value;
  cluster_.meet(cluster_.barriers_[cluster_.blocks_ + rank_ * WARPS + thread_ / WARP]);
  return static_cast<T>(cluster_.slots_[slot - thread_ % WARP + (thread_ % WARP ^ mask)]);
}

}  // namespace gradcam_fast::gpu
