#include "run/pipeline.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace swsl {

// Besides the batches in the forward pass one is being prepared, and of one the results are being taken.
Pipeline::Pipeline(PipelineOptions options)
    : options_(std::move(options)),
      batch_size_(static_cast<std::size_t>(options_.batch_size)),
      ring_(static_cast<std::size_t>(options_.at_once) + 2),
      items_(ring_.size() * batch_size_) {
  try {
    for (int i = 0; i < options_.workers; ++i) threads_.emplace_back([this] { prepare_images(); });
    for (int i = 0; i < options_.at_once; ++i) threads_.emplace_back([this] { compute_batches(); });
  } catch (...) {  // no more threads to be had
    stop_and_join();
    throw;
  }
}

Pipeline::~Pipeline() { stop_and_join(); }

void Pipeline::stop_and_join() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  pushed_more_.notify_all();
  batch_ready_.notify_all();
  turn_.notify_all();
  for (auto& thread : threads_) thread.join();
}

std::size_t Pipeline::under_way() const {
  const std::lock_guard lock(mutex_);
  return pushed_ - popped_;
}

void Pipeline::push(ImageSource image) {
  {
    std::unique_lock lock(mutex_);
    if (finished_) throw std::invalid_argument("push: the stream's end was declared by finish");
    room_.wait(lock, [this] { return pushed_ - popped_ < capacity() || error_; });
    if (pushed_ - popped_ == capacity()) std::rethrow_exception(error_);  // there will be no room
    items_[pushed_ % capacity()] = {std::move(image), {}, {}, {}};
    ++pushed_;
    last_push_ = Clock::now();
  }
  pushed_more_.notify_one();
}

void Pipeline::finish() {
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
  }
  batch_ready_.notify_all();
  result_ready_.notify_all();
}

std::optional<Pipeline::Item> Pipeline::pop() {
  std::optional<Item> item;
  {
    std::unique_lock lock(mutex_);
    result_ready_.wait(lock, [this] { return pop_is_due(); });
    if (popped_ == computed_) {
      if (error_) std::rethrow_exception(error_);
      return {};
    }
    item = std::exchange(items_[popped_ % capacity()], {});
    ++popped_;
  }
  room_.notify_one();
  return item;
}

bool Pipeline::wait_for(std::chrono::milliseconds time) const {
  std::unique_lock lock(mutex_);
  return result_ready_.wait_for(lock, time, [this] { return pop_is_due(); });
}

// Called in a catch block.
void Pipeline::fail() {
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
    stop_ = true;
  }
  for (auto* changed : {&room_, &pushed_more_, &batch_ready_, &turn_, &result_ready_}) changed->notify_all();
}

void Pipeline::prepare_images() {
  try {
    std::unique_lock lock(mutex_);
    while (true) {
      pushed_more_.wait(lock, [this] { return stop_ || image_can_be_taken(); });
      if (stop_) return;
      if (begins_a_batch()) {
        Batch& next = slot(begun_++);
        next.begin = taken_;
        next.count = next.prepared = 0;
      }
      Batch& mine = slot(begun_ - 1);
      if (!mine.buffer) mine.buffer = options_.make_buffer();
      const std::size_t place = mine.count++;
      Item& item = items_[taken_++ % capacity()];
      lock.unlock();
      auto prepared = options_.prepare(*mine.buffer, item.image, place);
      item.error = std::move(prepared.error);
      item.spent.decode = prepared.seconds;
      lock.lock();
      ++mine.prepared;
      if (mine.prepared == mine.count && next_starts_at()) batch_ready_.notify_one();
    }
  } catch (...) {
    fail();
  }
}

// When the next batch may be started; never, as long as an image of it is missing.
std::optional<Pipeline::Clock::time_point> Pipeline::next_starts_at() {
  if (started_ == begun_) return {};
  const Batch& next = slot(started_);
  if (next.prepared < next.count) return {};
  if (next.count == batch_size_ || (finished_ && taken_ == pushed_)) return Clock::time_point::min();
  if (taken_ < pushed_ || !options_.max_wait) return {};
  return last_push_ + *options_.max_wait;
}

void Pipeline::compute_batches() {
  try {
    std::unique_lock lock(mutex_);
    while (true) {
      if (stop_ || (finished_ && taken_ == pushed_ && started_ == begun_)) return;
      const auto start = next_starts_at();
      if (!start || *start > Clock::now()) {
        if (start)
          batch_ready_.wait_until(lock, *start);
        else
          batch_ready_.wait(lock);
        continue;
      }
      Batch& mine = slot(started_++);
      batch_ready_.notify_one();  // the next one may be waiting already
      lock.unlock();
      std::exception_ptr failure;
      try {
        compute_batch(mine);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      turn_.wait(lock, [&] { return stop_ || computed_ == mine.begin; });
      if (computed_ != mine.begin) return;  // a batch before this one has failed
      if (failure) std::rethrow_exception(failure);
      computed_ += mine.count;
      ++computed_batches_;
      turn_.notify_all();
      result_ready_.notify_all();
      pushed_more_.notify_all();  // there is a buffer again
    }
  } catch (...) {
    fail();
  }
}

void Pipeline::compute_batch(const Batch& batch) {
  std::vector<Item*> good;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < batch.count; ++i) {
    Item& item = items_[(batch.begin + i) % capacity()];
    if (!item.error.empty()) continue;
    good.push_back(&item);
    places.push_back(i);
  }
  if (good.empty()) return;
  const auto columns = static_cast<std::size_t>(options_.columns);
  std::vector<float> rows(good.size() * columns);
  double seconds = 0;
  batch.buffer->take(places,
                     [&](const swsl::Batch& images) { seconds = options_.compute(images, rows.data()); });
  for (std::size_t i = 0; i < good.size(); ++i) {
    good[i]->spent.forward = seconds;
    good[i]->spent.batch = static_cast<int>(good.size());
    good[i]->row.assign(rows.begin() + i * columns, rows.begin() + (i + 1) * columns);
  }
}

}  // namespace swsl
