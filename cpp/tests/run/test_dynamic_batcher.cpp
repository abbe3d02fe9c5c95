#include <swsl/dynamic_batcher.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <swsl/stream.h>

#include "check.h"
#include "test_data.h"

using swsl::DynamicBatcher;
using swsl::ImageSource;
using swsl::Runner;

namespace {

const Runner& runner() {
  static const Runner made(data("tiny.pt"), {.batch_size = 4});
  return made;
}

// Whoever decodes such bytes waits until the gate opens.
struct Gate {
  std::promise<void> open;
  std::shared_future<void> opened = open.get_future().share();
  const std::string bytes = "GIF89a and so on";

  ImageSource image() const { return swsl::EncodedImage{bytes.data(), bytes.size()}; }
  swsl::RunnerOptions options(int batch_size) const {
    swsl::RunnerOptions options{.batch_size = batch_size};
    options.decode_other = [opened = opened](const ImageSource&) {
      opened.wait();
      return swsl::Image();
    };
    return options;
  }
};

}  // namespace

TEST(every_thread_gets_its_own_image) {
  const auto expected = runner().classify_file(data("photo.jpg"), 3);
  DynamicBatcher batcher(runner(), {.top_k = 3});
  std::vector<std::thread> clients;
  std::atomic<int> answered = 0;
  for (int client = 0; client < 6; ++client)
    clients.emplace_back([&, client] {
      for (int request = 0; request < 8; ++request) {
        const bool there = (client + request) % 3 != 0;
        const std::string path =
            there ? data("photo.jpg") : "no " + std::to_string(client) + std::to_string(request);
        const auto result = batcher.submit(path).get();
        if (there) {
          CHECK_EQ(result.predictions.size(), 3u);
          CHECK_EQ(result.predictions[0].index, expected[0].index);
        } else {
          CHECK(result.error.find(path + ":") != std::string::npos);
        }
        ++answered;
      }
    });
  for (auto& client : clients) client.join();
  CHECK_EQ(answered.load(), 48);
}

TEST(what_was_submitted_is_computed_before_the_end) {
  std::vector<std::future<swsl::Result>> futures;
  {
    DynamicBatcher batcher(runner(),
                           {.outputs = {swsl::Output::embedding}, .max_wait = std::chrono::hours(1)});
    for (int i = 0; i < 5; ++i) futures.push_back(batcher.submit(data("photo.jpg")));
  }
  for (auto& future : futures)
    CHECK_EQ(static_cast<int>(future.get().embedding.size()), runner().engine().info().features);
}

TEST(an_engine_that_fails_fails_every_future) {
  swsl::RunnerOptions options;
  options.decode_other = [](const ImageSource&) -> swsl::Image { throw std::logic_error("no more memory"); };
  const Runner failing(data("tiny.pt"), options);
  DynamicBatcher batcher(failing);
  const std::string bytes = "GIF89a and so on";
  const auto submit = [&] { return batcher.submit(swsl::EncodedImage{bytes.data(), bytes.size()}); };
  auto first = submit();
  CHECK_THROWS(std::logic_error, "no more memory", first.get());
  CHECK_THROWS(std::logic_error, "no more memory", submit());
}

TEST(a_runner_answers_requests_of_many_threads) {
  const auto expected = runner().classify_file(data("photo.jpg"));
  Runner moved(data("tiny.pt"));
  std::vector<std::future<swsl::Result>> futures(6);
  std::vector<std::thread> clients;
  for (auto& future : futures) clients.emplace_back([&] { future = moved.submit(data("photo.jpg")); });
  for (auto& client : clients) client.join();
  {
    Runner owner = std::move(moved);  // and ends, with what was submitted
    futures.push_back(owner.submit("nowhere"));
  }
  CHECK(futures.back().get().error.find("nowhere:") == 0);
  futures.pop_back();
  for (auto& future : futures) {
    const auto result = future.get();
    CHECK_EQ(result.predictions.size(), expected.size());
    CHECK_EQ(result.predictions[0].index, expected[0].index);
  }
}

TEST(an_engine_that_failed_once_does_not_end_a_runners_requests) {
  std::atomic<bool> fails = true;
  swsl::RunnerOptions options;
  options.decode_other = [&](const ImageSource&) {
    if (fails) throw std::logic_error("no more memory");
    return swsl::Image();
  };
  const Runner failing(data("tiny.pt"), options);
  const Gate other;
  CHECK_THROWS(std::logic_error, "no more memory", failing.submit(other.image()).get());
  fails = false;
  CHECK_EQ(failing.submit(data("photo.jpg")).get().predictions.size(), 5u);
}

TEST(submit_waits_while_the_queue_is_full) {
  Gate gate;
  const Runner waiting(data("tiny.pt"), gate.options(1));
  const int under_way = static_cast<int>(swsl::Stream(waiting).capacity());
  std::vector<std::future<swsl::Result>> futures;
  DynamicBatcher batcher(waiting, {.max_queue = 2});
  for (int i = 0; i < under_way + 2; ++i) futures.push_back(batcher.submit(gate.image()));
  std::atomic<bool> returned = false;
  std::thread one_more([&] {
    futures.push_back(batcher.submit(data("photo.jpg")));
    returned = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(!returned);
  gate.open.set_value();
  one_more.join();
  CHECK_EQ(futures.back().get().predictions.size(), 5u);
  futures.pop_back();
  for (auto& future : futures) CHECK(!future.get().ok());
}

TEST(faulty_options_are_named) {
  CHECK_THROWS(std::invalid_argument, "max_batch: expected 0 or more, got -1",
               DynamicBatcher(runner(), {.max_batch = -1}));
  CHECK_THROWS(std::invalid_argument, "max_wait: expected 0 or more, got -7 µs",
               DynamicBatcher(runner(), {.max_wait = std::chrono::microseconds(-7)}));
  CHECK_THROWS(std::invalid_argument, "max_queue: expected 1 or more, got 0",
               DynamicBatcher(runner(), {.max_queue = 0}));
  CHECK_THROWS(std::invalid_argument, "top_k", DynamicBatcher(runner(), {.top_k = 0}));
}

TEST(a_forked_process_can_destroy_it_and_nothing_else) {
  auto batcher = std::make_unique<DynamicBatcher>(runner());
  batcher->submit(data("photo.jpg")).get();
  const auto child = fork();
  if (child == 0) {
    alarm(60);  // which ends a child that hangs
    bool refused = false;
    try {
      batcher->submit(data("photo.jpg"));
    } catch (const std::runtime_error&) {
      refused = true;
    }
    batcher.reset();
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(batcher->submit(data("photo.jpg")).get().predictions.size(), 5u);
}
