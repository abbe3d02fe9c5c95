#include "sources.h"

#include <pthread.h>

#include <condition_variable>
#include <limits>
#include <mutex>
#include <new>

std::string bytes_of(const py::handle& text) {
  return py::bytes(text.attr("encode")("utf-8", "surrogateescape"));
}

Sources::Sources(const py::sequence& images) {
  for (const py::handle image : images) add(py::reinterpret_borrow<py::object>(image));
}

void Sources::add(const py::object& image) {
  if (py::isinstance<py::tuple>(image)) {  // bytes and their name
    auto parts = py::reinterpret_borrow<py::tuple>(image);
    add(parts[0]);
    std::get<swsl::EncodedImage>(sources_.back()).name = bytes_of(parts[1]);
    return;
  }
  auto given = Given::from(image);
  if (!given) {
    PyObject* path = nullptr;
    if (!PyUnicode_FSConverter(image.ptr(), &path)) throw py::error_already_set();
    sources_.emplace_back(std::string(py::reinterpret_steal<py::bytes>(path)));
    return;
  }
  const bool pixels = given->shape.size() == 3 && given->shape[2] == 3;
  if (given->bytes != 1 || !given->on_cpu || (given->shape.size() != 1 && !pixels))
    throw refused("the bytes of an image file or uint8 pixels height × width × 3 on the CPU", given->text());
  if (pixels) {
    add_pixels(given_.emplace_back(std::move(*given)));
    return;
  }
  if (given->strides[0] != 1 && given->shape[0] > 1) throw refused("contiguous bytes", "a buffer with gaps");
  sources_.emplace_back(swsl::EncodedImage{given->data, static_cast<std::size_t>(given->shape[0])});
  given_.push_back(std::move(*given));
}

// Views where the pixels of a row lie next to each other, a packed copy of anything else (a flipped or
// transposed array).
void Sources::add_pixels(const Given& pixels) {
  constexpr std::int64_t longest = std::numeric_limits<int>::max();
  const std::int64_t height = pixels.shape[0], width = pixels.shape[1];
  if (height > longest || width > longest) throw refused("sides of at most 2^31 - 1 pixels", "longer ones");
  const int h = static_cast<int>(height), w = static_cast<int>(width);
  const auto* data = static_cast<const std::uint8_t*>(pixels.data);
  const auto& step = pixels.strides;
  if (step[2] == 1 && step[1] == 3) {
    sources_.emplace_back(swsl::ImageView{data, h, w, static_cast<std::ptrdiff_t>(step[0])});
    return;
  }
  auto& copy = copies_.emplace_back();
  copy.reserve(static_cast<std::size_t>(height * width * 3));
  for (std::int64_t y = 0; y < height; ++y)
    for (std::int64_t x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) copy.push_back(data[y * step[0] + x * step[1] + c * step[2]]);
  sources_.emplace_back(swsl::ImageView{copy.data(), h, w, std::ptrdiff_t{3} * w});
}

py::value_error Sources::refused(const std::string& expected, const std::string& found) const {
  return py::value_error("images[" + std::to_string(sources_.size()) + "]: expected " + expected + ", got " +
                         found);
}

namespace {

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

}  // namespace

PythonDecoder::PythonDecoder(py::function function)
    : function_(new py::function(std::move(function)), [](py::function* held) {
        const py::gil_scoped_acquire gil;  // a stream drops its runner without it
        delete held;
      }) {}

swsl::Image PythonDecoder::operator()(const swsl::ImageSource& source) const {
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

void guard_python() {
  py::module_::import("atexit").attr("register")(py::cpp_function([] { gate.shut(); }));
  pthread_atfork(nullptr, nullptr, [] { new (&gate) Gate; });  // nobody inside has come along
}
