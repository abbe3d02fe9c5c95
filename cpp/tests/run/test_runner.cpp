#include <swsl/runner.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include <swsl/image.h>

#include "check.h"
#include "test_data.h"

using swsl::ImageSource;
using swsl::Runner;

namespace {

const Runner& runner() {
  static const Runner made(data("tiny.pt"));
  return made;
}

// Of what a runner makes of the photograph.
double error(std::span<const float> logits, std::span<const float> features) {
  const swsl::Outputs actual{{logits.begin(), logits.end()}, {features.begin(), features.end()}};
  return swsl::output_errors(runner().metadata().golden, actual,
                             {floats("logits.f32"), floats("features.f32")})
      .largest();
}

bool equal(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::vector<ImageSource> photos(std::size_t count) { return {count, data("photo.jpg")}; }

}  // namespace

TEST(a_photograph_gives_what_eager_python_gives) {
  const auto images = photos(1);
  CHECK(equal(runner().preprocess(images).rows, floats("input.f32")));
  CHECK(error(runner().logits(images).rows, runner().embed(images).rows) <= 1e-5);
  const auto input = floats("input.f32");
  const auto batch = swsl::Batch::contiguous(input.data(), {1, 3, 64, 64});
  CHECK(error(runner().forward(batch), floats("features.f32")) <= 1e-5);
}

TEST(predictions_are_the_softmax_in_order) {
  const auto logits = floats("logits.f32");
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit);
  const auto predictions = runner().classify_file(data("photo.jpg"), 3);
  CHECK_EQ(predictions.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    const auto above = std::count_if(logits.begin(), logits.end(),
                                     [&](float x) { return x > logits[predictions[i].index]; });
    CHECK_EQ(above, i);
    CHECK_EQ(predictions[i].label, runner().metadata().labels[predictions[i].index]);
    CHECK(std::abs(predictions[i].probability - std::exp(logits[predictions[i].index]) / sum) < 1e-5);
  }
  CHECK_EQ(runner().classify_file(data("photo.jpg"), 99).size(), 10u);
  CHECK_THROWS(std::invalid_argument, "top_k: expected 1 or more, got 0", runner().classify(photos(1), 0));
  CHECK_THROWS(std::invalid_argument, "logits: expected 10 of one image, got 3",
               runner().predictions(std::vector<float>(3)));
  CHECK_THROWS(std::runtime_error, "not all finite", runner().predictions(std::vector<float>(10, NAN)));
}

TEST(all_outputs_come_of_one_pass) {
  using enum swsl::Output;
  auto images = photos(3);
  images[1] = data("nothing.jpg");
  const auto results = runner().run(images, {embedding, predictions, logits}, 4);
  const auto expected = runner().logits(images), features = runner().embed(images);
  CHECK(results[1].error.find("nothing.jpg") != std::string::npos);
  CHECK(results[1].predictions.empty() && results[1].embedding.empty() && results[1].logits.empty());
  for (const std::size_t i : {0, 2}) {
    CHECK(equal(results[i].logits, expected.row(i)) && equal(results[i].embedding, features.row(i)));
    CHECK_EQ(results[i].predictions.size(), 4u);
  }
  const auto embedded = runner().run(photos(1), {embedding}).front();
  CHECK(equal(embedded.embedding, features.row(0)));
  CHECK(embedded.predictions.empty() && embedded.logits.empty());
  CHECK(runner().run({}, {logits}).empty());
  CHECK_THROWS(std::invalid_argument, "outputs: expected one or more of predictions, embedding and logits",
               runner().run(photos(1), {}));
}

TEST(another_decoder_is_asked_for_what_is_not_decoded_here) {
  int asked = 0;
  swsl::RunnerOptions options{.threads = 1, .max_pixels = 1'000'000};
  options.decode_other = [&](const ImageSource& source) {
    ++asked;
    const auto& encoded = std::get<swsl::EncodedImage>(source);
    if (encoded.size == 6) return swsl::Image{};
    if (encoded.size == 7) throw swsl::ImageError(encoded.name + ": not today");
    return swsl::read_image(data("photo.jpg"));
  };
  const Runner other(data("tiny.pt"), options);
  const std::vector<ImageSource> images = {swsl::EncodedImage{"GIF89", 5}, swsl::EncodedImage{"GIF89a", 6},
                                           swsl::EncodedImage{"GIF89a;", 7}, data("photo.jpg")};
  const auto result = other.preprocess(images);
  CHECK_EQ(asked, 3);
  CHECK(equal(result.row(0), result.row(3)));
  CHECK_EQ(result.errors[0], "");
  CHECK_EQ(result.errors[1], "image bytes: is a GIF image; swsl decodes JPEG and PNG");
  CHECK_EQ(result.errors[2], "image bytes: not today");
  CHECK_THROWS(std::invalid_argument, "max_pixels: expected 1 or more, got -1",
               Runner(data("tiny.pt"), {.max_pixels = -1}));
}

TEST(equal_logits_are_ordered_by_class) {
  const auto tied = runner().predictions(std::vector<float>(10), 10);
  for (std::size_t i = 0; i < tied.size(); ++i) CHECK_EQ(tied[i].index, static_cast<std::int64_t>(i));
}

TEST(files_bytes_and_pixels_are_the_same_image) {
  const std::string bytes = contents(data("photo.jpg"));
  const auto image = swsl::read_image(data("photo.jpg"));
  const std::vector<ImageSource> sources = {data("photo.jpg"), swsl::EncodedImage{bytes.data(), bytes.size()},
                                            image.view()};
  const auto result = runner().preprocess(sources);
  CHECK(equal(result.row(0), result.row(1)) && equal(result.row(0), result.row(2)));
}

TEST(one_bad_image_is_one_error) {
  const std::string bytes = contents(data("photo.jpg")).substr(0, 5000);
  std::vector<ImageSource> images = photos(20);
  images[3] = data("nothing.jpg");
  images[17] = swsl::EncodedImage{bytes.data(), bytes.size(), "cut.jpg"};
  images[18] = swsl::ImageView{};
  const auto results = runner().classify(images, 2);
  const auto batch = runner().logits(images);
  for (std::size_t i = 0; i < images.size(); ++i) {
    const bool bad = i == 3 || i == 17 || i == 18;
    CHECK_EQ(results[i].ok(), !bad);
    CHECK_EQ(results[i].predictions.size(), bad ? 0u : 2u);
    CHECK_EQ(batch.errors[i], results[i].error);
    for (const float logit : batch.row(i)) CHECK_EQ(std::isnan(logit), bad);
  }
  CHECK(results[3].error.find("nothing.jpg: ") == 0 ||
        results[3].error.find("/nothing.jpg: ") != std::string::npos);
  CHECK(results[17].error.find("cut.jpg: truncated") == 0);
  CHECK(swsl::relative_error(batch.row(19), batch.row(0)) <= 1e-5);
  CHECK_THROWS(swsl::ImageError, "nothing.jpg", runner().classify_file(data("nothing.jpg")));
  CHECK(!runner().classify(std::span(images).subspan(17, 2)).front().ok());  // nothing left for the engine
}

TEST(no_images_give_no_rows) {
  CHECK(runner().classify({}).empty());
  CHECK((runner().logits({}).shape == std::vector<std::int64_t>{0, 10}));
  CHECK((runner().embed({}).shape == std::vector<std::int64_t>{0, 2048}));
  CHECK((runner().preprocess({}).shape == std::vector<std::int64_t>{0, 3, 64, 64}));
}

TEST(options_are_obeyed_or_refused) {
  const Runner small(data("tiny.pt"), {.dtype = "bfloat16", .threads = 1, .batch_size = 3});
  CHECK_EQ(small.info().dtype, "bfloat16");
  CHECK_EQ(small.info().threads, 1);
  CHECK_EQ(small.batch_size(), 3);
  const auto logits = small.logits(photos(7)), features = small.embed(photos(7));
  for (int i = 0; i < 7; ++i) CHECK(error(logits.row(i), features.row(i)) <= 1e-2);
  CHECK_THROWS(std::invalid_argument, "threads: expected 0 or more, got -2",
               Runner(data("tiny.pt"), {.threads = -2}));
  CHECK_THROWS(std::invalid_argument, "batch_size: expected 0 or more, got -1",
               Runner(data("tiny.pt"), {.batch_size = -1}));
  CHECK_THROWS(std::invalid_argument, "got \"int8\"", Runner(data("tiny.pt"), {.dtype = "int8"}));
  CHECK_THROWS(std::invalid_argument, "got \"tpu\"", Runner(data("tiny.pt"), {.device = "tpu"}));
  CHECK_THROWS(swsl::ModelError, "nothing.pt: no such file", Runner(data("nothing.pt")));
}

TEST(eight_threads_get_what_one_gets) {
  const Runner shared(data("tiny.pt"), {.threads = 2, .batch_size = 4});
  std::vector<ImageSource> images = photos(6);
  images[2] = data("nothing.jpg");
  const auto alone = shared.logits(images);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        const auto batch = shared.logits(images);
        wrong += batch.errors != alone.errors;
        for (std::size_t row : {0, 1, 3, 4, 5}) wrong += !equal(batch.row(row), alone.row(row));
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(a_moved_runner_works) {
  Runner first(data("tiny.pt"));
  Runner second(std::move(first));
  CHECK_EQ(second.classify_file(data("photo.jpg")).size(), 5u);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which keep freed memory on purpose
static long resident_kilobytes() {
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return pages * 4;
}

TEST(memory_is_flat_over_2000_calls_of_mixed_sizes) {
  if (std::getenv("SWSL_TEST_EMULATED")) throw check::Skipped("takes ten minutes in an emulator");
  const auto calls = [](int count) {
    for (int i = 0; i < count; ++i) {
      const int size = (i * 7 + i / 13) % 19;
      if (i % 2)
        runner().forward(make_images(size).batch);
      else
        runner().classify(photos(size % 5), 5);
    }
  };
  calls(200);  // all sizes seen: what is kept per size is kept
  const long before = resident_kilobytes();
  calls(2000);
  const long grown = resident_kilobytes() - before;
  if (grown > 8 * 1024) check::fail(__FILE__, __LINE__, "grown by ", grown, " kB, expected at most 8192");
}
#endif
