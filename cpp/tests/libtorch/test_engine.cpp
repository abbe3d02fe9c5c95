#include <swsl/engine.h>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "check.h"
#include "test_data.h"

using swsl::make_engine;

namespace {

const swsl::FrozenModel& model() {
  static const auto loaded = swsl::FrozenModel::load(data("tiny.pt"));
  return loaded;
}

at::Tensor batch(std::int64_t count, std::int64_t height = 64, std::int64_t width = 64) {
  return swsl::golden_input({count, 3, height, width}) / 2;
}

}  // namespace

TEST(any_batch_and_size_gives_the_modules_own_answers) {
  const auto engine = make_engine(model(), {.max_batch = 4});
  for (const int count : {1, 2, 3, 4, 5, 7, 8, 13}) CHECK(error_of(*engine, model(), batch(count)) <= 1e-5);
  CHECK(error_of(*engine, model(), batch(2, 96, 130)) <= 1e-5);
}

TEST(an_empty_batch_gives_no_rows) {
  const auto engine = make_engine(model());
  CHECK(engine->forward(batch(0)).sizes() == at::IntArrayRef({0, 10}));
  CHECK(engine->embed(batch(0)).sizes() == at::IntArrayRef({0, 2048}));
}

TEST(views_and_other_dtypes_are_taken) {
  const auto engine = make_engine(model());
  const auto input = batch(3);
  const auto logits = engine->forward(input);
  const auto channels_last = input.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(swsl::relative_error(engine->forward(channels_last), logits) <= 1e-6);
  CHECK(swsl::relative_error(engine->forward(input.to(at::kDouble)), logits) <= 1e-6);
  CHECK(swsl::relative_error(engine->forward(batch(6).slice(0, 0, 3)), logits) <= 1e-6);
}

TEST(results_can_be_used_in_autograd) {
  const auto logits = make_engine(model())->forward(batch(2));
  CHECK(!logits.is_inference());
  auto weight = at::ones({10, 1}).requires_grad_();
  logits.matmul(weight).sum().backward();
  CHECK(at::equal(weight.grad().flatten(), logits.sum(0)) ||
        at::allclose(weight.grad().flatten(), logits.sum(0)));
}

TEST(each_dtype_keeps_its_tolerance) {
  const auto input = batch(5);
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto engine = make_engine(model(), {.dtype = dtype});
    CHECK(engine->forward(input).scalar_type() == at::kFloat &&
          engine->embed(input).scalar_type() == at::kFloat);
    CHECK(error_of(*engine, model(), input) <=
          model().metadata().golden.tolerances.at(swsl::dtype_name(dtype)));
    CHECK_EQ(engine->info().dtype, swsl::dtype_name(dtype));
    CHECK(engine->info().golden.passed() && !engine->info().reason.empty());
  }
}

TEST(faulty_arguments_are_named) {
  const auto engine = make_engine(model());
  CHECK_THROWS(std::invalid_argument,
               "batch: expected a floating-point tensor N×3×height×width, got Float 3 64 64",
               engine->forward(batch(1)[0]));
  CHECK_THROWS(std::invalid_argument, "got Byte", engine->forward(batch(1).to(at::kByte)));
  CHECK_THROWS(std::invalid_argument, "threads: expected 0 or more, got -1",
               make_engine(model(), {.threads = -1}));
  CHECK_THROWS(std::invalid_argument, "max_batch: expected 1 or more, got 0",
               make_engine(model(), {.max_batch = 0}));
  CHECK_THROWS(std::invalid_argument, "dtype: expected float32, bfloat16 or float16, got Int",
               make_engine(model(), {.dtype = at::kInt}));
  CHECK_THROWS(std::invalid_argument, "got \"int8\"", swsl::parse_dtype("int8"));
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cpu:0"})
    CHECK_THROWS(std::invalid_argument, "device: expected \"cpu\", \"cuda\", \"cuda:N\" or \"auto\"",
                 swsl::parse_device(name));
  CHECK_THROWS(std::invalid_argument, "device: \"cuda:99\" is not here", swsl::parse_device("cuda:99"));
}

TEST(a_module_that_fails_its_golden_check_is_refused) {
  const auto wrong = swsl::FrozenModel::load(data("wrong_golden.pt"));
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf})
    CHECK_THROWS(swsl::ModelError, "wrong_golden.pt: golden check failed in float32 on cpu: features off by",
                 make_engine(wrong, {.dtype = dtype}));
}

TEST(threads_are_the_engines_own) {
  const int before = at::get_num_threads();
  const auto engine = make_engine(model(), {.threads = before + 1});
  CHECK_EQ(engine->info().threads, before + 1);
  engine->forward(batch(2));
  CHECK_EQ(at::get_num_threads(), before);
  int elsewhere = 0;
  std::thread([&] { elsewhere = at::get_num_threads(); }).join();
  CHECK_EQ(elsewhere, before);
}

TEST(a_forked_process_is_told_to_make_its_own) {
  const auto engine = make_engine(model());
  const auto child = fork();
  if (child == 0) {
    int code = 1;
    try {
      engine->forward(batch(1));
    } catch (const std::runtime_error& error) {
      code = std::string(error.what()).find("before the process forked") == std::string::npos ? 2 : 0;
    }
    _exit(code);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

TEST(a_forked_process_can_destroy_what_it_has_of_its_parents) {
  for (const auto dtype : {at::kFloat, at::kHalf}) {
    auto engine = make_engine(model(), {.dtype = dtype, .threads = 2});
    engine->forward(batch(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // so that its threads wait for work
    const auto child = fork();
    if (child == 0) {
      alarm(60);  // which ends a child that hangs
      engine.reset();
      _exit(0);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
}

TEST(a_forked_process_makes_and_uses_an_engine_of_its_own) {
  at::set_num_threads(2);
  at::randn({500, 500}).matmul(at::randn({500, 500}));  // OpenMP has threads now, which the child lacks
  for (const auto dtype : {at::kFloat, at::kHalf}) {
    const auto input = batch(5);
    const auto expected = make_engine(model(), {.dtype = dtype})->forward(input);
    const auto child = fork();
    if (child == 0) {
      alarm(60);  // which ends a child that hangs
      const auto own = swsl::FrozenModel::load(data("tiny.pt"));
      const auto found = make_engine(own, {.dtype = dtype})->forward(input);
      _exit(std::equal(found.data_ptr<float>(), found.data_ptr<float>() + found.numel(),
                       expected.data_ptr<float>())
                ? 0
                : 1);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
}
