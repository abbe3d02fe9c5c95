// The planned CPU engine behind the Engine interface: when it is taken, what it says, and that callers and
// processes do not disturb each other. Its kernels and plans are tested in test_cpu_engine.cpp; LibTorch's
// answers are compared in libtorch/test_engine.cpp.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include <swsl/engine.h>

#include "check.h"
#include "engine/bfloat16.h"
#include "engine/float_batch.h"
#include "engine/kernels/kernels.h"
#include "test_data.h"

using swsl::ElementType;
using swsl::make_engine;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The exit code of `work` in a forked process, which is ended after a minute.
int in_child(const std::function<int()>& work) {
  const auto child = fork();
  if (child == 0) {
    alarm(60);
    _exit(work());
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  return status;
}

}  // namespace

TEST(every_processor_has_one_for_float32_and_bfloat16) {
  for (const auto dtype : {ElementType::float32, ElementType::bfloat16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype});
    CHECK_EQ(engine->info().name, "planned");
    CHECK_EQ(engine->info().dtype, swsl::dtype_name(dtype));
    CHECK_EQ(engine->info().classes, 10);
    CHECK_EQ(engine->info().features, 2048);
    CHECK(engine->info().golden.passed());
    const auto& kernels = swsl::cpu::best_kernels(dtype == ElementType::bfloat16);
    CHECK(contains(engine->info().reason, swsl::cpu::name(kernels.isa)));
  }
}

TEST(a_photograph_gives_what_eager_python_gives) {
  const auto input = floats("input.f32");
  const auto batch = swsl::Batch::contiguous(input.data(), {1, 3, 64, 64});
  const auto engine = make_engine(tiny());
  const swsl::Outputs actual{forward(*engine, batch), embed(*engine, batch)};
  const swsl::Outputs expected{floats("logits.f32"), floats("features.f32")};
  CHECK(swsl::output_errors(tiny().metadata().golden, actual, expected).largest() <= 1e-5);
}

TEST(both_outputs_are_those_of_each) {
  for (const auto dtype : {ElementType::float32, ElementType::bfloat16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype, .max_batch = 4});
    const auto images = make_images(7);
    std::vector<float> logits(7 * 10), features(7 * 2048);
    engine->run(images.batch, logits.data(), features.data());
    CHECK(logits == forward(*engine, images.batch) && features == embed(*engine, images.batch));
  }
}

TEST(what_it_has_no_kernels_for_needs_libtorch) {
  const auto silu = swsl::FrozenModel::load(data("silu.pt"));
  CHECK_THROWS(swsl::NeedsLibTorch, "has no silu", make_engine(silu));
  CHECK_THROWS(swsl::NeedsLibTorch, "float32 and bfloat16 only",
               make_engine(tiny(), {.dtype = ElementType::float16}));
  CHECK_THROWS(swsl::NeedsLibTorch, "device: \"cuda:1\" needs swsl's LibTorch part",
               swsl::parse_device("cuda:1"));
  CHECK_EQ(swsl::parse_device("auto"), "cpu");
}

TEST(what_libtorch_could_not_run_either_needs_another_file) {
  const auto program = swsl::FrozenModel::load(data("tiny.pt2"));
  CHECK(make_engine(program)->info().name == "planned");
  CHECK_THROWS(swsl::ModelError,
               "float32 and bfloat16 only, and LibTorch does not run torch.export's program",
               make_engine(program, {.dtype = ElementType::float16}));
}

TEST(the_answers_do_not_depend_on_the_batch) {
  const auto engine = make_engine(tiny(), {.max_batch = 4});
  const auto images = make_images(13);
  const auto together = forward(*engine, images.batch);
  for (std::size_t i = 0; i < 13; ++i) {
    const auto one = swsl::Batch::contiguous(images.numbers.data() + i * 3 * 64 * 64, {1, 3, 64, 64});
    CHECK(swsl::relative_error(std::span(together).subspan(10 * i, 10), forward(*engine, one)) <= 1e-6);
  }
  CHECK_EQ(forward(*engine, make_images(2, 96, 130).batch).size(), 20u);
  CHECK(forward(*engine, make_images(0).batch).empty());
}

TEST(a_batch_is_read_where_it_lies_in_any_order_and_type) {
  const auto engine = make_engine(tiny());
  const auto images = make_images(2);
  const auto logits = forward(*engine, images.batch);
  std::vector<float> last(images.numbers.size());
  std::vector<std::uint16_t> narrow(images.numbers.size());
  for (std::int64_t n = 0; n < 2; ++n)
    for (std::int64_t c = 0; c < 3; ++c)
      for (std::int64_t at = 0; at < 64 * 64; ++at) {
        const float number = images.numbers[(n * 3 + c) * 64 * 64 + at];
        last[(n * 64 * 64 + at) * 3 + c] = number;
        narrow[(n * 3 + c) * 64 * 64 + at] = swsl::cpu::to_bfloat16(number);  // exact: 8 bits are set at most
      }
  const swsl::Batch channels_last{
      last.data(), ElementType::float32, {2, 3, 64, 64}, {3 * 64 * 64, 1, 3 * 64, 3}};
  CHECK(forward(*engine, channels_last) == logits);
  swsl::Batch half = images.batch;
  half.data = narrow.data();
  half.type = ElementType::bfloat16;
  CHECK(forward(*engine, half) == logits);
}

TEST(float16_is_widened_as_ieee_754_has_it) {
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double sign = bits >> 15 ? -1 : 1;
    const double expected = exponent == 31  ? (mantissa ? NAN : sign * HUGE_VAL)
                            : exponent == 0 ? sign * std::ldexp(mantissa, -24)
                                            : sign * std::ldexp(1024 + mantissa, exponent - 25);
    const double found = swsl::from_float16(static_cast<std::uint16_t>(bits));
    CHECK((std::isnan(expected) && std::isnan(found)) || expected == found);
  }
}

TEST(faulty_arguments_are_named) {
  const auto engine = make_engine(tiny());
  auto images = make_images(1);
  images.batch.shape[1] = 4;
  CHECK_THROWS(std::invalid_argument, "batch: expected N×3×height×width, got 1×4×64×64",
               forward(*engine, images.batch));
  images = make_images(1);
  images.batch.cuda = 0;
  CHECK_THROWS(std::invalid_argument, "CUDA device 0", forward(*engine, images.batch));
  CHECK_THROWS(std::invalid_argument, "threads: expected 0 or more, got -1",
               make_engine(tiny(), {.threads = -1}));
  CHECK_THROWS(std::invalid_argument, "max_batch: expected 1 or more, got 0",
               make_engine(tiny(), {.max_batch = 0}));
  CHECK_THROWS(std::invalid_argument, "tf32: expected dtype float32 on a CUDA device",
               make_engine(tiny(), {.tf32 = true}));
  CHECK_THROWS(std::invalid_argument, "got \"int8\"", swsl::parse_dtype("int8"));
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cpu:0"})
    CHECK_THROWS(std::invalid_argument, "device: expected \"cpu\", \"cuda\", \"cuda:N\" or \"auto\"",
                 swsl::parse_device(name));
}

TEST(a_module_that_fails_its_golden_check_is_refused) {
  const auto wrong = swsl::FrozenModel::load(data("wrong_golden.pt"));
  for (const auto dtype : {ElementType::float32, ElementType::bfloat16})
    CHECK_THROWS(swsl::ModelError, "wrong_golden.pt: golden check failed in float32 on cpu: features off by",
                 make_engine(wrong, {.dtype = dtype}));
}

TEST(damaged_weights_are_refused) {
  const auto damaged = swsl::FrozenModel::load(data("damaged_weights.pt"));
  CHECK_THROWS(swsl::ModelError, "damaged_weights.pt: damaged: the CRC of its entry constants/",
               make_engine(damaged));
}

TEST(callers_and_engines_do_not_disturb_each_other) {
  const auto one = make_engine(tiny(), {.threads = 2}), two = make_engine(tiny(), {.threads = 3});
  const auto images = make_images(3);
  const auto expected = forward(*one, images.batch);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int run = 0; run < 10; ++run) wrong += forward(caller % 2 ? *one : *two, images.batch) != expected;
    });
  for (auto& caller : callers) caller.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(the_profile_covers_the_network) {
  const auto engine = make_engine(tiny(), {.max_batch = 2});
  const auto layers = engine->profile(make_images(2).batch);
  // The stem, four bottlenecks of three convolutions and a shortcut each, the classifier; two pools and the
  // input's step.
  CHECK_EQ(layers.size(), std::size_t{1 + 4 * 4 + 1 + 2 + 1});
  const double stem = 2.0 * 64 * 32 * 32 * 3 * 7 * 7;
  CHECK_EQ(layers[1].multiply_adds, stem);
  for (const auto& layer : layers) CHECK(layer.seconds > 0 && !layer.kernel.empty() && !layer.shape.empty());
  CHECK_THROWS(std::invalid_argument, "at most 2 images to profile", engine->profile(make_images(3).batch));
}

TEST(the_choice_of_a_dtype_is_remembered) {
  const auto folder = std::filesystem::temp_directory_path() / ("swsl-test-" + std::to_string(getpid()));
  setenv("XDG_CACHE_HOME", folder.c_str(), 1);
  const auto measured = make_engine(tiny(), {.dtype = swsl::parse_dtype("auto")});
  const auto known = make_engine(tiny(), {.dtype = swsl::parse_dtype("auto")});
  if (swsl::cpu::supported(swsl::cpu::Isa::avx512bf16)) {
    CHECK(contains(measured->info().reason, "an image takes"));
    CHECK(contains(known->info().reason, "when first measured here"));
  } else {
    CHECK(contains(measured->info().reason, "no instructions for bfloat16"));
  }
  CHECK_EQ(known->info().dtype, measured->info().dtype);
  CHECK(forward(*known, make_images(1).batch) == forward(*measured, make_images(1).batch));
  std::filesystem::remove_all(folder);
  CHECK(swsl::peak_flops(ElementType::float32, 1) > 0);
  CHECK_EQ(swsl::peak_flops(ElementType::float16, 1), 0);
}

TEST(a_forked_process_is_told_to_make_its_own) {
  const auto engine = make_engine(tiny());
  CHECK_EQ(in_child([&] {
             try {
               forward(*engine, make_images(1).batch);
             } catch (const std::runtime_error& error) {
               return contains(error.what(), "before the process forked") ? 0 : 2;
             }
             return 1;
           }),
           0);
}

TEST(a_forked_process_can_destroy_what_it_has_of_its_parents) {
  auto engine = make_engine(tiny(), {.threads = 2});
  forward(*engine, make_images(1).batch);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // so that its threads wait for work
  CHECK_EQ(in_child([&] { return engine.reset(), 0; }), 0);
}

TEST(a_forked_process_makes_and_uses_an_engine_of_its_own) {
  const auto images = make_images(5);
  const auto expected = forward(*make_engine(tiny()), images.batch);
  CHECK_EQ(in_child([&] {
             const auto own = swsl::FrozenModel::load(data("tiny.pt"));
             return forward(*make_engine(own), images.batch) == expected ? 0 : 1;
           }),
           0);
}
