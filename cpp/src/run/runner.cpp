#include <swsl/runner.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <ATen/ATen.h>
#include <torch/version.h>

#include "engine/batch_check.h"
#include "run/cores.h"
#if SWSL_CUDA_KERNELS
#include "libtorch/cuda/batch/cuda_batch.h"
#include "libtorch/cuda/nvjpeg_decoder.h"
#endif
#include "image/plain_jpeg.h"
#include "run/runner_state.h"

namespace swsl {
namespace {

int core_count(const RunnerOptions& options) { return options.cores ? options.cores : available_cores(); }
int thread_count(const RunnerOptions& options) {
  return options.threads ? options.threads : core_count(options);
}

int default_batch_size(const at::Device& device) { return device.is_cpu() ? 16 : 64; }

EngineOptions engine_options(const RunnerOptions& options) {
  const auto not_negative = [](const char* name, int value) {
    if (value < 0)
      throw std::invalid_argument(std::string(name) + ": expected 0 or more, got " + std::to_string(value));
  };
  not_negative("cores", options.cores);
  not_negative("threads", options.threads);
  not_negative("batch_size", options.batch_size);
  if (options.cores > 0 && options.threads > options.cores)
    throw std::invalid_argument("threads: expected at most cores, " + std::to_string(options.cores) +
                                ", got " + std::to_string(options.threads));
  EngineOptions out;
  out.device = parse_device(options.device);
  out.tf32 = options.dtype == "tf32";
  if (out.tf32 && out.device.is_cpu())
    throw std::invalid_argument("dtype: expected float32, bfloat16, float16 or auto on " + options.device +
                                ", got \"tf32\", which only CUDA computes");
  out.dtype = out.tf32 ? at::kFloat : parse_dtype(options.dtype);
  out.threads = thread_count(options);
  out.max_batch = options.batch_size ? options.batch_size : default_batch_size(out.device);
  return out;
}

DecodeOptions decode_options(const PreprocessSpec& spec, const RunnerOptions& options) {
  DecodeOptions out{.exif_orientation = options.exif_orientation, .max_pixels = options.max_pixels};
  if (options.dct_scaling)
    out.dct_scaling = std::max(1, static_cast<int>(std::max(spec.height, spec.width) / spec.crop_pct));
  return out;
}

std::shared_ptr<const Nvjpeg> make_nvjpeg(const RunnerOptions& options) {
  if (!options.nvjpeg) return nullptr;
  if (options.dct_scaling)
    throw std::invalid_argument(
        "nvjpeg: does not go together with dct_scaling, which is libjpeg's: leave one of them out");
  const at::Device device = parse_device(options.device);
  if (device.is_cpu())
    throw std::invalid_argument("nvjpeg: decodes on a CUDA device, got device \"" + options.device +
                                (options.device == "auto" ? "\", and no CUDA device is here" : "\"") +
                                ": leave the option out, or take \"cuda\"");
  if (!decodes_jpeg())
    throw std::invalid_argument(
        "nvjpeg: swsl was built without libjpeg, which looks into the files first: install the headers of "
        "libjpeg-turbo (Debian: libjpeg62-turbo-dev) and build swsl again");
#if SWSL_CUDA_KERNELS
  return std::make_shared<Nvjpeg>(device);
#else
  throw std::invalid_argument(
      "nvjpeg: swsl was built without CUDA kernels, which make batches of what it decodes: install nvcc of "
      "torch's CUDA version and PyPI's nvidia-nvjpeg, and build swsl again");
#endif
}

EngineInfo complete(EngineInfo info, const RunnerOptions& options, [[maybe_unused]] const Nvjpeg* nvjpeg) {
  const bool cpu = info.device == "cpu";
  if (!cpu)
    info.reason +=
        SWSL_CUDA_KERNELS ? "; batches made of decoded images by the GPU" : "; images prepared by the CPU";
#if SWSL_CUDA_KERNELS
  if (nvjpeg != nullptr)
    info.reason += std::string("; JPEGs decoded by nvJPEG, inexactly, ") + nvjpeg->decoded_by();
#endif
  if (options.device == "auto")
    info.reason += cpu ? "; device auto: no CUDA device is here" : "; device auto: the first CUDA device";
  return info;
}

}  // namespace

std::string name_of(const ImageSource& source) {
  if (const auto* path = std::get_if<std::string>(&source)) return *path;
  if (const auto* encoded = std::get_if<EncodedImage>(&source)) return encoded->name;
  return "image pixels";
}

Runner::State::State(const FrozenModel& model, const RunnerOptions& options)
    : metadata(model.metadata()),
      batch_size(engine_options(options).max_batch),
      preprocessor(metadata.preprocess),
      nvjpeg(make_nvjpeg(options)),
      engine(make_engine(model, engine_options(options))),
      info(complete(engine->info(), options, nvjpeg.get())),
      cores(core_count(options)),
      decoders(decode_options(metadata.preprocess, options)),
      decode_other(options.decode_other),
      workers(thread_count(options)) {}

std::shared_ptr<Runner::State> Runner::State::make(const FrozenModel& model, const RunnerOptions& options) {
  return {new State(model, options), [](State* state) {
            if (getpid() == state->process_) delete state;
          }};
}

void Runner::State::check_own_process() const { check_process(process_, "its threads stayed behind"); }

std::string Runner::State::with_pixels(const ImageSource& source, const std::function<void()>& when_read,
                                       const std::function<void(const ImageView&)>& use,
                                       const std::function<bool(const EncodedImage&, int, int)>& use_jpeg) {
  try {
    bool read = false;
    const auto read_once = [&] {
      if (!std::exchange(read, true) && when_read) when_read();
    };
    try {
      decode(source, read_once, use, use_jpeg);
    } catch (const UnsupportedFormat&) {
      if (!decode_other) throw;
      read_once();
      const Image image = decode_other(source);
      if (image.pixels.empty()) throw;
      use(image.view());
    }
    return "";
  } catch (const ImageError& error) {
    return error.what();
  } catch (const std::invalid_argument& error) {  // of the preprocessor, about this image
    return name_of(source) + ": " + error.what();
  }
}

void Runner::State::decode(const ImageSource& source, const std::function<void()>& when_read,
                           const std::function<void(const ImageView&)>& use,
                           const std::function<bool(const EncodedImage&, int, int)>& use_jpeg) {
  if (const auto* pixels = std::get_if<ImageView>(&source)) {
    when_read();
    use(*pixels);
    return;
  }
  decoders.with([&](ImageDecoder& decoder) {
    if (const auto* path = std::get_if<std::string>(&source)) {
      decoder.open_file(*path, when_read);
    } else {
      when_read();
      const auto& encoded = std::get<EncodedImage>(source);
      decoder.open(encoded.data, encoded.size, encoded.name);
    }
    if (use_jpeg) {
      const auto jpeg = plain_jpeg(decoder);
      if (!jpeg.empty() &&
          use_jpeg({jpeg.data(), jpeg.size(), name_of(source)}, decoder.height(), decoder.width()))
        return;
    }
    use(decoder.decode(preprocessor.source_rectangle(decoder.height(), decoder.width())));
  });
}

std::string Runner::State::preprocess(const ImageSource& source, float* output,
                                      const std::function<void()>& when_read) {
  return with_pixels(source, when_read, [&](const ImageView& pixels) { preprocessor(pixels, output); });
}

std::string Runner::State::prepare(BatchBuffer& buffer, const ImageSource& image, std::size_t place) {
  CoreBudget::Hold core;
  return buffer.prepare(image, place, [&] { core = cores.for_image(); });
}

at::Tensor Runner::State::forward(const at::Tensor& batch) {
  const auto held = cores.for_forward(info.threads);
  return engine->forward(batch);
}

at::Tensor Runner::State::embed(const at::Tensor& batch) {
  const auto held = cores.for_forward(info.threads);
  return engine->embed(batch);
}

bool Runner::State::prepares_on_gpu() const { return SWSL_CUDA_KERNELS && info.device != "cpu"; }

std::unique_ptr<BatchBuffer> Runner::State::make_buffer(int size) {
  const auto& spec = preprocessor.spec();
#if SWSL_CUDA_KERNELS
  if (prepares_on_gpu())
    return make_cuda_batch(
        spec, at::Device(info.device), info.dtype == "tf32" ? at::kFloat : parse_dtype(info.dtype),
        Layout::channels_last, size, [this](const auto&... arguments) { return with_pixels(arguments...); },
        nvjpeg);
#endif
  return std::make_unique<TensorBatch>(std::vector<std::int64_t>{3, spec.height, spec.width}, size,
                                       /*pinned=*/info.device != "cpu",
                                       [this](const auto&... arguments) { return preprocess(arguments...); });
}

std::unique_ptr<BatchBuffer> Runner::State::take_buffer() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto buffer = std::move(idle_.back());
      idle_.pop_back();
      return buffer;
    }
  }
  return make_buffer(batch_size);
}

// One call of `compute` per batch_size images; images that failed take no part.
template <typename Compute>
BatchResult Runner::State::run(std::span<const ImageSource> images, BatchBuffer& buffer,
                               const Compute& compute) {
  BatchResult result{{}, std::vector<std::string>(images.size())};
  const auto rows_on_cpu = [&](const at::Tensor& batch) { return compute(batch).to(at::kCPU).contiguous(); };
  if (images.empty()) result.rows = buffer.take({}, rows_on_cpu);
  for (std::size_t begin = 0; begin < images.size(); begin += batch_size) {
    const std::size_t count = std::min<std::size_t>(batch_size, images.size() - begin);
    workers.for_each(
        count, [&](std::size_t i) { result.errors[begin + i] = prepare(buffer, images[begin + i], i); });
    std::vector<std::size_t> good;
    for (std::size_t i = 0; i < count; ++i)
      if (result.errors[begin + i].empty()) good.push_back(i);
    const at::Tensor rows = buffer.take(good, rows_on_cpu);
    // Copied by hand: LibTorch's operators could wait for threads that a fork has left behind
    // (fresh_thread.h).
    const auto columns = static_cast<std::size_t>(c10::multiply_integers(rows.sizes().slice(1)));
    if (!result.rows.defined()) {
      auto shape = rows.sizes().vec();
      shape.front() = static_cast<std::int64_t>(images.size());
      result.rows = at::empty(shape, at::kFloat);
      std::fill_n(result.rows.data_ptr<float>(), images.size() * columns,
                  std::numeric_limits<float>::quiet_NaN());
    }
    const float* from = rows.const_data_ptr<float>();
    float* to = result.rows.data_ptr<float>() + begin * columns;
    for (std::size_t i = 0; i < good.size(); ++i)
      std::copy_n(from + i * columns, columns, to + good[i] * columns);
  }
  return result;
}

// A buffer whose batch has failed is dropped.
template <typename Compute>
BatchResult Runner::State::run(std::span<const ImageSource> images, const Compute& compute) {
  check_own_process();
  auto buffer = take_buffer();
  auto result = run(images, *buffer, compute);
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(buffer));
  return result;
}

// In the way in which the engine's batches are made, so that a GPU's pixels can be looked at.
BatchResult Runner::State::preprocess(std::span<const ImageSource> images) {
  check_own_process();
  const auto& spec = preprocessor.spec();
#if SWSL_CUDA_KERNELS
  if (prepares_on_gpu()) {
    const auto buffer = make_cuda_batch(
        spec, at::Device(info.device), at::kFloat, Layout::planar, batch_size,
        [this](const auto&... arguments) { return with_pixels(arguments...); }, nvjpeg);
    return run(images, *buffer, [](const at::Tensor& batch) { return batch; });
  }
#endif
  BatchResult result{
      at::empty({static_cast<std::int64_t>(images.size()), 3, spec.height, spec.width}, at::kFloat),
      std::vector<std::string>(images.size())};
  float* rows = result.rows.data_ptr<float>();
  const std::size_t row_size = std::size_t{3} * spec.height * spec.width;
  workers.for_each(images.size(), [&](std::size_t i) {
    float* row = rows + i * row_size;
    CoreBudget::Hold core;
    result.errors[i] = preprocess(images[i], row, [&] { core = cores.for_image(); });
    if (!result.errors[i].empty()) std::fill_n(row, row_size, std::numeric_limits<float>::quiet_NaN());
  });
  return result;
}

std::vector<Prediction> Runner::State::predictions(const at::Tensor& logits_row, int top_k) const {
  const auto& labels = metadata.labels;
  const auto count = static_cast<std::int64_t>(labels.size());
  if (top_k < 1) throw std::invalid_argument("top_k: expected 1 or more, got " + std::to_string(top_k));
  if (logits_row.dim() != 1 || logits_row.size(0) != count)
    throw std::invalid_argument("logits_row: expected " + std::to_string(count) +
                                " logits of one image, got a tensor of " +
                                std::to_string(logits_row.numel()) + " elements in " +
                                std::to_string(logits_row.dim()) + " dimensions");
  const auto row = logits_row.to(at::kCPU, at::kFloat).contiguous();
  const float* logits = row.const_data_ptr<float>();
  if (!std::all_of(logits, logits + count, [](float x) { return std::isfinite(x); }))
    throw std::runtime_error("the logits are not all finite (dtype " + engine->info().dtype +
                             "); use dtype float32");

  const double largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += std::exp(logits[i] - largest);
  std::vector<std::int64_t> order(labels.size());
  std::iota(order.begin(), order.end(), 0);
  const auto taken = order.begin() + std::min<std::int64_t>(top_k, count);
  std::partial_sort(order.begin(), taken, order.end(), [logits](auto a, auto b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  std::vector<Prediction> out;
  for (auto it = order.begin(); it != taken; ++it)
    out.push_back({labels[static_cast<std::size_t>(*it)], *it,
                   static_cast<float>(std::exp(logits[*it] - largest) / sum)});
  return out;
}

Runner::Runner(const std::string& model_path, const RunnerOptions& options)
    : state_(State::make(FrozenModel::load(model_path), options)) {
#ifdef __GLIBC__
  malloc_trim(
      0);  // the engine has packed the weights; the module's own are freed, and glibc would keep their memory
#endif
}
Runner::~Runner() = default;
Runner::Runner(Runner&&) noexcept = default;
Runner& Runner::operator=(Runner&&) noexcept = default;

std::vector<Prediction> Runner::predictions(const at::Tensor& logits_row, int top_k) const {
  return state_->predictions(logits_row, top_k);
}

std::vector<Result> Runner::classify(std::span<const ImageSource> images, int top_k) const {
  if (top_k < 1) throw std::invalid_argument("top_k: expected 1 or more, got " + std::to_string(top_k));
  std::vector<Result> results;
  for (std::size_t begin = 0; begin < images.size(); begin += state_->batch_size) {
    const auto part = images.subspan(begin, std::min<std::size_t>(state_->batch_size, images.size() - begin));
    const auto batch = logits(part);
    for (std::size_t i = 0; i < part.size(); ++i) {
      Result result{{}, batch.errors[i]};
      try {
        if (result.ok()) result.predictions = predictions(batch.rows[static_cast<std::int64_t>(i)], top_k);
      } catch (const std::runtime_error& error) {
        result.error = name_of(part[i]) + ": " + error.what();
      }
      results.push_back(std::move(result));
    }
  }
  return results;
}

std::vector<Prediction> Runner::classify_file(const std::string& path, int top_k) const {
  const ImageSource source = path;
  auto result = classify({&source, 1}, top_k).front();
  if (!result.ok()) throw ImageError(result.error);
  return std::move(result.predictions);
}

BatchResult Runner::logits(std::span<const ImageSource> images) const {
  return state_->run(images, [this](const at::Tensor& batch) { return state_->forward(batch); });
}

BatchResult Runner::embed(std::span<const ImageSource> images) const {
  return state_->run(images, [this](const at::Tensor& batch) { return state_->embed(batch); });
}

std::vector<LayerTime> Runner::profile(const at::Tensor& batch) const {
  const auto held = state_->cores.for_forward(state_->info.threads);
  return state_->engine->profile(batch);
}

BatchResult Runner::preprocess(std::span<const ImageSource> images) const {
  return state_->preprocess(images);
}

at::Tensor Runner::forward(const at::Tensor& batch) const {
  state_->check_own_process();
  return state_->forward(batch);
}

const Metadata& Runner::metadata() const { return state_->metadata; }
const EngineInfo& Runner::info() const { return state_->info; }
int Runner::batch_size() const { return state_->batch_size; }

BuildInfo build_info() {
  BuildInfo info;
  info.swsl_version = SWSL_VERSION;
  info.torch_version = TORCH_VERSION;
  info.jpeg = decodes_jpeg();
  info.png = decodes_png();
  info.cuda = SWSL_LINKS_CUDA;
  info.cuda_kernels = SWSL_CUDA_KERNELS;
  info.nvjpeg = SWSL_NVJPEG;
  return info;
}

}  // namespace swsl
