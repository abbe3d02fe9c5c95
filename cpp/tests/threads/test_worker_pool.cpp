#include "threads/worker_pool.h"

#include <stdexcept>

#include "check.h"

using swsl::WorkerPool;

TEST(every_index_once_for_every_caller) {
  for (const int threads : {1, 2, 5}) {
    WorkerPool pool(threads);
    std::vector<std::thread> callers;
    std::atomic<int> wrong = 0;
    for (int caller = 0; caller < 4; ++caller)
      callers.emplace_back([&] {
        for (const std::size_t count : {0, 1, 2, 3, 100}) {
          std::vector<std::atomic<int>> seen(count);
          pool.for_each(count, [&](std::size_t i) { ++seen[i]; });
          for (const auto& times : seen) wrong += times != 1;
        }
      });
    for (auto& caller : callers) caller.join();
    CHECK_EQ(wrong.load(), 0);
  }
}

TEST(an_exception_reaches_the_caller_after_the_rest_is_done) {
  WorkerPool pool(3);
  std::atomic<int> done = 0;
  CHECK_THROWS(std::runtime_error, "seven", (pool.for_each(20, [&](std::size_t i) {
                 if (i == 7) throw std::runtime_error("seven");
                 ++done;
               })));
  CHECK_EQ(done.load(), 19);
  pool.for_each(1, [&](std::size_t) { ++done; });
  CHECK_EQ(done.load(), 20);
}
