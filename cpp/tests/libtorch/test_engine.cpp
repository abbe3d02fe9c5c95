// LibTorch's own answers beside those of the core's engine and of TorchScript's.
#include <swsl/engine.h>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "check.h"
#include "own_outputs.h"

using swsl::ElementType;
using swsl::make_engine;

namespace {

at::Tensor batch(std::int64_t count, std::int64_t height = 64, std::int64_t width = 64) {
  const auto images = make_images(count, height, width);
  return at::tensor(images.numbers).view({count, 3, height, width});
}

at::Tensor forward(swsl::Engine& engine, const at::Tensor& batch) {
  return swsl::libtorch::forward(engine, batch);
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return swsl::relative_error(numbers(a), numbers(b));
}

}  // namespace

TEST(any_batch_and_size_gives_the_modules_own_answers) {
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype, .max_batch = 4});
    const double tolerance = dtype == ElementType::float32 ? 1e-5 : 1e-2;
    for (const int count : {1, 2, 3, 4, 5, 7, 8, 13})
      CHECK(error_of(*engine, tiny(), batch(count)) <= tolerance);
    CHECK(error_of(*engine, tiny(), batch(2, 96, 130)) <= tolerance);
  }
}

TEST(torchscript_runs_what_the_core_has_no_kernels_for) {
  const auto half = make_engine(tiny(), {.dtype = ElementType::float16});
  CHECK_EQ(half->info().name, "torchscript");
  CHECK(half->info().reason.find("float32 and bfloat16 only") != std::string::npos);
  CHECK_EQ(half->info().classes, 10);
  CHECK_EQ(half->info().features, 2048);
  const auto silu = swsl::FrozenModel::load(data("silu.pt"));
  const auto engine = make_engine(silu);
  CHECK_EQ(engine->info().name, "torchscript");
  CHECK(engine->info().reason.find("has no silu") != std::string::npos);
  CHECK(error_of(*engine, silu, batch(2)) <= 1e-5);
  CHECK(engine->profile(make_images(1).batch).empty());
}

TEST(plain_batches_give_what_tensors_give) {
  const auto images = make_images(3);
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype});
    CHECK(forward(*engine, images.batch) == numbers(forward(*engine, batch(3))));
    CHECK(embed(*engine, images.batch) == numbers(swsl::libtorch::embed(*engine, batch(3))));
  }
}

TEST(both_outputs_are_those_of_each) {
  const auto images = make_images(7);
  for (const auto* name : {"tiny.pt", "silu.pt"}) {  // of silu.pt, LibTorch computes both
    const auto engine = make_engine(swsl::FrozenModel::load(data(name)), {.max_batch = 4});
    std::vector<float> logits(7 * engine->info().classes), features(7 * engine->info().features);
    engine->run(images.batch, logits.data(), features.data());
    CHECK(logits == forward(*engine, images.batch) && features == embed(*engine, images.batch));
    engine->run(make_images(0).batch, logits.data(), features.data());
  }
}

TEST(an_empty_batch_gives_no_rows) {
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype});
    CHECK(forward(*engine, batch(0)).sizes() == at::IntArrayRef({0, 10}));
    CHECK(swsl::libtorch::embed(*engine, batch(0)).sizes() == at::IntArrayRef({0, 2048}));
  }
}

TEST(views_and_other_dtypes_are_taken) {
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype});
    const auto input = batch(3);
    const auto logits = forward(*engine, input);
    const double tolerance = dtype == ElementType::float32 ? 1e-6 : 1e-2;
    CHECK(difference(forward(*engine, input.contiguous(at::MemoryFormat::ChannelsLast)), logits) <=
          tolerance);
    CHECK(difference(forward(*engine, input.to(at::kDouble)), logits) <= tolerance);
    CHECK(difference(forward(*engine, input.to(at::kHalf)), logits) <= tolerance);  // exact: few bits are set
    CHECK(difference(forward(*engine, batch(6).slice(0, 0, 3)), logits) <= tolerance);
    CHECK(logits.scalar_type() == at::kFloat);
  }
}

TEST(results_can_be_used_in_autograd) {
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto logits = forward(*make_engine(tiny(), {.dtype = dtype}), batch(2));
    CHECK(!logits.is_inference());
    auto weight = at::ones({10, 1}).requires_grad_();
    logits.matmul(weight).sum().backward();
    CHECK(at::allclose(weight.grad().flatten(), logits.sum(0)));
  }
}

TEST(each_dtype_keeps_its_tolerance) {
  const auto input = batch(5);
  for (const auto dtype : {ElementType::float32, ElementType::bfloat16, ElementType::float16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype});
    CHECK(error_of(*engine, tiny(), input) <=
          tiny().metadata().golden.tolerances.at(swsl::dtype_name(dtype)));
    CHECK_EQ(engine->info().dtype, swsl::dtype_name(dtype));
    CHECK(engine->info().golden.passed() && !engine->info().reason.empty());
  }
}

TEST(faulty_arguments_are_named) {
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto engine = make_engine(tiny(), {.dtype = dtype});
    CHECK_THROWS(std::invalid_argument,
                 "batch: expected a floating-point tensor N×3×height×width, got Float 3 64 64",
                 forward(*engine, batch(1)[0]));
    CHECK_THROWS(std::invalid_argument, "got Byte", forward(*engine, batch(1).to(at::kByte)));
  }
  CHECK_THROWS(std::invalid_argument, "device: \"cuda:99\" is not here", swsl::parse_device("cuda:99"));
  CHECK_THROWS(swsl::ModelError,
               "unfrozen.pt: ", swsl::libtorch::load_module(swsl::FrozenModel::load(data("unfrozen.pt"))));
  CHECK_THROWS(swsl::ModelError, "tiny.pt2: its TorchScript is asked for, and LibTorch does not run",
               swsl::libtorch::load_module(swsl::FrozenModel::load(data("tiny.pt2"))));
}

TEST(a_module_that_fails_its_golden_check_is_refused) {
  const auto wrong = swsl::FrozenModel::load(data("wrong_golden.pt"));
  CHECK_THROWS(swsl::ModelError, "wrong_golden.pt: golden check failed in float32 on cpu: features off by",
               make_engine(wrong, {.dtype = ElementType::float16}));
}

TEST(rows_become_tensors_in_the_same_memory) {
  const swsl::Runner runner(data("tiny.pt"));
  const std::vector<swsl::ImageSource> images = {data("photo.jpg"), data("photo.jpg")};
  auto result = runner.logits(images);
  const auto* memory = result.rows.data();
  const auto tensor = swsl::libtorch::rows(std::move(result));
  CHECK(tensor.sizes() == at::IntArrayRef({2, 10}) && tensor.data_ptr<float>() == memory);
  CHECK(at::equal(tensor[0], tensor[1]));
}

TEST(threads_are_the_engines_own) {
  const int before = at::get_num_threads();
  const auto engine = make_engine(tiny(), {.dtype = ElementType::float16, .threads = before + 1});
  CHECK_EQ(engine->info().threads, before + 1);
  forward(*engine, batch(2));
  CHECK_EQ(at::get_num_threads(), before);
  int elsewhere = 0;
  std::thread([&] { elsewhere = at::get_num_threads(); }).join();
  CHECK_EQ(elsewhere, before);
}

TEST(a_forked_process_can_destroy_what_it_has_of_its_parents) {
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    auto engine = make_engine(tiny(), {.dtype = dtype, .threads = 2});
    forward(*engine, batch(1));
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
  for (const auto dtype : {ElementType::float32, ElementType::float16}) {
    const auto input = batch(5);
    const auto expected = forward(*make_engine(tiny(), {.dtype = dtype}), input);
    const auto child = fork();
    if (child == 0) {
      alarm(60);  // which ends a child that hangs
      const auto own = swsl::FrozenModel::load(data("tiny.pt"));
      const auto found = forward(*make_engine(own, {.dtype = dtype}), input);
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
