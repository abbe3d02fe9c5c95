#include "model/network.h"

#include <bit>
#include <cstring>
#include <limits>
#include <map>

#include "model/json.h"

namespace swsl {
namespace {

// Of channels, and of a window's sides and steps: larger ones would overflow what is computed of them.
constexpr std::int64_t most_channels = 1 << 16, longest_window = 1 << 10;

int small(const Json& value, std::int64_t least, std::int64_t most) {
  const auto number = value.integer();
  if (number < least || number > most)
    value.refuse("an integer from " + std::to_string(least) + " to " + std::to_string(most),
                 std::to_string(number));
  return static_cast<int>(number);
}

void read_pair(const Json& array, std::int64_t least, int& first, int& second) {
  const auto& items = array.items();
  if (items.size() != 2) array.refuse("two integers", std::to_string(items.size()) + " values");
  first = small(items[0], least, longest_window);
  second = small(items[1], least, longest_window);
}

class Reader {
 public:
  Reader(const Json& table, std::shared_ptr<const Archive> archive) {
    network_.archive = std::move(archive);
    const auto& operators = table.at("operators").items();
    if (operators.empty() || operators.size() > 1'000)
      table.at("operators").refuse("1 to 1,000 of them", std::to_string(operators.size()));
    for (const auto& item : operators) read(item);
    network_.values = static_cast<int>(network_.nodes.size()) + 1;
    network_.output = value(table.at("logits"));
    network_.features = value(table.at("features"));
  }

  Network take() { return std::move(network_); }

 private:
  // That is there already.
  int value(const Json& json) const {
    const auto number = json.integer();
    if (number < 0 || number > static_cast<std::int64_t>(network_.nodes.size()))
      json.refuse("the batch, 0, or the number of an operator before this, counted from 1",
                  std::to_string(number));
    return static_cast<int>(number);
  }

  void read(const Json& json) {
    static const std::map<std::string, Operation, std::less<>> known = {
        {"conv2d", Operation::convolution},
        {"linear", Operation::linear},
        {"relu", Operation::relu},
        {"add", Operation::add},
        {"max_pool2d", Operation::max_pool},
        {"avg_pool2d", Operation::average_pool},
        {"avg_pool2d_ceil", Operation::average_pool},
        {"adaptive_avg_pool2d", Operation::global_average_pool},
        {"flatten", Operation::flatten},
    };
    Node node;
    node.name = json.at("operator").string();
    if (const auto found = known.find(node.name); found != known.end()) node.operation = found->second;
    for (const auto& input : json.at("inputs").items()) node.inputs.push_back(value(input));
    const std::size_t inputs = node.operation == Operation::add ? 2 : 1;
    if (node.operation != Operation::other && node.inputs.size() != inputs)
      json.at("inputs").refuse(std::to_string(inputs), std::to_string(node.inputs.size()));
    Window& window = node.window;
    switch (node.operation) {
      case Operation::convolution: {
        read_pair(json.at("stride"), 1, window.stride_height, window.stride_width);
        read_pair(json.at("padding"), 0, window.pad_height, window.pad_width);
        read_pair(json.at("dilation"), 1, window.dilation_height, window.dilation_width);
        node.groups = small(json.at("groups"), 1, most_channels);
        const auto shape = read_shape(json.at("weight"), 4);
        window.kernel_height = shape[2], window.kernel_width = shape[3];
        read_weights(json, node, shape);
        break;
      }
      case Operation::linear: read_weights(json, node, read_shape(json.at("weight"), 2)); break;
      case Operation::max_pool:
      case Operation::average_pool:
        read_pair(json.at("kernel_size"), 1, window.kernel_height, window.kernel_width);
        read_pair(json.at("stride"), 1, window.stride_height, window.stride_width);
        read_pair(json.at("padding"), 0, window.pad_height, window.pad_width);
        if (2 * window.pad_height > window.kernel_height || 2 * window.pad_width > window.kernel_width)
          json.at("padding").refuse("at most half of kernel_size", "more");
        window.ceil_mode = node.name == "avg_pool2d_ceil";
        break;
      case Operation::global_average_pool: {
        int height = 0, width = 0;
        read_pair(json.at("output_size"), 1, height, width);
        if (height != 1 || width != 1)
          node.operation = Operation::other, node.name += " to more than one pixel";
        break;
      }
      default: break;
    }
    network_.nodes.push_back(std::move(node));
    network_.nodes.back().output = static_cast<int>(network_.nodes.size());
  }

  static std::vector<int> read_shape(const Json& weight, std::size_t rank) {
    const auto& shape = weight.at("shape");
    if (shape.items().size() != rank)
      shape.refuse(std::to_string(rank) + " dimensions", std::to_string(shape.items().size()));
    std::vector<int> sizes;
    for (const auto& size : shape.items())
      sizes.push_back(small(size, 1, sizes.size() < 2 ? most_channels : longest_window));
    return sizes;
  }

  void read_weights(const Json& json, Node& node, const std::vector<int>& shape) {
    node.out_channels = shape[0];
    if (std::int64_t{shape[1]} * node.groups > most_channels || shape[0] % node.groups != 0)
      json.at("groups").refuse("a divisor of the channels", std::to_string(node.groups));
    node.in_channels = shape[1] * node.groups;
    node.weights = floats(json.at("weight"), shape);
    if (!json.at("bias").is_null()) {
      const auto size = read_shape(json.at("bias"), 1);
      if (size[0] != shape[0])
        json.at("bias").at("shape").refuse(std::to_string(shape[0]), std::to_string(size[0]));
      node.bias = floats(json.at("bias"), size);
    }
  }

  std::shared_ptr<const float> floats(const Json& weight, const std::vector<int>& shape) {
    static_assert(std::endian::native == std::endian::little && std::numeric_limits<float>::is_iec559);
    const auto& name = weight.at("entry").string();
    const Archive::Entry* entry = network_.archive->find(name);
    if (entry == nullptr || !entry->stored)
      weight.at("entry").refuse("a stored entry of the archive", '"' + name + '"');
    std::uint64_t bytes = sizeof(float);
    for (const int size : shape)
      if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes))
        bytes = 0, weight.at("shape").refuse("less", "more");
    if (bytes != entry->bytes.size())
      weight.at("shape").refuse(std::to_string(entry->bytes.size()) + " bytes, as the entry " + name + " has",
                                std::to_string(bytes));
    const auto crc = weight.at("crc32").integer();
    if (crc != std::int64_t{entry->crc})
      weight.at("crc32").refuse(std::to_string(entry->crc) + ", as the archive's directory states",
                                std::to_string(crc));
    // Entries may be shared, but not so often that a small file takes the memory of a large one.
    if ((read_bytes_ += bytes) > most_reads * network_.archive->size() + shared_bytes)
      throw JsonError("network: its operators read more than 2 times what the file holds");
    network_.stored.push_back({name, entry->bytes, entry->crc});
    const auto* data = reinterpret_cast<const float*>(entry->bytes.data());
    if (reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0) return {network_.archive, data};
    // PyTorch aligns its entries; a tool that has packed the archive anew may not.
    const auto copy = std::make_shared<std::vector<float>>(bytes / sizeof(float));
    std::memcpy(copy->data(), entry->bytes.data(), bytes);
    return {copy, copy->data()};
  }

  // TorchScript stores equal weights once, as those of branches that begin as zeros.
  static constexpr std::uint64_t shared_bytes = std::uint64_t{1} << 20, most_reads = 2;

  Network network_;
  std::uint64_t read_bytes_ = 0;
};

}  // namespace

Network read_network(const Json& table, std::shared_ptr<const Archive> archive) {
  return Reader(table, std::move(archive)).take();
}

}  // namespace swsl
