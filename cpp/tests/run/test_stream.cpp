#include <swsl/stream.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <latch>
#include <thread>

#include "run/pipeline.h"
#include "run/runner_state.h"

#include "check.h"
#include "test_data.h"

using swsl::BatchBuffer;
using swsl::ImageSource;
using swsl::Pipeline;
using swsl::PipelineOptions;
using swsl::Runner;
using swsl::Stream;

namespace {

const Runner& runner() {
  static const Runner made(data("tiny.pt"), {.batch_size = 4});
  return made;
}

// Images that are their own numbers; those divisible by `bad` fail.
swsl::FloatBuffer::Write number_writer(int bad) {
  return [bad](const ImageSource& image, float* output, const std::function<void()>&) -> std::string {
    const int number = std::stoi(std::get<std::string>(image));
    if (number % bad == 0) return "bad " + std::to_string(number);
    if (number % 7 == 3)
      std::this_thread::sleep_for(std::chrono::microseconds(200));  // so that they finish out of order
    output[0] = output[1] = static_cast<float>(number);
    return "";
  };
}

float first_of(const swsl::Batch& batch) { return *static_cast<const float*>(batch.data); }

double twice(const swsl::Batch& batch, float* rows) {
  for (std::int64_t i = 0; i < batch.shape[0]; ++i)
    rows[i] = 2 * static_cast<const float*>(batch.data)[i * batch.strides[0]];
  return static_cast<double>(batch.shape[0]);
}

PipelineOptions numbers(int batch_size, int workers, int bad = 1 << 30, int at_once = 1) {
  PipelineOptions options;
  options.batch_size = batch_size;
  options.workers = workers;
  options.at_once = at_once;
  options.make_buffer = [=] {
    const std::shared_ptr<float> memory(new float[3 * batch_size], std::default_delete<float[]>());
    return std::make_unique<swsl::FloatBuffer>(1, 1, memory, number_writer(bad));
  };
  options.prepare = [](BatchBuffer& buffer, const ImageSource& image, std::size_t place) {
    return swsl::Prepared{buffer.prepare(image, place, {}), static_cast<double>(place)};
  };
  options.columns = 1;
  options.compute = twice;
  return options;
}

void check_number(const Pipeline::Item& item, int number, int bad) {
  CHECK_EQ(std::get<std::string>(item.image), std::to_string(number));
  CHECK_EQ(item.spent.batch > 0, item.error.empty());
  CHECK_EQ(item.spent.forward, static_cast<double>(item.spent.batch));
  if (number % bad == 0)
    CHECK_EQ(item.error, "bad " + std::to_string(number));
  else
    CHECK(item.error.empty() && item.row.at(0) == 2.0f * static_cast<float>(number));
}

// Takes what `pop` throws or returns until the end.
int drain(Pipeline& pipeline) {
  int count = 0;
  while (pipeline.pop()) ++count;
  return count;
}

}  // namespace

TEST(results_are_in_order_whatever_the_sizes) {
  for (const int batch_size : {1, 4, 7})
    for (const int workers : {1, 2, 5})
      for (const int count : {0, 1, 7, 8, 150}) {
        Pipeline pipeline(numbers(batch_size, workers, 5, 1 + count % 3));
        std::thread pusher([&] {
          for (int i = 1; i <= count; ++i) pipeline.push(std::to_string(i));
          pipeline.finish();
        });
        for (int i = 1; i <= count; ++i) check_number(pipeline.pop().value(), i, 5);
        CHECK(!pipeline.pop() && !pipeline.pop());
        pusher.join();
      }
}

TEST(one_thread_can_do_both) {
  Pipeline pipeline(numbers(4, 2));
  int popped = 0;
  for (int i = 1; i <= 100; ++i) {
    if (pipeline.under_way() == pipeline.capacity()) check_number(pipeline.pop().value(), ++popped, 1 << 30);
    pipeline.push(std::to_string(i));
    CHECK(pipeline.under_way() <= pipeline.capacity());
  }
  pipeline.finish();
  CHECK_EQ(drain(pipeline) + popped, 100);
  CHECK_THROWS(std::invalid_argument, "finish", pipeline.push("1"));
}

TEST(push_waits_while_capacity_images_are_under_way) {
  Pipeline pipeline(numbers(4, 2));
  std::atomic<int> pushed = 0;
  std::thread pusher([&] {
    for (int i = 1; i <= 40; ++i) pipeline.push(std::to_string(i)), ++pushed;
    pipeline.finish();
  });
  const int capacity = static_cast<int>(pipeline.capacity());
  for (int popped = 0; popped < 40; ++popped) {
    CHECK(pipeline.wait_for(std::chrono::minutes(1)));
    CHECK(pushed <= popped + capacity);
    CHECK(pipeline.pop().has_value());
  }
  pusher.join();
}

TEST(only_good_images_are_computed_and_only_full_batches_before_the_end) {
  std::vector<std::int64_t> sizes;
  auto options = numbers(4, 3, 3);
  options.compute = [&](const swsl::Batch& batch, float* rows) {
    sizes.push_back(batch.shape[0]);
    return twice(batch, rows);
  };
  Pipeline pipeline(options);
  for (const char* image : {"1", "2", "3", "4", "6", "9", "12", "15", "7"}) pipeline.push(image);
  pipeline.finish();
  CHECK_EQ(drain(pipeline), 9);
  CHECK(sizes == (std::vector<std::int64_t>{3, 1}));  // a batch of failures is not computed at all
}

TEST(a_failed_engine_throws_after_the_results_before_it) {
  for (const int at_once : {1, 2, 3}) {
    auto options = numbers(2, 2, 1 << 30, at_once);
    options.compute = [](const swsl::Batch& batch, float* rows) {
      const auto first = first_of(batch);
      if (first == 5) throw std::runtime_error("out of memory");
      if (first == 3) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the failure comes sooner
      return twice(batch, rows);
    };
    Pipeline pipeline(options);
    for (int i = 1; i <= 6; ++i) pipeline.push(std::to_string(i));
    for (int i = 1; i <= 4; ++i) CHECK(pipeline.pop().has_value());
    CHECK_THROWS(std::runtime_error, "out of memory", pipeline.pop());
    CHECK(pipeline.wait_for(std::chrono::milliseconds(0)));
    CHECK_THROWS(std::runtime_error, "out of memory", pipeline.pop());
    for (std::size_t i = 2; i < pipeline.capacity(); ++i) pipeline.push("1");
    CHECK_THROWS(std::runtime_error, "out of memory", pipeline.push("1"));  // instead of waiting for ever
  }
}

TEST(several_batches_are_computed_at_a_time) {
  std::latch both(2);
  auto options = numbers(2, 2, 1 << 30, 2);
  options.compute = [&](const swsl::Batch& batch, float* rows) {
    both.arrive_and_wait();
    return twice(batch, rows);
  };
  Pipeline pipeline(options);
  for (int i = 1; i <= 4; ++i) pipeline.push(std::to_string(i));
  pipeline.finish();
  for (int i = 1; i <= 4; ++i) check_number(pipeline.pop().value(), i, 1 << 30);
}

TEST(a_failed_worker_throws) {
  auto options = numbers(2, 2);
  options.prepare = [](BatchBuffer&, const ImageSource&, std::size_t) -> swsl::Prepared {
    throw std::bad_alloc();
  };
  Pipeline pipeline(options);
  pipeline.push("1");
  CHECK_THROWS(std::bad_alloc, "bad_alloc", pipeline.pop());
}

TEST(destruction_stops_at_any_moment) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> running = 0;
    {
      auto options = numbers(3, 3, 1 << 30, 1 + round % 2);
      options.prepare = [&, inner = options.prepare](BatchBuffer& buffer, const ImageSource& image,
                                                     std::size_t place) {
        ++running;
        auto error = inner(buffer, image, place);
        --running;
        return error;
      };
      Pipeline pipeline(options);
      const int pushes = round % (static_cast<int>(pipeline.capacity()) + 1);
      for (int i = 1; i <= pushes; ++i) pipeline.push(std::to_string(i));
      if (round % 3 == 0) pipeline.finish();
      if (pushes >= 3 && round % 2) CHECK(pipeline.pop().has_value());
    }
    CHECK_EQ(running.load(), 0);
  }
}

TEST(a_stream_gives_what_the_runner_gives) {
  const std::string bytes = contents(data("photo.jpg"));
  const auto image = swsl::read_image(data("photo.jpg"));
  std::vector<ImageSource> images(10, data("photo.jpg"));
  images[2] = data("nothing.jpg");
  images[5] = swsl::EncodedImage{bytes.data(), bytes.size()};
  images[6] = image.view();
  images[7] = swsl::EncodedImage{bytes.data(), 3000, "cut.jpg"};
  const auto expected = runner().classify(images, 3);
  const auto all_logits = runner().logits(images), features = runner().embed(images);
  using enum swsl::Output;
  const std::vector<std::vector<swsl::Output>> combinations = {
      {predictions}, {logits}, {embedding}, {predictions, embedding}, {embedding, logits, predictions}};
  for (const auto& outputs : combinations) {
    const auto asked = [&](swsl::Output output) {
      return std::count(outputs.begin(), outputs.end(), output) > 0;
    };
    const auto close = [](const std::vector<float>& found, std::span<const float> row) {
      return swsl::relative_error(found, row) <= 1e-5;
    };
    Stream stream(runner(), {.batch_size = 3, .workers = 2, .top_k = 3, .outputs = outputs});
    CHECK_EQ(stream.capacity(), 9u);
    std::thread pusher([&] {
      for (const auto& source : images) stream.push(source);
      stream.finish();
    });
    for (std::size_t i = 0; i < images.size(); ++i) {
      const auto result = stream.pop().value();
      CHECK_EQ(result.error, expected[i].error);
      CHECK_EQ(!result.logits.empty(), result.ok() && asked(logits));
      CHECK_EQ(!result.embedding.empty(), result.ok() && asked(embedding));
      if (!result.logits.empty()) CHECK(close(result.logits, all_logits.row(i)));
      if (!result.embedding.empty()) CHECK(close(result.embedding, features.row(i)));
      CHECK_EQ(result.predictions.size(), asked(predictions) ? expected[i].predictions.size() : 0);
      for (std::size_t k = 0; k < result.predictions.size(); ++k)
        CHECK_EQ(result.predictions[k].label, expected[i].predictions[k].label);
    }
    CHECK(!stream.pop());
    pusher.join();
  }
}

TEST(a_stream_may_outlive_its_runner) {
  std::unique_ptr<Stream> stream;
  {
    const Runner shortlived(data("tiny.pt"), {.batch_size = 2});
    stream = std::make_unique<Stream>(shortlived);
  }
  stream->push(data("photo.jpg"));
  stream->finish();
  CHECK_EQ(stream->pop().value().predictions.size(), 5u);
}

TEST(a_forked_process_can_destroy_a_stream_and_its_runner_and_nothing_else) {
  auto made = std::make_unique<Runner>(data("tiny.pt"), swsl::RunnerOptions{.threads = 2, .batch_size = 2});
  auto stream = std::make_unique<Stream>(*made, swsl::StreamOptions{.workers = 2});
  stream->push(data("photo.jpg"));
  made->logits(std::vector<ImageSource>(2, data("photo.jpg")));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // so that their threads wait for work
  const auto child = fork();
  if (child == 0) {
    alarm(60);  // which ends a child that hangs
    int refused = 0;
    const std::function<void()> uses[] = {
        [&] { stream->under_way(); },
        [&] { stream->push(data("photo.jpg")); },
        [&] { stream->wait_for(std::chrono::milliseconds(0)); },
        [&] { stream->finish(); },
        [&] { stream->pop(); },
        [&] { Stream another(*made); },
        [&] { made->classify_file(data("photo.jpg")); },
    };
    for (const auto& use : uses) {
      try {
        use();
      } catch (const std::runtime_error& error) {
        refused += std::string(error.what()).find("before the process forked") != std::string::npos;
      }
    }
    stream.reset();
    made.reset();
    _exit(refused == 7 ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  stream->finish();
  CHECK_EQ(stream->pop().value().predictions.size(), 5u);
}

TEST(options_are_checked) {
  CHECK_THROWS(std::invalid_argument, "batch_size: expected 0 or more, got -1",
               Stream(runner(), {.batch_size = -1}));
  CHECK_THROWS(std::invalid_argument, "workers: expected 0 or more, got -1",
               Stream(runner(), {.workers = -1}));
  CHECK_THROWS(std::invalid_argument, "top_k: expected 1 or more, got 0", Stream(runner(), {.top_k = 0}));
  CHECK_THROWS(std::invalid_argument, "max_wait: expected 0 or more, got -7 µs",
               Stream(runner(), {.max_wait = std::chrono::microseconds(-7)}));
}

// In the following tests nothing is pushed before the result before it is there: without max_wait they would
// wait for ever.

TEST(a_live_source_gets_its_results_without_a_full_batch) {
  for (const int at_once : {1, 2, 3}) {
    auto options = numbers(4, 3, 5, at_once);
    options.max_wait = std::chrono::milliseconds(1);
    Pipeline pipeline(options);
    int number = 0;
    for (int round = 0; round < 30; ++round) {  // more batches than buffers
      const int count = 1 + round % 6, first = number + 1;
      for (int i = 0; i < count; ++i) pipeline.push(std::to_string(++number));
      for (int i = first; i <= number; ++i) check_number(pipeline.pop().value(), i, 5);
    }
    pipeline.finish();
    CHECK(!pipeline.pop());
  }
}

TEST(small_batches_fill_no_more_buffers_than_there_are) {
  auto options = numbers(4, 3);
  options.max_wait = std::chrono::milliseconds(1);
  std::latch started(1), go_on(1);
  options.compute = [&](const swsl::Batch& batch, float* rows) {
    if (first_of(batch) == 1) started.count_down(), go_on.wait();
    return twice(batch, rows);
  };
  Pipeline pipeline(options);
  pipeline.push("1");
  // A batch of one, and then as many images as may be under way: four batches for three buffers.
  started.wait();
  for (int i = 2; i <= 12; ++i) pipeline.push(std::to_string(i));
  go_on.count_down();
  for (int i = 1; i <= 12; ++i) check_number(pipeline.pop().value(), i, 1 << 30);
}

TEST(batches_are_full_where_nothing_else_is_asked_for) {
  std::atomic<std::int64_t> smallest = 4;
  auto options = numbers(4, 2);
  options.compute = [&](const swsl::Batch& batch, float* rows) {
    smallest = std::min(smallest.load(), batch.shape[0]);
    return twice(batch, rows);
  };
  Pipeline pipeline(options);
  for (int i = 1; i <= 8; ++i) {
    pipeline.push(std::to_string(i));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (int i = 1; i <= 8; ++i) check_number(pipeline.pop().value(), i, 1 << 30);
  CHECK_EQ(smallest.load(), 4);
}

TEST(a_stream_is_live_by_default) {
  Stream stream(runner());
  for (const char* image : {"photo.jpg", "nothing.jpg", "photo.jpg"}) {
    stream.push(data(image));
    CHECK_EQ(stream.pop().value().ok(), std::string(image) == "photo.jpg");
  }
  Stream patient(runner(), {.max_wait = std::chrono::microseconds::max()});
  patient.push(data("photo.jpg"));
  CHECK(!patient.wait_for(std::chrono::milliseconds(50)));
  patient.finish();
  CHECK(patient.pop().value().ok());
}
