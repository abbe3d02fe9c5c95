#include <swsl/dynamic_batcher.h>

#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

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

constexpr std::chrono::milliseconds moment(2);

}  // namespace

TEST(every_thread_gets_its_own_image) {
  const auto expected = runner().classify_file(data("photo.jpg"), 3);
  DynamicBatcher batcher(runner(), {.top_k = 3, .max_wait = moment});
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
  DynamicBatcher batcher(failing, {.max_wait = moment});
  const std::string bytes = "GIF89a and so on";
  const auto submit = [&] { return batcher.submit(swsl::EncodedImage{bytes.data(), bytes.size()}); };
  auto first = submit();
  CHECK_THROWS(std::logic_error, "no more memory", first.get());
  CHECK_THROWS(std::logic_error, "no more memory", submit());
}

TEST(batches_must_go_some_time) {
  CHECK_THROWS(std::invalid_argument, "max_wait", DynamicBatcher(runner(), {.max_wait = std::nullopt}));
  CHECK_THROWS(std::invalid_argument, "top_k", DynamicBatcher(runner(), {.top_k = 0}));
}

TEST(a_forked_process_can_destroy_it_and_nothing_else) {
  auto batcher = std::make_unique<DynamicBatcher>(runner(), swsl::StreamOptions{.max_wait = moment});
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
