// From image files to predictions: decode → preprocess → engine → softmax → top-k.
//
//   swsl::Runner runner("model.pt", {.device = "cpu"});
//   for (const auto& p : runner.classify_file("dog.jpg", /*top_k=*/5))
//     std::cout << p.label << ' ' << p.probability << '\n';
//
//   std::vector<swsl::ImageSource> images = {"a.jpg", image.view(),
//                                            swsl::EncodedImage{bytes.data(), bytes.size()}};
//   for (const auto& result : runner.classify(images, 5))
//     if (!result.ok()) std::cerr << result.error << '\n';  // one bad image; the others have predictions
//
//   using enum swsl::Output;
//   for (const auto& result : runner.run(images, {predictions, embedding}))  // in one forward pass
//     if (result.ok()) keep(result.predictions.front().label, result.embedding);
//
//   std::future<swsl::Result> answer = runner.submit("dog.jpg");  // threads' requests share forward passes
//
// Errors: ModelError for the model's file, std::invalid_argument for a faulty argument or option, ImageError
// from classify_file. In batches an image's error is in its own place instead.
//
// Thread safety: one runner may be called from any number of threads; forward passes on a CPU take turns, so
// that they do not fight over its cores. A process forked off after the runner was made must make its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <swsl/api.h>
#include <swsl/engine.h>
#include <swsl/frozen_model.h>
#include <swsl/image.h>

namespace swsl {

// The bytes of an image file. `name` is what errors call it.
struct EncodedImage {
  const void* data = nullptr;
  std::size_t size = 0;
  std::string name = "image bytes";
};

// A file's path, an encoded image, or decoded pixels. Nothing is owned: bytes and pixels must outlive the
// call.
using ImageSource = std::variant<std::string, EncodedImage, ImageView>;

struct RunnerOptions {
  std::string device = "cpu";  // "cpu", "cuda", "cuda:1", "auto" (CUDA if there is a device)
  // Of weights and activations: "float32", "bfloat16", "float16", or "auto": the faster of the first two,
  // measured once for a machine and model, bfloat16 only if its logits are within the tolerance. On CUDA also
  // "tf32": float32 whose products are of numbers rounded to 10 bits of mantissa; "float32" never does that.
  // Logits are float32.
  std::string dtype = "float32";
  // That forward pass and image decoding share; all threads of this runner and its streams together never
  // keep more busy. 0: as many as this process may use, by its affinity, its cgroup's CPU quota and
  // OMP_NUM_THREADS, the smallest of them.
  int cores = 0;
  // That compute the forward pass on a CPU, and that decode and preprocess the images of a batch before it,
  // at most `cores`. 0: as many as `cores`.
  int threads = 0;
  int batch_size = 0;             // images in one forward pass at most; 0: 16 on a CPU, 64 on CUDA
  bool exif_orientation = false;  // turn images as their EXIF tag says (timm and torchvision do not)
  // Inexact: JPEGs of at least four times the size that they are resized to are shrunk inside the decoder
  // (image.h); docs/speed.md has what that gains and what it does to logits.
  bool dct_scaling = false;
  // Inexact, CUDA only: JPEGs of the usual kind (baseline, YCbCr, not turned by exif_orientation) are decoded
  // by nvJPEG, whose pixels differ from libjpeg's; the CPU decodes all else, and whatever nvJPEG refuses.
  // Needs cuda_kernels and nvjpeg of BuildInfo.
  bool nvjpeg = false;
  // Of an image at most; one of more is an error (image.h).
  std::int64_t max_pixels = default_max_pixels;
  // Called for an image that this build does not decode (UnsupportedFormat), from any thread and from several
  // at a time: its pixels, upright if that is asked for, or an empty Image if these cannot be had here
  // either. ImageError says what is wrong with the image; other exceptions end the call or stream.
  std::function<Image(const ImageSource&)> decode_other = nullptr;
};

struct Prediction {
  std::string label;
  std::int64_t index = 0;  // of the class
  float probability = 0;   // softmax over all classes
};

// What a runner answers about an image: all of one forward pass.
enum class Output { predictions, embedding, logits };

// Of one image: what was asked for, the rest being empty, or what was wrong with it.
struct Result {
  std::vector<Prediction> predictions;  // the likeliest first
  std::vector<float> embedding;         // info().features numbers: what the classifier takes
  std::vector<float> logits;            // info().classes
  std::string error;                    // "" if nothing was

  bool ok() const { return error.empty(); }
};

// What an image has taken, in seconds of work: waiting, for a core too, is not counted.
struct Spent {
  double decode = 0;   // decoding and preprocessing; in nvJPEG's place what the CPU did
  double forward = 0;  // the forward pass that it shared
  int batch = 0;       // with so many images, itself among them; 0 of an image that could not be used
};

// One row per image. The row of an image that could not be used is NaN, and errors[row] says why; ""
// elsewhere.
struct BatchResult {
  Floats rows;                      // row-major
  std::vector<std::int64_t> shape;  // of the rows: N×classes, N×features or N×3×H×W
  std::vector<std::string> errors;  // N

  std::span<const float> row(std::size_t i) const {
    const std::size_t size = rows.size() / errors.size();
    return std::span(rows).subspan(i * size, size);
  }
};

class SWSL_API Runner {
 public:
  explicit Runner(const std::string& model_path, const RunnerOptions& options = {});
  ~Runner();
  Runner(Runner&&) noexcept;
  Runner& operator=(Runner&&) noexcept;

  std::vector<Prediction> classify_file(const std::string& path, int top_k = 5) const;

  // One or more outputs of each image. Images are read and computed batch_size at a time. top_k ≥ 1 is the
  // number of predictions; a model with fewer classes gives all of them.
  std::vector<Result> run(std::span<const ImageSource> images, const std::vector<Output>& outputs,
                          int top_k = 5) const;

  // Their predictions.
  std::vector<Result> classify(std::span<const ImageSource> images, int top_k = 5) const;

  // The predictions of one image, computed together with those that other threads submit in the same moment:
  // a DynamicBatcher with its defaults, which says more. Its threads are there from the first call on, as
  // long as the runner, whose destruction computes what was submitted.
  std::future<Result> submit(ImageSource image) const;

  BatchResult logits(std::span<const ImageSource> images) const;      // N×classes
  BatchResult embed(std::span<const ImageSource> images) const;       // N×features
  BatchResult preprocess(std::span<const ImageSource> images) const;  // N×3×H×W

  // N×3×H×W, in the CPU's memory or the engine's device's → float32 logits N×classes, in the CPU's.
  std::vector<float> forward(const Batch& batch) const;
  void forward(const Batch& batch, float* logits) const;

  // One forward pass, layer by layer; empty where the engine has no plan of its own. At most batch_size
  // images.
  std::vector<LayerTime> profile(const Batch& batch) const;

  // The predictions that one row of logits means.
  std::vector<Prediction> predictions(std::span<const float> logits, int top_k = 5) const;

  // What computes. Its own methods take no part in sharing the runner's cores.
  Engine& engine() const;

  const Metadata& metadata() const;
  const EngineInfo& info() const;
  int batch_size() const;

 private:
  friend class Stream;
  struct State;
  struct Requests;
  std::shared_ptr<State> state_;  // streams share it
  std::unique_ptr<Requests> requests_;
};

// How this library was built and what it can do here.
struct BuildInfo {
  std::string swsl_version;
  bool jpeg = false;  // decoded by this library
  bool png = false;
  // Of swsl::libtorch, where it is linked.
  std::string torch_version;  // whose headers it was compiled with; "" where it is not linked
  bool cuda = false;          // torch's CUDA libraries are linked
  bool cuda_kernels = false;  // and our own kernels compiled: without them CUDA devices run TorchScript on
                              // images prepared by the CPU
  bool nvjpeg = false;        // and what RunnerOptions::nvjpeg needs, except for the library itself, which is
                              // looked for when asked for
};
SWSL_API BuildInfo build_info();

}  // namespace swsl
