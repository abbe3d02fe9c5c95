// swsl._C: convert, name arguments, release the GIL. swsl/deploy/runner.py is the typed face that users see.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include <swsl/frozen_model.h>
#include <swsl/golden.h>
#include <swsl/runner.h>
#include <swsl/stream.h>

#include "arrays.h"
#include "model/utf8.h"
#include "sources.h"

namespace {

using Floats = Array<float>;

// Nothing where it was not asked for.
std::optional<Floats> row_of(const std::vector<float>& numbers) {
  if (numbers.empty()) return {};
  return Floats{{numbers.begin(), numbers.end()}, {static_cast<py::ssize_t>(numbers.size())}};
}

using BatchMethod = swsl::BatchResult (swsl::Runner::*)(std::span<const swsl::ImageSource>) const;

template <BatchMethod method>
std::pair<Floats, std::vector<std::string>> batch(const swsl::Runner& runner, const py::sequence& images) {
  const Sources sources(images);
  const py::gil_scoped_release no_gil;
  auto result = (runner.*method)(sources.span());
  for (auto& error : result.errors) error = swsl::detail::as_utf8(error);
  Floats rows{std::move(result.rows), {result.shape.begin(), result.shape.end()}};
  return std::pair(std::move(rows), std::move(result.errors));  // in braces it would be copied
}

using PredictionTuple = std::tuple<std::string, std::int64_t, float>;

std::vector<PredictionTuple> tuples(const std::vector<swsl::Prediction>& predictions) {
  std::vector<PredictionTuple> out;
  for (const auto& p : predictions) out.emplace_back(p.label, p.index, p.probability);
  return out;
}

// A stream and what its images point to.
class Stream {
 public:
  // Predictions, embedding, logits, error, and of what was spent decode, forward and batch.
  using Answer = std::tuple<std::vector<PredictionTuple>, std::optional<Floats>, std::optional<Floats>,
                            std::string, std::tuple<double, double, int>>;

  Stream(const swsl::Runner& runner, const swsl::StreamOptions& options)
      : stream_(std::make_unique<swsl::Stream>(runner, options)) {}

  ~Stream() { close(); }

  // Then `push` and `finish` do nothing: they may be under way on another thread.
  void close() {
    auto stream = std::move(stream_);
    const py::gil_scoped_release no_gil;  // it waits for its threads
    stream.reset();
  }

  std::size_t capacity() const { return stream_->capacity(); }

  // May be called while another thread pops. Waits for nobody, as the caller has seen to it that there is
  // room, and keeps the GIL so that nobody closes the stream meanwhile.
  void push(const py::object& image) {
    Sources source(py::make_tuple(image));
    if (!stream_) return;
    stream_->push(sources_.emplace_back(std::move(source)).span()[0]);
  }

  void finish() {
    if (stream_) stream_->finish();
  }

  bool ready() const { return stream_->wait_for(std::chrono::milliseconds(0)); }

  // Nothing after the end.
  std::optional<Answer> pop() {
    while (!wait_a_little())
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    std::optional<swsl::Result> result;
    swsl::Spent spent;
    {
      const py::gil_scoped_release no_gil;
      result = stream_->pop(&spent);
    }
    if (!result) return {};
    sources_.pop_front();
    return Answer{tuples(result->predictions),
                  row_of(result->embedding),
                  row_of(result->logits),
                  swsl::detail::as_utf8(result->error),
                  {spent.decode, spent.forward, spent.batch}};
  }

 private:
  bool wait_a_little() const {
    const py::gil_scoped_release no_gil;
    return stream_->wait_for(std::chrono::milliseconds(100));
  }

  std::deque<Sources> sources_;  // of the images under way
  std::unique_ptr<swsl::Stream> stream_;
};

std::vector<swsl::Output> parse_outputs(const std::vector<std::string>& names) {
  static const std::map<std::string, swsl::Output> known = {{"predictions", swsl::Output::predictions},
                                                            {"embedding", swsl::Output::embedding},
                                                            {"logits", swsl::Output::logits}};
  std::vector<swsl::Output> outputs;
  for (const auto& name : names) outputs.push_back(known.at(name));
  return outputs;
}

Array<std::uint8_t> decode(const py::object& image, bool exif_orientation, std::int64_t max_pixels) {
  const Sources sources(py::make_tuple(image));
  const py::gil_scoped_release no_gil;
  const auto& source = sources.span()[0];
  const swsl::DecodeOptions options{.exif_orientation = exif_orientation, .max_pixels = max_pixels};
  if (std::holds_alternative<swsl::ImageView>(source))
    throw std::invalid_argument("image: expected a path or bytes, got pixels");
  swsl::Image decoded;
  if (const auto* path = std::get_if<std::string>(&source)) {
    decoded = swsl::read_image(*path, options);
  } else {
    const auto& bytes = std::get<swsl::EncodedImage>(source);
    decoded = swsl::decode_image(bytes.data, bytes.size, options, bytes.name);
  }
  return {std::move(decoded.pixels), {decoded.height, decoded.width, 3}};
}

// float32 logits N×classes.
Floats forward(const swsl::Runner& runner, const py::object& object) {
  const GivenBatch given(object);
  const py::gil_scoped_release no_gil;
  const auto count = given.batch().shape[0];
  swsl::Floats logits(static_cast<std::size_t>(count * runner.info().classes));
  runner.forward(given.batch(), logits.data());
  return {std::move(logits), {count, runner.info().classes}};
}

Floats golden_input(const std::vector<std::int64_t>& shape) {
  const auto numbers = swsl::golden_input(shape);
  return {{numbers.begin(), numbers.end()}, {shape.begin(), shape.end()}};
}

py::dict info(const swsl::Runner& runner) {
  const auto& info = runner.info();
  py::dict out;
  out["name"] = info.name;
  out["device"] = info.device;
  out["dtype"] = info.dtype;
  out["threads"] = info.threads;
  out["batch_size"] = runner.batch_size();
  out["reason"] = info.reason;
  out["golden_error"] = info.golden.errors.largest();
  out["golden_tolerance"] = info.golden.tolerance;
  return out;
}

using LayerWay = std::tuple<std::string, double, std::string>;
using LayerTime = std::tuple<std::string, std::string, double, double, std::vector<LayerWay>>;

std::vector<LayerTime> profile(const swsl::Runner& runner, const py::object& object) {
  const GivenBatch given(object);
  const py::gil_scoped_release no_gil;
  std::vector<LayerTime> out;
  for (const auto& time : runner.profile(given.batch())) {
    std::vector<LayerWay> ways;
    for (const auto& way : time.ways) ways.emplace_back(way.kernel, way.seconds, way.trouble);
    out.emplace_back(time.kernel, time.shape, time.multiply_adds, time.seconds, std::move(ways));
  }
  return out;
}

py::dict build_info() {
  const auto info = swsl::build_info();
  py::dict out;
  out["swsl"] = info.swsl_version;
  out["torch"] = info.torch_version;
  out["jpeg"] = info.jpeg;
  out["png"] = info.png;
  out["cuda"] = info.cuda;
  out["cuda_kernels"] = info.cuda_kernels;
  out["nvjpeg"] = info.nvjpeg;
  return out;
}

// Errors get the classes that the Python side of the package defines, so that they exist without this
// extension.
void translate(std::exception_ptr thrown) {
  const auto raise = [](const char* module, const char* name, const std::exception& error) {
    PyErr_SetString(py::module_::import(module).attr(name).ptr(),
                    swsl::detail::as_utf8(error.what()).c_str());
  };
  try {
    std::rethrow_exception(thrown);
  } catch (const swsl::UnsupportedFormat& error) {
    raise("swsl.image", "UnsupportedFormat", error);
  } catch (const swsl::ImageError& error) {
    raise("swsl.image", "ImageError", error);
  } catch (const swsl::ModelError& error) {
    raise("swsl.deploy.export", "ModelError", error);
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_exception_translator(&translate);
  py::register_exception<swsl::NeedsLibTorch>(m, "NeedsLibTorch", PyExc_ValueError);
  guard_python();
  bind_array<float>(m, "Floats");
  bind_array<std::uint8_t>(m, "Bytes");
  using swsl::Runner;
  py::class_<Runner>(m, "Runner")
      .def(py::init([](const std::string& model, std::string device, std::string dtype, int cores,
                       int threads, int batch_size, bool exif_orientation, bool dct_scaling, bool nvjpeg,
                       std::int64_t max_pixels, py::function decode_other) {
             PythonDecoder decoder(std::move(decode_other));
             const py::gil_scoped_release no_gil;
             return std::make_unique<Runner>(
                 model,
                 swsl::RunnerOptions{std::move(device), std::move(dtype), cores, threads, batch_size,
                                     exif_orientation, dct_scaling, nvjpeg, max_pixels, std::move(decoder)});
           }),
           py::arg("model"), py::kw_only(), py::arg("device"), py::arg("dtype"), py::arg("cores"),
           py::arg("threads"), py::arg("batch_size"), py::arg("exif_orientation"), py::arg("dct_scaling"),
           py::arg("nvjpeg"), py::arg("max_pixels"), py::arg("decode_other"))
      .def("logits", &batch<&Runner::logits>, py::arg("images"))
      .def("embed", &batch<&Runner::embed>, py::arg("images"))
      .def("preprocess", &batch<&Runner::preprocess>, py::arg("images"))
      .def("forward", &forward, py::arg("batch"))
      .def("profile", &profile, py::arg("batch"))
      .def("info", &info)
      .def("metadata", [](const Runner& runner) { return runner.metadata().json; })
      // For swsl._libtorch, whose pybind11 may be another; it lives as long as the runner.
      .def("capsule", [](Runner& runner) { return py::capsule(&runner, "swsl.Runner"); });
  py::class_<Stream>(m, "Stream")
      .def(py::init([](const Runner& runner, int batch_size, int workers, int top_k,
                       const std::vector<std::string>& outputs, std::optional<double> max_wait) {
             // 1e9 seconds are for ever, and can still be counted.
             std::optional<std::chrono::microseconds> wait;
             if (max_wait)
               wait = std::chrono::microseconds(static_cast<std::int64_t>(std::min(*max_wait, 1e9) * 1e6));
             const swsl::StreamOptions options{batch_size, workers, top_k, parse_outputs(outputs), wait};
             return std::make_unique<Stream>(runner, options);
           }),
           py::arg("runner"), py::kw_only(), py::arg("batch_size"), py::arg("workers"), py::arg("top_k"),
           py::arg("outputs"), py::arg("max_wait"))
      .def("capacity", &Stream::capacity)
      .def("push", &Stream::push, py::arg("image"))
      .def("finish", &Stream::finish)
      .def("ready", &Stream::ready)
      .def("pop", &Stream::pop)
      .def("close", &Stream::close);
  m.def("decode_image", &decode, py::arg("image"), py::kw_only(), py::arg("exif_orientation"),
        py::arg("max_pixels"));
  m.def("golden_input", &golden_input, py::arg("shape"));
  m.def(
      "peak_flops",
      [](const std::string& dtype, int threads) {
        return swsl::peak_flops(swsl::parse_dtype(dtype).value(), threads);
      },
      py::arg("dtype"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def("build_info", &build_info);
}
