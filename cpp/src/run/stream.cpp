#include <swsl/stream.h>

#include <algorithm>
#include <stdexcept>

#include "run/pipeline.h"
#include "run/runner_state.h"

namespace swsl {
namespace {

const StreamOptions& checked(const StreamOptions& options) {
  const auto at_least = [](const char* name, int value, int least) {
    if (value < least)
      throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(least) +
                                  " or more, got " + std::to_string(value));
  };
  at_least("batch_size", options.batch_size, 0);
  at_least("workers", options.workers, 0);
  if (options.max_wait && options.max_wait->count() < 0)
    throw std::invalid_argument("max_wait: expected 0 or more, got " +
                                std::to_string(options.max_wait->count()) + " µs");
  return options;
}

}  // namespace

Stream::Stream(const Runner& runner, const StreamOptions& options)
    : options_(checked(options)), runner_(runner.state_) {
  auto& state = *runner_;
  state.check_own_process();
  PipelineOptions pipeline;
  pipeline.batch_size = options.batch_size ? options.batch_size : state.batch_size;
  pipeline.workers = options.workers ? options.workers : state.cores.total();
  pipeline.at_once = state.engine->info().at_once;
  constexpr std::chrono::microseconds longest = std::chrono::hours(24 * 365);  // clocks can count to its end
  if (options.max_wait) pipeline.max_wait = std::min(*options.max_wait, longest);
  pipeline.make_buffer = [&state, size = pipeline.batch_size] { return state.make_buffer(size); };
  pipeline.prepare = [&state](BatchBuffer& buffer, const ImageSource& image, std::size_t place) {
    return state.prepare(buffer, image, place);
  };
  const Wanted wanted(options.outputs, options.top_k);
  pipeline.columns = state.columns(wanted);
  pipeline.compute = [&state, wanted](const Batch& batch, float* rows) {
    return state.compute(batch, wanted, rows);
  };
  pipeline_ = std::make_unique<Pipeline>(std::move(pipeline));
}

Stream::~Stream() {
  if (getpid() != process_)
    (void)pipeline_.release();  // its threads did not come along through fork, and nothing can join them
}

Pipeline& Stream::pipeline() const {
  runner_->check_own_process();
  return *pipeline_;
}

std::size_t Stream::under_way() const { return pipeline().under_way(); }
std::size_t Stream::capacity() const { return pipeline_->capacity(); }
void Stream::push(ImageSource image) { pipeline().push(std::move(image)); }
void Stream::finish() { pipeline().finish(); }
bool Stream::wait_for(std::chrono::milliseconds time) const { return pipeline().wait_for(time); }

std::optional<Result> Stream::pop(Spent* spent) {
  auto item = pipeline().pop();
  if (!item) return {};
  if (spent) *spent = item->spent;
  return runner_->result(item->image, std::move(item->error), item->row, {options_.outputs, options_.top_k});
}

}  // namespace swsl
