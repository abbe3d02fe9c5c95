#include "threads/turns.h"

#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"

using swsl::Turns;

TEST(whoever_came_first_goes_first) {
  Turns turns;
  std::vector<int> order;
  std::vector<std::thread> threads;
  {
    const std::lock_guard turn(turns);
    for (std::size_t i = 0; i < 12; ++i) {
      threads.emplace_back([&, i] {
        const std::lock_guard turn(turns);
        order.push_back(static_cast<int>(i));
      });
      while (turns.waiting() != i + 1) std::this_thread::yield();
    }
  }
  for (auto& thread : threads) thread.join();
  for (int i = 0; i < 12; ++i) CHECK_EQ(order[i], i);
}

TEST(nobody_overtakes_those_who_wait) {
  Turns turns;
  std::vector<int> order;
  turns.lock();
  std::thread other([&] {
    const std::lock_guard turn(turns);
    order.push_back(1);
  });
  while (turns.waiting() != 1) std::this_thread::yield();
  turns.unlock();  // with a std::mutex the next line, which needs no waking up, nearly always wins
  turns.lock();
  order.push_back(2);
  turns.unlock();
  other.join();
  CHECK(order == (std::vector<int>{1, 2}));
}

TEST(one_at_a_time_also_where_one_throws) {
  Turns turns;
  int inside = 0, thrown = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 500; ++round) {
        try {
          const std::lock_guard turn(turns);
          CHECK_EQ(++inside, 1);
          --inside;
          if (round % 5 == 0) throw std::runtime_error("the work failed");
        } catch (const std::runtime_error&) {
          const std::lock_guard turn(turns);
          ++thrown;
        }
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_EQ(thrown, 400);
  CHECK_EQ(turns.waiting(), 0u);
}
