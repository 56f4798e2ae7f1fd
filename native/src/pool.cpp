// A small thread pool. Tasks are handed out by a counter; no result may depend on who runs which task.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "freehold/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FH_PAUSE() _mm_pause()
#else
#define FH_PAUSE() ((void)0)
#endif

namespace freehold {
namespace {

struct Job {
  void (*body)(int, void*);
  void* context;
  int tasks;
  int helpers;
  std::atomic<int> next{0};
  std::atomic<int> active{0};  // helpers that are inside; counted up under the pool's mutex
};

class Pool {
 public:
  void run(int tasks, int threads, void (*body)(int, void*), void* context) {
    std::lock_guard<std::mutex> one_caller(caller_);
    const int helpers = (threads < tasks ? threads : tasks) - 1;
    grow(helpers);
    Job job;
    job.body = body;
    job.context = context;
    job.tasks = tasks;
    job.helpers = helpers;
    publish(&job);
    if (sleepers_.load() > 0) wake_.notify_all();
    drain(job);
    // Helpers that have not come by now are not waited for: there is nothing left for them.
    publish(nullptr);
    for (int spin = 0; job.active.load(std::memory_order_acquire) > 0; ++spin) relax(spin);
  }

 private:
  // Up to so many workers. Where the system grants no more, those that are there do all the work.
  void grow(int helpers) {
    try {
      while (static_cast<int>(workers_.size()) < helpers) {
        const int id = static_cast<int>(workers_.size());
        // Detached: the pool lives as long as the process, and joining at exit could wait on a dead interpreter.
        workers_.emplace_back([this, id] { work(id); });
        workers_.back().detach();
      }
    } catch (const std::system_error&) {
    }
  }

  static void drain(Job& job) {
    for (int t; (t = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) job.body(t, job.context);
  }

  static void relax(int spin) {
    if (spin < 2000) {
      FH_PAUSE();
    } else {
      std::this_thread::yield();  // the machine has other work: let it run
    }
  }

  void publish(Job* job) {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = job;
    if (job != nullptr) epoch_.fetch_add(1, std::memory_order_release);
  }

  // The next job of a model's step comes after some ten microseconds, and waking a sleeper takes longer than that: wait
  // awake for a while, but let others run.
  void await(unsigned seen) const {
    const auto changed = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    for (int spin = 0; spin < 2000; ++spin) {
      if (changed()) return;
      FH_PAUSE();
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    while (!changed() && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
      for (int spin = 0; spin < 50 && !changed(); ++spin) FH_PAUSE();
    }
  }

  void work(int id) {
    unsigned seen = 0;
    for (;;) {
      await(seen);
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (epoch_.load() == seen) {
          ++sleepers_;
          wake_.wait(lock, [&] { return epoch_.load() != seen; });
          --sleepers_;
        }
        seen = epoch_.load();
        if (job_ != nullptr && id < job_->helpers) {
          job = job_;
          job->active.fetch_add(1, std::memory_order_relaxed);
        }
      }
      if (job == nullptr) continue;
      drain(*job);
      job->active.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex caller_, mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> epoch_{0};
  std::atomic<int> sleepers_{0};
  Job* job_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace

void parallel_for(int tasks, int threads, void (*body)(int, void*), void* context) {
  if (tasks <= 0) return;
  if (threads <= 1 || tasks == 1) {
    for (int t = 0; t < tasks; ++t) body(t, context);
    return;
  }
  static Pool* pool = new Pool;  // never destroyed: its threads may outlive static destruction
  pool->run(tasks, threads, body, context);
}

}  // namespace freehold
