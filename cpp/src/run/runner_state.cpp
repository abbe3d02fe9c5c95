#include "run/runner_state.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

#include "engine/backend.h"
#include "engine/batch_check.h"
#include "image/plain_jpeg.h"

namespace swsl {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

int core_count(const RunnerOptions& options) { return options.cores ? options.cores : available_cores(); }
int thread_count(const RunnerOptions& options) {
  return options.threads ? options.threads : core_count(options);
}

int default_batch_size(const std::string& device) { return device == "cpu" ? 16 : 64; }

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
  if (out.tf32 && out.device == "cpu")
    throw std::invalid_argument("dtype: expected float32, bfloat16, float16 or auto on " + options.device +
                                ", got \"tf32\", which only CUDA computes");
  out.dtype = out.tf32 ? ElementType::float32 : parse_dtype(options.dtype);
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

std::pair<std::shared_ptr<const Nvjpeg>, std::string> make_nvjpeg(const RunnerOptions& options) {
  if (!options.nvjpeg) return {};
  if (options.dct_scaling)
    throw std::invalid_argument(
        "nvjpeg: does not go together with dct_scaling, which is libjpeg's: leave one of them out");
  const std::string device = parse_device(options.device);
  if (device == "cpu")
    throw std::invalid_argument("nvjpeg: decodes on a CUDA device, got device \"" + options.device +
                                (options.device == "auto" ? "\", and no CUDA device is here" : "\"") +
                                ": leave the option out, or take \"cuda\"");
  if (!decodes_jpeg())
    throw std::invalid_argument(
        "nvjpeg: swsl was built without libjpeg, which looks into the files first: install the headers of "
        "libjpeg-turbo (Debian: libjpeg62-turbo-dev) and build swsl again");
  return backend()->make_nvjpeg(device);
}

EngineInfo complete(EngineInfo info, const RunnerOptions& options, const std::string& decoded_by) {
  const bool cpu = info.device == "cpu";
  if (!cpu)
    info.reason += backend()->info().cuda_kernels ? "; batches made of decoded images by the GPU"
                                                  : "; images prepared by the CPU";
  if (!decoded_by.empty()) info.reason += "; JPEGs decoded by nvJPEG, inexactly, " + decoded_by;
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

Wanted::Wanted(std::span<const Output> outputs, int top) : top_k(top) {
  if (top_k < 1) throw std::invalid_argument("top_k: expected 1 or more, got " + std::to_string(top_k));
  if (outputs.empty())
    throw std::invalid_argument(
        "outputs: expected one or more of predictions, embedding and logits, got none");
  const auto among = [&](Output output) {
    return std::find(outputs.begin(), outputs.end(), output) != outputs.end();
  };
  predictions = among(Output::predictions);
  embedding = among(Output::embedding);
  logits = among(Output::logits);
}

Runner::State::State(const FrozenModel& model, const RunnerOptions& options)
    : metadata(model.metadata()),
      batch_size(engine_options(options).max_batch),
      preprocessor(metadata.preprocess),
      nvjpeg(make_nvjpeg(options)),
      engine(make_engine(model, engine_options(options))),
      info(complete(engine->info(), options, nvjpeg.second)),
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

Prepared Runner::State::prepare(BatchBuffer& buffer, const ImageSource& image, std::size_t place) {
  CoreBudget::Hold core;
  std::optional<Clock::time_point> begun;  // never of a file that cannot be read
  auto error = buffer.prepare(image, place, [&] {
    core = cores.for_image();
    begun = Clock::now();
  });
  return {std::move(error), begun ? seconds_since(*begun) : 0};
}

double Runner::State::compute(const Batch& batch, float* logits, float* features) {
  const auto held = cores.for_forward(info.threads);
  const auto begun = Clock::now();
  engine->run(batch, logits, features);
  return seconds_since(begun);
}

int Runner::State::columns(const Wanted& wanted) const {
  return (wanted.of_logits() ? info.classes : 0) + (wanted.embedding ? info.features : 0);
}

double Runner::State::compute(const Batch& batch, const Wanted& wanted, float* rows) {
  if (!wanted.embedding) return compute(batch, rows, nullptr);
  if (!wanted.of_logits()) return compute(batch, nullptr, rows);
  const auto count = static_cast<std::size_t>(batch.shape[0]);
  Floats logits(count * info.classes), features(count * info.features);
  const double seconds = compute(batch, logits.data(), features.data());
  for (std::size_t i = 0; i < count; ++i) {
    rows = std::copy_n(logits.data() + i * info.classes, info.classes, rows);
    rows = std::copy_n(features.data() + i * info.features, info.features, rows);
  }
  return seconds;
}

Result Runner::State::result(const ImageSource& image, std::string error, std::span<const float> row,
                             const Wanted& wanted) const {
  Result result;
  result.error = std::move(error);
  if (!result.ok()) return result;
  const auto logits = row.first(wanted.of_logits() ? info.classes : 0), rest = row.subspan(logits.size());
  try {
    if (wanted.predictions) result.predictions = predictions(logits, wanted.top_k);
  } catch (const std::runtime_error& not_finite) {
    result.error = name_of(image) + ": " + not_finite.what();
    return result;
  }
  if (wanted.logits) result.logits.assign(logits.begin(), logits.end());
  result.embedding.assign(rest.begin(), rest.end());
  return result;
}

std::unique_ptr<BatchBuffer> Runner::State::make_buffer(int size) {
  const bool narrow = info.dtype != "float32" && info.dtype != "tf32";
  return make_buffer(size, narrow ? *parse_dtype(info.dtype) : ElementType::float32, Layout::channels_last);
}

// The CPU prepares float32 in planes, whatever the engine computes in.
std::unique_ptr<BatchBuffer> Runner::State::make_buffer(int size, ElementType dtype, Layout layout) {
  if (info.device != "cpu")
    return backend()->make_batch_buffer(
        {preprocessor, info.device, dtype, layout, size,
         [this](const auto&... arguments) { return with_pixels(arguments...); }, nvjpeg.first});
  const auto& spec = preprocessor.spec();
  const std::size_t floats = std::size_t{3} * spec.height * spec.width * size;
  return std::make_unique<FloatBuffer>(
      spec.height, spec.width, std::shared_ptr<float>(new float[floats], std::default_delete<float[]>()),
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
BatchResult Runner::State::run(std::span<const ImageSource> images, std::vector<std::int64_t> row_shape,
                               BatchBuffer& buffer, const Compute& compute) {
  const auto columns = static_cast<std::size_t>(
      std::accumulate(row_shape.begin(), row_shape.end(), std::int64_t{1}, std::multiplies<>()));
  BatchResult result{Floats(images.size() * columns), std::move(row_shape),
                     std::vector<std::string>(images.size())};
  result.shape.insert(result.shape.begin(), static_cast<std::int64_t>(images.size()));
  std::vector<float> rows;
  for (std::size_t begin = 0; begin < images.size(); begin += batch_size) {
    const std::size_t count = std::min<std::size_t>(batch_size, images.size() - begin);
    workers.for_each(count, [&](std::size_t i) {
      result.errors[begin + i] = prepare(buffer, images[begin + i], i).error;
    });
    std::vector<std::size_t> good;
    for (std::size_t i = 0; i < count; ++i)
      if (result.errors[begin + i].empty()) good.push_back(i);
    float* to = result.rows.data() + begin * columns;
    if (good.size() < count) std::fill_n(to, count * columns, std::numeric_limits<float>::quiet_NaN());
    if (good.size() == count) {
      buffer.take(good, [&](const Batch& batch) { compute(batch, to); });
      continue;
    }
    rows.resize(good.size() * columns);
    buffer.take(good, [&](const Batch& batch) { compute(batch, rows.data()); });
    for (std::size_t i = 0; i < good.size(); ++i)
      std::copy_n(rows.data() + i * columns, columns, to + good[i] * columns);
  }
  return result;
}

// A buffer whose batch has failed is dropped.
BatchResult Runner::State::run(std::span<const ImageSource> images, int columns, const Compute& compute) {
  check_own_process();
  auto buffer = take_buffer();
  auto result = run(images, {columns}, *buffer, compute);
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(buffer));
  return result;
}

// In the way in which the engine's batches are made, so that a GPU's pixels can be looked at.
BatchResult Runner::State::preprocess(std::span<const ImageSource> images) {
  check_own_process();
  const auto& spec = preprocessor.spec();
  const std::size_t row_size = std::size_t{3} * spec.height * spec.width;
  if (info.device != "cpu") {
    const auto buffer = make_buffer(batch_size, ElementType::float32, Layout::planar);
    return run(images, {3, spec.height, spec.width}, *buffer,
               [](const Batch& batch, float* rows) { backend()->copy_to_cpu(batch, rows); });
  }
  BatchResult result{Floats(images.size() * row_size),
                     {static_cast<std::int64_t>(images.size()), 3, spec.height, spec.width},
                     std::vector<std::string>(images.size())};
  workers.for_each(images.size(), [&](std::size_t i) {
    float* row = result.rows.data() + i * row_size;
    CoreBudget::Hold core;
    result.errors[i] = preprocess(images[i], row, [&] { core = cores.for_image(); });
    if (!result.errors[i].empty()) std::fill_n(row, row_size, std::numeric_limits<float>::quiet_NaN());
  });
  return result;
}

std::vector<Prediction> Runner::State::predictions(std::span<const float> row, int top_k) const {
  const auto& labels = metadata.labels;
  const auto count = static_cast<std::int64_t>(labels.size());
  if (top_k < 1) throw std::invalid_argument("top_k: expected 1 or more, got " + std::to_string(top_k));
  if (std::cmp_not_equal(row.size(), count))
    throw std::invalid_argument("logits: expected " + std::to_string(count) + " of one image, got " +
                                std::to_string(row.size()));
  const float* logits = row.data();
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

}  // namespace swsl
