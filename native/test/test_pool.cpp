// The thread pool: every task is run once, what tasks wrote is there when the call returns, callers from several
// threads do not disturb each other. Meant for the thread sanitizer; exits with 1 if a test failed.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "freehold/kernels.h"

using freehold::parallel_for;

namespace {

std::atomic<int> failures{0};

void expect(bool ok, const char* what, int tasks, int threads) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s: %d tasks, %d threads\n", what, tasks, threads);
}

// Each task counts in a place of its own, without a lock: the pool alone orders these writes before the reads below.
void count(int task, void* context) { ++(*static_cast<std::vector<int>*>(context))[static_cast<std::size_t>(task)]; }

void test_every_task_runs_once(int tasks, int threads) {
  std::vector<int> runs(static_cast<std::size_t>(tasks));
  parallel_for(tasks, threads, count, &runs);
  bool once = true;
  for (const int n : runs) once &= n == 1;
  expect(once, "a task was not run exactly once", tasks, threads);
}

// A value that each call reads and writes again: the calls must be ordered too.
void step(int task, void* context) {
  std::int64_t& value = (*static_cast<std::vector<std::int64_t>*>(context))[static_cast<std::size_t>(task)];
  value = value * 3 + task;
}

void test_calls_follow_each_other(int tasks, int threads, int calls) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(tasks)), wanted(values);
  for (int c = 0; c < calls; ++c) {
    parallel_for(tasks, threads, step, &values);
    for (int t = 0; t < tasks; ++t) step(t, &wanted);
  }
  expect(values == wanted, "a call did not see what the call before it wrote", tasks, threads);
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 5, 2})  // the pool grows, and serves fewer threads again
    for (const int tasks : {0, 1, 2, 3, 4, 7, 100, 1000}) test_every_task_runs_once(tasks, threads);
  test_calls_follow_each_other(5, 3, 30);
  for (int i = 0; i < 20; ++i) {  // longer than the helpers spin: they sleep and must be woken
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    test_every_task_runs_once(50, 3);
  }
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([c] {
      for (int i = 0; i < 200; ++i) test_every_task_runs_once(1 + (i + c) % 9, 2 + c % 3);
    });
  for (std::thread& caller : callers) caller.join();
  if (failures == 0) std::printf("the pool runs every task once, in order of its calls\n");
  return failures != 0;
}
