#include "resample/prepared.h"

#include <algorithm>

#include "resample/kernels/scalar.h"
#include "resample/kernels/simd.h"

namespace swsl::resample {
namespace {

constexpr std::size_t cache_capacity = 64;
constexpr std::size_t scratch_alignment = 64;

PreparedAxis prepare(const AxisGeometry& geometry, Pass pass, Interpolation interpolation, Isa isa) {
  PreparedAxis result;
  result.axis = make_axis(geometry, interpolation);
  if (isa == Isa::avx2) {
    if (pass == Pass::horizontal) result.column_halves = make_column_halves(result.axis);
    if (pass == Pass::vertical) result.row_table = make_row_halves(result.axis);
  } else if (isa == Isa::avx512) {
    if (pass == Pass::horizontal) result.column_bytes = make_column_bytes(result.axis);
    if (pass == Pass::vertical) result.row_table = make_row_bytes(result.axis);
  }
  return result;
}

#if defined(__x86_64__)
void* aligned(std::vector<std::uint8_t>& scratch, std::size_t size) {
  if (scratch.size() < size + scratch_alignment) scratch.resize(size + scratch_alignment);
  const auto address = reinterpret_cast<std::uintptr_t>(scratch.data());
  return scratch.data() + (scratch_alignment - address % scratch_alignment);
}
#endif

}  // namespace

std::shared_ptr<const PreparedAxis> AxisCache::find(const AxisGeometry& geometry, Pass pass) {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.pass == pass && entry.geometry == geometry;
  });
  if (found == entries_.end()) return nullptr;
  found->used = ++clock_;
  return found->axis;
}

std::shared_ptr<const PreparedAxis> AxisCache::get(const AxisGeometry& geometry, Pass pass) {
  {
    const std::lock_guard lock(mutex_);
    if (auto axis = find(geometry, pass)) return axis;
  }
  // Outside the lock: two threads may compute the same axis, but none waits for another's.
  auto axis = std::make_shared<const PreparedAxis>(prepare(geometry, pass, interpolation_, isa_));
  const std::lock_guard lock(mutex_);
  if (auto other = find(geometry, pass)) return other;
  if (entries_.size() == cache_capacity)
    entries_.erase(std::min_element(entries_.begin(), entries_.end(),
                                    [](const Entry& a, const Entry& b) { return a.used < b.used; }));
  entries_.push_back({geometry, pass, ++clock_, axis});
  return axis;
}

namespace {

AxisView view(const Axis& axis) {
  return {axis.begin,        axis.end,         axis.geometry.count,     axis.stride,
          axis.start.data(), axis.taps.data(), axis.coefficients.data()};
}

}  // namespace

void resample([[maybe_unused]] Isa isa, const std::uint8_t* pixels, std::ptrdiff_t row_stride,
              const PreparedAxis& rows, const PreparedAxis& columns, const Normalization& normalization,
              const Destination& destination, std::vector<std::uint8_t>& scratch) {
  const Job job{pixels, row_stride, view(rows.axis), view(columns.axis), &normalization, destination};
#if defined(__x86_64__)
  const RowGroups groups = rows.row_table.view();
  if (isa == Isa::avx512) {
    resample_avx512(job, columns.column_bytes.view(), groups,
                    aligned(scratch, scratch_size_avx512(job, groups)));
    return;
  }
  if (isa == Isa::avx2) {
    resample_avx2(job, columns.column_halves.view(), groups,
                  aligned(scratch, scratch_size_avx2(job, groups)));
    return;
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon) {
    resample_neon(job, scratch);
    return;
  }
#endif
  resample_scalar(job, scratch);
}

void vertical([[maybe_unused]] Isa isa, const std::uint8_t* pixels, std::ptrdiff_t row_stride,
              const PreparedAxis& rows, std::ptrdiff_t row_bytes, std::uint8_t* output) {
#if defined(__x86_64__)
  if (isa != Isa::scalar) {
    vertical_avx2(pixels, row_stride, view(rows.axis), row_bytes, output);
    return;
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon) {
    vertical_neon(pixels, row_stride, view(rows.axis), row_bytes, output);
    return;
  }
#endif
  vertical_scalar(pixels, row_stride, view(rows.axis), row_bytes, output);
}

}  // namespace swsl::resample
