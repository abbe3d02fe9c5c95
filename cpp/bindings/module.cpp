// swsl._C: convert, name arguments, release the GIL. swsl/deploy/runner.py is the typed face that users see.

#include <swsl/frozen_model.h>
#include <swsl/runner.h>
#include <swsl/stream.h>

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <optional>

#include <ATen/ATen.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "model/utf8.h"

namespace py = pybind11;

namespace {

// Of a str, with the bytes that the names of files may hold and UTF-8 may not.
std::string bytes_of(const py::handle& text) {
  return py::bytes(text.attr("encode")("utf-8", "surrogateescape"));
}

// Python objects as image sources. Whatever the sources point to lives as long as this: it must be made and
// destroyed with the GIL held, and may be used without it.
class Sources {
 public:
  explicit Sources(const py::sequence& images) {
    for (const py::handle image : images) add(py::reinterpret_borrow<py::object>(image));
  }

  std::span<const swsl::ImageSource> span() const { return sources_; }

 private:
  void add(py::object image) {
    if (py::isinstance<py::tuple>(image)) {  // bytes and their name
      auto parts = py::reinterpret_borrow<py::tuple>(image);
      add(parts[0]);
      std::get<swsl::EncodedImage>(sources_.back()).name = bytes_of(parts[1]);
    } else if (THPVariable_Check(image.ptr())) {
      const at::Tensor& tensor = THPVariable_Unpack(image.ptr());
      const bool fits =
          tensor.is_cpu() && tensor.scalar_type() == at::kByte && tensor.dim() == 3 && tensor.size(2) == 3;
      if (!fits) throw refused("a uint8 tensor height × width × 3 on the CPU", "another tensor");
      add_pixels(tensor.const_data_ptr<std::uint8_t>(), tensor.size(0), tensor.size(1), tensor.stride(0),
                 tensor.stride(1), tensor.stride(2));
      owners_.push_back(std::move(image));
    } else if (PyObject_CheckBuffer(image.ptr())) {
      buffers_.push_back(py::reinterpret_borrow<py::buffer>(image).request());
      const auto& buffer = buffers_.back();
      if (buffer.itemsize != 1 || (buffer.ndim != 1 && !(buffer.ndim == 3 && buffer.shape[2] == 3)))
        throw refused("the bytes of an image file or uint8 pixels height × width × 3", "another buffer");
      if (buffer.ndim == 3)
        add_pixels(static_cast<const std::uint8_t*>(buffer.ptr), buffer.shape[0], buffer.shape[1],
                   buffer.strides[0], buffer.strides[1], buffer.strides[2]);
      else if (buffer.strides[0] != 1 && buffer.size > 1)
        throw refused("contiguous bytes", "a buffer with gaps");
      else
        sources_.emplace_back(swsl::EncodedImage{buffer.ptr, static_cast<std::size_t>(buffer.size)});
    } else {
      PyObject* path = nullptr;
      if (!PyUnicode_FSConverter(image.ptr(), &path)) throw py::error_already_set();
      sources_.emplace_back(std::string(py::reinterpret_steal<py::bytes>(path)));
    }
  }

  // Views where the pixels of a row lie next to each other, a packed copy of anything else (a flipped or
  // transposed array).
  void add_pixels(const std::uint8_t* data, py::ssize_t height, py::ssize_t width, py::ssize_t row,
                  py::ssize_t column, py::ssize_t channel) {
    constexpr py::ssize_t longest = std::numeric_limits<int>::max();
    if (height > longest || width > longest) throw refused("sides of at most 2^31 - 1 pixels", "longer ones");
    const int h = static_cast<int>(height), w = static_cast<int>(width);
    if (channel == 1 && column == 3) {
      sources_.emplace_back(swsl::ImageView{data, h, w, row});
      return;
    }
    auto& copy = copies_.emplace_back();
    copy.reserve(static_cast<std::size_t>(height * width * 3));
    for (py::ssize_t y = 0; y < height; ++y)
      for (py::ssize_t x = 0; x < width; ++x)
        for (int c = 0; c < 3; ++c) copy.push_back(data[y * row + x * column + c * channel]);
    sources_.emplace_back(swsl::ImageView{copy.data(), h, w, std::ptrdiff_t{3} * w});
  }

  py::value_error refused(const char* expected, const char* found) const {
    return py::value_error("images[" + std::to_string(sources_.size()) + "]: expected " + expected +
                           ", got " + found);
  }

  std::vector<swsl::ImageSource> sources_;
  std::vector<py::object> owners_;
  std::deque<py::buffer_info> buffers_;  // while one exists, its object can neither go nor change its size
  std::deque<std::vector<std::uint8_t>> copies_;
};

// What threads of ours pass on their way into Python. It is shut before Python goes: a thread that asks for
// the GIL later is ended in the middle of what it does, and the program with it.
class Gate {
 public:
  bool enter() {
    const std::lock_guard lock(mutex_);
    inside_ += !shut_;
    return !shut_;
  }

  void leave() {
    const std::lock_guard lock(mutex_);
    if (--inside_ == 0) left_.notify_all();
  }

  // Waits for those inside, who need the GIL to come out.
  void shut() {
    const py::gil_scoped_release no_gil;
    std::unique_lock lock(mutex_);
    shut_ = true;
    left_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable left_;
  int inside_ = 0;
  bool shut_ = false;
} gate;

// A Python function (path or buffer, name) → buffer height × width × 3, or None, as
// RunnerOptions::decode_other.
class PythonDecoder {
 public:
  explicit PythonDecoder(py::function function)
      : function_(new py::function(std::move(function)), [](py::function* held) {
          const py::gil_scoped_acquire gil;  // a stream drops its runner without it
          delete held;
        }) {}

  swsl::Image operator()(const swsl::ImageSource& source) const {
    if (!gate.enter()) return {};
    const std::unique_ptr<Gate, void (*)(Gate*)> way_out(&gate, [](Gate* entered) { entered->leave(); });
    const py::gil_scoped_acquire gil;
    py::object argument = py::none(), name = py::none();
    if (const auto* path = std::get_if<std::string>(&source)) {
      const auto size = static_cast<py::ssize_t>(path->size());
      argument = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefaultAndSize(path->data(), size));
      name = argument;
    } else {
      const auto& encoded = std::get<swsl::EncodedImage>(source);
      argument = py::memoryview::from_memory(encoded.data, static_cast<py::ssize_t>(encoded.size));
      name = py::str(encoded.name);
    }
    try {
      const py::object answer = (*function_)(argument, name);
      if (answer.is_none()) return {};
      const auto pixels = py::buffer(answer).request();
      const auto* first = static_cast<const std::uint8_t*>(pixels.ptr);
      return {
          static_cast<int>(pixels.shape[0]), static_cast<int>(pixels.shape[1]), {first, first + pixels.size}};
    } catch (const py::error_already_set& error) {
      if (!error.matches(py::module_::import("swsl.image").attr("ImageError"))) throw;
      throw swsl::ImageError(bytes_of(py::str(error.value())));
    }
  }

 private:
  std::shared_ptr<py::function> function_;
};

using BatchMethod = swsl::BatchResult (swsl::Runner::*)(std::span<const swsl::ImageSource>) const;

template <BatchMethod method>
std::pair<at::Tensor, std::vector<std::string>> batch(const swsl::Runner& runner,
                                                      const py::sequence& images) {
  const Sources sources(images);
  const py::gil_scoped_release no_gil;
  auto result = (runner.*method)(sources.span());
  for (auto& error : result.errors) error = swsl::detail::as_utf8(error);
  return {std::move(result.rows), std::move(result.errors)};
}

using PredictionTuple = std::tuple<std::string, std::int64_t, float>;

std::vector<PredictionTuple> tuples(const std::vector<swsl::Prediction>& predictions) {
  std::vector<PredictionTuple> out;
  for (const auto& p : predictions) out.emplace_back(p.label, p.index, p.probability);
  return out;
}

std::vector<std::pair<std::vector<PredictionTuple>, std::string>> classify(const swsl::Runner& runner,
                                                                           const py::sequence& images,
                                                                           int top_k) {
  const Sources sources(images);
  const py::gil_scoped_release no_gil;
  std::vector<std::pair<std::vector<PredictionTuple>, std::string>> out;
  for (const auto& result : runner.classify(sources.span(), top_k))
    out.emplace_back(tuples(result.predictions), swsl::detail::as_utf8(result.error));
  return out;
}

// A stream and what its images point to.
class Stream {
 public:
  using Answer = std::tuple<std::vector<PredictionTuple>, std::optional<at::Tensor>, std::string>;

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
    std::optional<swsl::StreamResult> result;
    {
      const py::gil_scoped_release no_gil;
      result = stream_->pop();
    }
    if (!result) return {};
    sources_.pop_front();
    std::optional<at::Tensor> row;
    if (result->row.defined()) row = std::move(result->row);
    return Answer{tuples(result->predictions), std::move(row), swsl::detail::as_utf8(result->error)};
  }

 private:
  bool wait_a_little() const {
    const py::gil_scoped_release no_gil;
    return stream_->wait_for(std::chrono::milliseconds(100));
  }

  std::deque<Sources> sources_;  // of the images under way
  std::unique_ptr<swsl::Stream> stream_;
};

swsl::Output parse_output(const std::string& name) {
  if (name == "predictions") return swsl::Output::predictions;
  if (name == "embedding") return swsl::Output::embedding;
  if (name == "logits") return swsl::Output::logits;
  throw std::invalid_argument("output: expected predictions, embedding or logits, got \"" + name + '"');
}

at::Tensor decode(const py::object& image, bool exif_orientation, std::int64_t max_pixels) {
  const Sources sources(py::make_tuple(image));
  const py::gil_scoped_release no_gil;
  const auto& source = sources.span()[0];
  const swsl::DecodeOptions options{.exif_orientation = exif_orientation, .max_pixels = max_pixels};
  if (std::holds_alternative<swsl::ImageView>(source))
    throw std::invalid_argument("image: expected a path or bytes, got pixels");
  auto owner = std::make_unique<swsl::Image>();
  if (const auto* path = std::get_if<std::string>(&source)) {
    *owner = swsl::read_image(*path, options);
  } else {
    const auto& bytes = std::get<swsl::EncodedImage>(source);
    *owner = swsl::decode_image(bytes.data, bytes.size, options, bytes.name);
  }
  auto* decoded = owner.release();
  return at::from_blob(
      decoded->pixels.data(), {decoded->height, decoded->width, 3}, [decoded](void*) { delete decoded; },
      at::kByte);
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

std::vector<std::tuple<std::string, std::string, double, double>> profile(const swsl::Runner& runner,
                                                                          const at::Tensor& batch) {
  const py::gil_scoped_release no_gil;
  std::vector<std::tuple<std::string, std::string, double, double>> out;
  for (const auto& time : runner.profile(batch))
    out.emplace_back(time.kernel, time.shape, time.multiply_adds, time.seconds);
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
  const auto version = py::module_::import("torch").attr("__version__").cast<std::string>();
  if (version.substr(0, version.find('+')) != TORCH_VERSION)
    throw py::import_error("swsl._C was built with torch " TORCH_VERSION ", this is torch " + version +
                           ": install swsl again");

  py::register_exception_translator(&translate);
  py::module_::import("atexit").attr("register")(py::cpp_function([] { gate.shut(); }));
  pthread_atfork(nullptr, nullptr, [] { new (&gate) Gate; });  // nobody inside has come along
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
      .def("classify", &classify, py::arg("images"), py::arg("top_k"))
      .def("logits", &batch<&Runner::logits>, py::arg("images"))
      .def("embed", &batch<&Runner::embed>, py::arg("images"))
      .def("preprocess", &batch<&Runner::preprocess>, py::arg("images"))
      .def("forward", &Runner::forward, py::arg("batch"), py::call_guard<py::gil_scoped_release>())
      .def("profile", &profile, py::arg("batch"))
      .def("info", &info)
      .def("metadata", [](const Runner& runner) { return runner.metadata().json; });
  py::class_<Stream>(m, "Stream")
      .def(py::init([](const Runner& runner, int batch_size, int workers, int top_k,
                       const std::string& output, std::optional<double> max_wait) {
             std::optional<std::chrono::microseconds>
                 wait;  // 1e9 seconds are for ever, and can still be counted
             if (max_wait)
               wait = std::chrono::microseconds(static_cast<std::int64_t>(std::min(*max_wait, 1e9) * 1e6));
             const swsl::StreamOptions options{batch_size, workers, top_k, parse_output(output), wait};
             return std::make_unique<Stream>(runner, options);
           }),
           py::arg("runner"), py::kw_only(), py::arg("batch_size"), py::arg("workers"), py::arg("top_k"),
           py::arg("output"), py::arg("max_wait"))
      .def("capacity", &Stream::capacity)
      .def("push", &Stream::push, py::arg("image"))
      .def("finish", &Stream::finish)
      .def("ready", &Stream::ready)
      .def("pop", &Stream::pop)
      .def("close", &Stream::close);
  m.def("decode_image", &decode, py::arg("image"), py::kw_only(), py::arg("exif_orientation"),
        py::arg("max_pixels"));
  m.def("golden_input", &swsl::golden_input, py::arg("shape"));
  m.def(
      "peak_flops",
      [](const std::string& dtype, int threads) {
        return swsl::peak_flops(swsl::parse_dtype(dtype), threads);
      },
      py::arg("dtype"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def("build_info", &build_info);
}
