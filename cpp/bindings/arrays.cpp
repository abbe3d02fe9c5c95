#include "arrays.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace {

// Of DLPack's stable C interface, version 0: what `__dlpack__()` gives a consumer that names no version.
struct DLTensor {
  void* data;
  struct {
    std::int32_t type, id;
  } device;
  std::int32_t dimensions;
  struct {
    std::uint8_t code, bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: row-major
  std::uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

constexpr std::int32_t device_cpu = 1, device_cuda_host = 3;

Given::Kind kind_of(std::uint8_t dlpack_code) {
  switch (dlpack_code) {
    case 1: return Given::Kind::unsigned_integer;
    case 2: return Given::Kind::floating;
    case 4: return Given::Kind::bfloat16;
    default: return Given::Kind::other;
  }
}

Given::Kind kind_of(const std::string& format) {
  if (format == "B") return Given::Kind::unsigned_integer;
  return format == "e" || format == "f" || format == "d" ? Given::Kind::floating : Given::Kind::other;
}

}  // namespace

std::optional<Given> Given::from(const py::object& object) {
  Given given;
  if (PyObject_CheckBuffer(object.ptr())) {
    auto info = std::make_shared<py::buffer_info>(py::reinterpret_borrow<py::buffer>(object).request());
    given.data = info->ptr;
    given.kind = kind_of(info->format);
    given.bytes = static_cast<int>(info->itemsize);
    given.shape.assign(info->shape.begin(), info->shape.end());
    for (const auto stride : info->strides) {
      if (stride % std::max<py::ssize_t>(info->itemsize, 1) != 0) given.kind = Kind::other;
      given.strides.push_back(stride / std::max<py::ssize_t>(info->itemsize, 1));
    }
    given.held_ = std::move(info);
    return given;
  }
  if (!py::hasattr(object, "__dlpack__")) return {};
  py::object capsule = object.attr("__dlpack__")();
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  given.held_ = std::shared_ptr<void>(managed, [](void* held) {
    auto* tensor = static_cast<DLManagedTensor*>(held);
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
  });
  const DLTensor& tensor = managed->tensor;
  given.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  given.kind = tensor.dtype.lanes == 1 ? kind_of(tensor.dtype.code) : Kind::other;
  given.bytes = tensor.dtype.bits / 8;
  given.on_cpu = tensor.device.type == device_cpu || tensor.device.type == device_cuda_host;
  given.shape.assign(tensor.shape, tensor.shape + tensor.dimensions);
  given.strides.resize(given.shape.size());
  std::int64_t step = 1;
  for (std::size_t i = given.shape.size(); i-- > 0; step *= given.shape[i])
    given.strides[i] = tensor.strides != nullptr ? tensor.strides[i] : step;
  return given;
}

std::string Given::text() const {
  const std::string bits = std::to_string(8 * bytes);
  std::string out = kind == Kind::floating           ? "float" + bits
                    : kind == Kind::bfloat16         ? "bfloat16"
                    : kind == Kind::unsigned_integer ? "uint" + bits
                                                     : "elements of another type,";
  for (const auto n : shape) out += ' ' + std::to_string(n);
  return on_cpu ? out : out + " on another device than the CPU";
}

GivenBatch::GivenBatch(const py::object& object) : given_(Given::from(object)) {
  const auto refuse = [](const std::string& found) {
    throw std::invalid_argument("batch: expected a floating-point tensor N×3×height×width, got " + found);
  };
  if (!given_) refuse(py::str(py::type::of(object).attr("__name__")));
  const bool floating = given_->kind == Given::Kind::floating || given_->kind == Given::Kind::bfloat16;
  if (!floating || given_->shape.size() != 4 || given_->shape[1] != 3 || !given_->on_cpu)
    refuse(given_->text());
  std::copy_n(given_->shape.begin(), 4, batch_.shape.begin());
  std::copy_n(given_->strides.begin(), 4, batch_.strides.begin());
  batch_.data = given_->data;
  if (given_->bytes != 8) {
    batch_.type = given_->kind == Given::Kind::bfloat16 ? swsl::ElementType::bfloat16
                  : given_->bytes == 4                  ? swsl::ElementType::float32
                                                        : swsl::ElementType::float16;
    return;
  }
  const auto* doubles = static_cast<const double*>(given_->data);
  const auto& [count, channels, height, width] = batch_.shape;
  const auto& step = given_->strides;
  for (std::int64_t n = 0; n < count; ++n)
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t y = 0; y < height; ++y)
        for (std::int64_t x = 0; x < width; ++x)
          converted_.push_back(
              static_cast<float>(doubles[n * step[0] + c * step[1] + y * step[2] + x * step[3]]));
  batch_ = swsl::Batch::contiguous(converted_.data(), batch_.shape);
}
